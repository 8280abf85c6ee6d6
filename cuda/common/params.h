/* Parameter structs that several kernels share. Included by C++, by nvcc and by bindgen: plain C, and
 * nothing but <stdint.h>. Pointers are device addresses; shapes are in elements, row-major. */
#pragma once

#include <stdint.h>

/* The rows of a forward pass over a batch of sequences: one device array per field. The candidate rows of all
 * sequences come first, then the mask rows of all sequences, groups in ascending order and slots in order.
 * cuda/common/rows.cuh has the position of each row and the positions that it sees. */
struct FlexdraftPass {
    const int32_t* start;      /* n, the position of candidate 0 of each sequence, [batch] */
    const int32_t* candidates; /* number of candidate rows of each sequence, [batch]; may be 0 */
    /* accepted lengths that have a mask group, [batch]: bit i for accepted length first_group + i */
    const uint64_t* groups;
    /* the accepted length that bit 0 of `groups` stands for, [batch]: 0 except after a prompt */
    const int32_t* first_group;
    const int32_t* slots; /* number of slots per mask group, [batch], at most 64 */
    /* first candidate row of each sequence, [batch + 1]; the last entry is the number of candidate rows */
    const int32_t* first_candidate;
    const int32_t* first_mask; /* first mask row of each sequence, counted from row 0 of the pass, [batch + 1] */
    int32_t batch;
    int32_t rows; /* number of rows of the operands; the rows after the rows of all sequences are padding */
};

/* One layer of a paged KV cache. Element (page, token, head, dim) of K is
 * k[page * k_page_stride + token * k_token_stride + head * k_head_stride + dim]; V alike. Position p of a
 * sequence is token p % page_size of page page_table[sequence * page_table_stride + p / page_size]. */
struct FlexdraftPagedKv {
    void* k;                   /* the keys: rows of head_dim elements, aligned to 16 bytes */
    void* v;                   /* the values, in rows as the keys */
    const int32_t* page_table; /* the page ids of each sequence, [batch, page_table_stride] */
    int64_t k_page_stride, k_token_stride, k_head_stride;
    int64_t v_page_stride, v_token_stride, v_head_stride;
    int64_t page_table_stride;
    int32_t pages;     /* number of pages; page ids are below it */
    int32_t page_size; /* tokens per page: 1 to 15, or a multiple of 16 */
};

/* The bits of the device error word (`error` of a parameter struct): an id or an index in device memory that a kernel
 * refused, or input that has a defined result but is a mistake. */
enum FlexdraftError {
    FLEXDRAFT_ERROR_PAGE = 1,  /* error: a page id out of range */
    FLEXDRAFT_ERROR_TOKEN = 2, /* error: a token id out of range */
    FLEXDRAFT_ERROR_NAN = 4,   /* error: a NaN among the logits, which counts as −inf */
    FLEXDRAFT_ERROR_PLAN = 8,  /* error: a sequence longer than the workspace allows */
    FLEXDRAFT_ERROR_ROW = 16,  /* error: a row or sequence index out of range */
    FLEXDRAFT_ERROR_STORE = 32 /* error: calibrated logits that were needed again and not stored */
};

#if defined(__cplusplus)
static_assert(sizeof(FlexdraftPass) == 64, "mirrored in Rust");
static_assert(sizeof(FlexdraftPagedKv) == 88, "mirrored in Rust");
#endif

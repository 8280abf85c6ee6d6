/* Parameter structs that several kernels share. Included by C++, by nvcc and by bindgen: plain C, and
 * nothing but <stdint.h>. Pointers are device addresses; shapes are in elements, row-major. */
#pragma once

#include <stdint.h>

/* The rows of a pass: one device array per field. The candidate rows of all sequences come first, then the mask rows of
 * all sequences, groups in ascending order and slots in order. cuda/common/rows.cuh has the position of each row and
 * the positions that it sees. */
struct FlexdraftPass {
    const int32_t* start;       /* [batch] n, the position of candidate 0 */
    const int32_t* candidates;  /* [batch] candidate rows; may be 0 */
    const uint64_t* groups;     /* [batch] bit i: a mask group for accepted length first_group + i */
    const int32_t* first_group; /* [batch] the accepted length of bit 0 of `groups`: 0 except after a prompt */
    const int32_t* slots;       /* [batch] slots per group, at most 64 */
    const int32_t*
        first_candidate;       /* [batch + 1] first candidate row; the last entry is the number of candidate rows */
    const int32_t* first_mask; /* [batch + 1] first mask row, counted from row 0 of the pass */
    int32_t batch;
    int32_t rows; /* rows of the operands; rows beyond the rows of the sequences are padding */
};

/* One layer of a paged KV cache. Element (page, token, head, dim) of K is
 * k[page * k_page_stride + token * k_token_stride + head * k_head_stride + dim]; V alike. Position p of a
 * sequence is token p % page_size of page page_table[sequence * page_table_stride + p / page_size]. */
struct FlexdraftPagedKv {
    void* k; /* bf16, 16-byte aligned rows of head_dim */
    void* v;
    const int32_t* page_table; /* [batch, page_table_stride] */
    int64_t k_page_stride, k_token_stride, k_head_stride;
    int64_t v_page_stride, v_token_stride, v_head_stride;
    int64_t page_table_stride;
    int32_t pages;     /* page ids are below this */
    int32_t page_size; /* 16, 32, 64 or 128 tokens */
};

/* The bits of the device error word (`error` of a parameter struct): an id or an index in device memory that a kernel
 * refused, or input that has a defined result but is a mistake. */
enum FlexdraftError {
    FLEXDRAFT_ERROR_PAGE = 1,  /* a page id out of range */
    FLEXDRAFT_ERROR_TOKEN = 2, /* a token id out of range */
    FLEXDRAFT_ERROR_NAN = 4,   /* a NaN among the logits, which counts as −inf */
    FLEXDRAFT_ERROR_PLAN = 8,  /* a sequence longer than the workspace allows */
    FLEXDRAFT_ERROR_ROW = 16,  /* a row or sequence index out of range */
    FLEXDRAFT_ERROR_STORE = 32 /* calibrated logits that were needed again and not stored */
};

#if defined(__cplusplus)
static_assert(sizeof(FlexdraftPass) == 64, "mirrored in Rust");
static_assert(sizeof(FlexdraftPagedKv) == 88, "mirrored in Rust");
#endif

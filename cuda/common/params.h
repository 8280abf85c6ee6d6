/* Parameter structs that several kernels share. Included by C++, by nvcc and by bindgen: plain C, and
 * nothing but <stdint.h>. Pointers are device addresses; shapes are in elements, row-major. */
#pragma once

#include <stdint.h>

/* The rows of a pass, a device array an entry. Candidate rows of all sequences come first, then mask
 * rows of all sequences: groups in ascending order, slots in order. Candidate i of a sequence sits at
 * position n + i and sees positions 0..=n+i; slot j of group k sits at n+k+1+j and sees 0..=n+k and
 * the slots of its own group. */
struct FlexdraftPass {
    const int32_t* start;           /* [batch] n, the position of candidate 0 */
    const int32_t* candidates;      /* [batch] candidate rows; may be 0 */
    const uint64_t* groups;         /* [batch] bit i: a mask group for accepted length first_group + i */
    const int32_t* first_group;     /* [batch] 0 but after a prompt, whose length may be any */
    const int32_t* slots;           /* [batch] S, slots a group, at most 64 */
    const int32_t* first_candidate; /* [batch + 1] first candidate row; the last entry is their number */
    const int32_t* first_mask;      /* [batch + 1] first mask row, counted from row 0 of the pass */
    int32_t batch;
    int32_t rows; /* rows that the operands have; rows beyond the sequences' rows are padding */
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

/* What kernels report in the device error word (`error` of a parameter struct, a bit each): an id or index
 * from the device that a kernel refused, or input that its outcome, though defined, should not come from. */
enum FlexdraftError {
    FLEXDRAFT_ERROR_PAGE = 1,  /* a page id out of range */
    FLEXDRAFT_ERROR_TOKEN = 2, /* a token id out of range */
    FLEXDRAFT_ERROR_NAN = 4,   /* a NaN among the logits; it counted as −inf */
    FLEXDRAFT_ERROR_PLAN = 8,  /* a sequence longer than the workspace was made for */
    FLEXDRAFT_ERROR_ROW = 16,  /* a row or sequence index out of range */
    FLEXDRAFT_ERROR_STORE = 32 /* calibrated logits that were not stored were asked for again */
};

#if defined(__cplusplus)
static_assert(sizeof(FlexdraftPass) == 64, "mirrored in Rust");
static_assert(sizeof(FlexdraftPagedKv) == 88, "mirrored in Rust");
#endif

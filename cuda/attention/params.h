/* Parameters of the attention kernels. */
#pragma once

#include "../common/params.h"

/* Joint draft-and-verify attention of one layer. A candidate row sees the cache up to its own position. A row of group k
 * sees the cache up to position n + k, n being the position of candidate 0, and the slots of its own group, whose K and
 * V are rows of `mask_k` and `mask_v`. Query head h reads KV head h / head_ratio. */
struct FlexdraftAttentionParams {
    struct FlexdraftPass pass;
    struct FlexdraftPagedKv cache;
    const uint16_t* q; /* the q heads of every row, q_heads of head_dim bf16, [rows, q_stride] */
    /* the k heads of the mask rows, kv_heads of head_dim bf16, [rows, mask_stride]; other rows are not read */
    const uint16_t* mask_k;
    const uint16_t* mask_v; /* the v heads of the mask rows, as mask_k */
    uint16_t* out;          /* the result in bf16, [rows, q_heads * head_dim] */
    float* lse;             /* the natural logarithm of the sum of exp(score), [rows, q_heads]; may be null */
    float* partial_out;     /* workspace: the elements of the states of splits, [rows, q_heads, places, head_dim] */
    /* workspace: the largest score times log2(e), and the sum, of each state, [rows, q_heads, places, 2] */
    float* partial_stats;
    uint32_t* error; /* the device error word, for FLEXDRAFT_ERROR_PAGE and _PLAN; may be null */
    int64_t q_stride;
    int64_t mask_stride;
    float scale_log2; /* factor of the scores q · k: head_dim^-1/2 * log2(e) */
    int32_t q_heads;
    int32_t kv_heads;
    int32_t head_ratio;  /* query heads per KV head: q_heads / kv_heads */
    int32_t split;       /* keys per split of a long sequence, a multiple of 64 */
    int32_t item_splits; /* splits that a CTA computes one after the other: 1 or FLEXDRAFT_SPAN_SPLITS */
    int32_t max_states;  /* the most states that the cached keys of a sequence may leave in the workspace */
    int32_t places;      /* states per row and head for which the workspace has a place: max_states and, if that is more
                          * than one, a last place for the slots */
};

#if defined(__cplusplus)
static_assert(sizeof(FlexdraftAttentionParams) == 264, "mirrored in Rust");
#endif

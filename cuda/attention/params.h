/* Parameters of the attention kernels. */
#pragma once

#include "../common/params.h"

/* Joint draft-and-verify attention of one layer. A candidate row sees the cache up to its own position. A row of group k
 * sees the cache up to position n + k, n being the position of candidate 0, and the slots of its own group, whose K and
 * V are rows of `mask_k` and `mask_v`. Query head h reads KV head h / head_ratio. */
struct FlexdraftAttentionParams {
    struct FlexdraftPass pass;
    struct FlexdraftPagedKv cache;
    const uint16_t* q;      /* [rows, q_stride]: q_heads heads of head_dim bf16 */
    const uint16_t* mask_k; /* [rows, mask_stride]: kv_heads heads of head_dim bf16; only mask rows are read */
    const uint16_t* mask_v; /* as mask_k */
    uint16_t* out;          /* [rows, q_heads * head_dim] bf16 */
    float* lse;             /* [rows, q_heads] natural logarithm, or null */
    float* partial_out;     /* [rows, q_heads, places, head_dim] */
    float* partial_stats;   /* [rows, q_heads, places, 2]: maximum score in bits, sum */
    uint32_t* error;        /* null, or FLEXDRAFT_ERROR_PAGE and _PLAN are set */
    int64_t q_stride;
    int64_t mask_stride;
    float scale_log2; /* factor of the scores: head_dim^-1/2 * log2(e) */
    int32_t q_heads;
    int32_t kv_heads;
    int32_t head_ratio;  /* query heads per KV head: q_heads / kv_heads */
    int32_t split;       /* keys of a split, a multiple of 64 */
    int32_t item_splits; /* splits that a CTA takes together: 1 or FLEXDRAFT_SPAN_SPLITS */
    int32_t max_states;  /* states that the cached keys of a sequence may leave */
    int32_t places;      /* places of a row and head in the workspace: max_states and, if that is more than one, a last
                          * place for the slots */
};

#if defined(__cplusplus)
static_assert(sizeof(FlexdraftAttentionParams) == 264, "mirrored in Rust");
#endif

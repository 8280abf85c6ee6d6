/* Parameters of the attention kernels. The q, k, v, cache and result of a kernel have the kernel's type of elements: bf16,
 * or f16 in the kernels whose names end in _f16. */
#pragma once

#include "../common/params.h"

/* Joint draft-and-verify attention of one layer. A candidate row sees the cache up to its own position. A row of group k
 * sees the cache up to position n + k, n being the position of candidate 0, and the slots of its own group, whose K and
 * V are rows of `mask_k` and `mask_v`. Query head h reads KV head h / head_ratio. With a window, a row at position p sees
 * the cached positions above p - window only. Row r of the pass is row r of `q` if it is a candidate row, and row
 * r - candidates of `mask_q`, `mask_k` and `mask_v` if it is a mask row. A projection that has q, k and v side by side in
 * one row is all of these, with one stride. */
struct FlexdraftAttentionParams {
    struct FlexdraftPass pass;
    struct FlexdraftPagedKv cache;
    const uint16_t* q;      /* the q heads of candidate rows, q_heads of head_dim elements, [candidates, q_stride] */
    const uint16_t* mask_q; /* the q heads of mask rows, [mask rows, mask_q_stride] */
    const uint16_t* mask_k; /* the k heads of mask rows, kv_heads of head_dim elements, [mask rows, mask_k_stride] */
    const uint16_t* mask_v; /* the v heads of mask rows, [mask rows, mask_v_stride] */
    uint16_t* out;          /* the result, [rows, q_heads * head_dim] */
    float* lse;             /* the natural logarithm of the sum of exp(score), [rows, q_heads]; may be null */
    float* partial_out;     /* workspace: the elements of the states of splits, [rows, q_heads, places, head_dim] */
    /* workspace: the largest score times log2(e), and the sum, of each state, [rows, q_heads, places, 2] */
    float* partial_stats;
    /* a score per head, without a value, that joins every row's softmax in the last merge, [q_heads]; may be null */
    const float* sinks;
    uint32_t* error;  /* the device error word, for FLEXDRAFT_ERROR_PAGE and _PLAN; may be null */
    int64_t q_stride; /* distance between rows of `q`, in elements */
    int64_t mask_q_stride, mask_k_stride, mask_v_stride;
    /* factor of the scores: head_dim^-1/2 * log2(e) of q · k or, if scores are capped, cap * log2(e) of the tangent */
    float scale_log2;
    float cap_scale; /* 0: no cap; otherwise scores are tanh(q · k * cap_scale * ln(2) / 2) * scale_log2 */
    int32_t q_heads;
    int32_t kv_heads;
    int32_t head_ratio;  /* query heads per KV head: q_heads / kv_heads */
    int32_t split;       /* keys per split of a long sequence, a multiple of 64 */
    int32_t item_splits; /* splits that a CTA computes one after the other: 1 or FLEXDRAFT_SPAN_SPLITS */
    int32_t max_states;  /* the most states that the cached keys of a sequence may leave in the workspace */
    int32_t places;      /* states per row and head for which the workspace has a place: max_states and, if that is more
                          * than one, a last place for the slots */
    int32_t candidates;  /* number of candidate rows in the pass */
    int32_t window;      /* positions that a row sees up to its own; FLEXDRAFT_NO_WINDOW: all */
    /* position / page_size is position * page_magic >> page_shift, for positions below 2^31 */
    uint32_t page_magic;
    int32_t page_shift;
    /* nonzero: a kernel may have changed the tables of the pass since they were copied to the device */
    int32_t tables_change;
};

/* The largest window, from which a row sees everything before it. */
enum FlexdraftWindow { FLEXDRAFT_NO_WINDOW = 2147483647 };

#if defined(__cplusplus)
static_assert(sizeof(FlexdraftAttentionParams) == 320, "mirrored in Rust");
#endif

/* Parameters of rotary embedding. Rows are bf16; frequencies, rotations and weights of norms are f32. */
#pragma once

#include "../common/params.h"

/* cos_sin[r][i] = (cos, sin)(position of row r * inv_freq[i]) * scale; padded rows: (0, 0). */
struct FlexdraftRopeTableParams {
    struct FlexdraftPass pass;
    const float* inv_freq; /* [head_dim / 2] */
    float* cos_sin;        /* [rows, head_dim / 2, 2] */
    float scale;
    int32_t half_dim;
};

/* Applies norms (if there are weights) and rotation to the q and k heads of rows first_row..end_row. q, and the k of
 * mask rows, change in place; the k and v of candidate rows go to the cache. */
struct FlexdraftNormRopeAppendParams {
    struct FlexdraftPass pass;
    struct FlexdraftPagedKv cache;
    uint16_t* qkv;        /* [rows, qkv_stride]: q heads, k heads, v heads */
    const float* cos_sin; /* [rows, head_dim / 2, 2] */
    const float* q_norm;  /* [head_dim] or null */
    const float* k_norm;  /* [head_dim] or null, as q_norm */
    uint32_t* error;      /* null, or FLEXDRAFT_ERROR_PAGE is set */
    int64_t qkv_stride;
    float eps;
    int32_t q_heads;
    int32_t kv_heads;
    int32_t first_row;
    int32_t end_row;
    int32_t unused;
};

#if defined(__cplusplus)
static_assert(sizeof(FlexdraftRopeTableParams) == 88, "mirrored in Rust");
static_assert(sizeof(FlexdraftNormRopeAppendParams) == 224, "mirrored in Rust");
#endif

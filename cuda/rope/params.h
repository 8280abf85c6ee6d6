/* Parameters of rotary embedding. Rows and the cache are bf16, or f16 for the kernels whose names end in _f16;
 * frequencies, rotations and weights of norms are f32. */
#pragma once

#include "../common/params.h"

/* The table of rotations: cos_sin[r][i] = (cos, sin)(position of row r * inv_freq[i]) * scale; padding rows: (0, 0). */
struct FlexdraftRopeTableParams {
    struct FlexdraftPass pass;
    const float* inv_freq; /* inverse frequencies, in radians per position, [head_dim / 2] */
    float* cos_sin;        /* the result: cosine and sine of every angle, [rows, head_dim / 2, 2] */
    float scale;
    int32_t half_dim;
};

/* Applies norms (if there are weights) and rotation to the q and k heads of rows first_row..end_row. q, and the k of
 * mask rows, change in place; the k and v of candidate rows go to the cache. Row 0 of `q`, `k` and `v` is row first_row
 * of the pass. A projection that has q, k and v side by side in one row is all three, with one stride. */
struct FlexdraftNormRopeAppendParams {
    struct FlexdraftPass pass;
    struct FlexdraftPagedKv cache;
    uint16_t* q;                          /* the q heads, q_heads of head_dim elements, [rows, q_stride] */
    uint16_t* k;                          /* the k heads, kv_heads of head_dim elements, [rows, k_stride] */
    const uint16_t* v;                    /* the v heads, kv_heads of head_dim elements, [rows, v_stride] */
    const float* cos_sin;                 /* the cosines and sines that rope_table wrote, [rows, head_dim / 2, 2] */
    const float* q_norm;                  /* the weight of the norm of q heads, [head_dim]; null: no norms */
    const float* k_norm;                  /* the weight of the norm of k heads, [head_dim]; null if q_norm is */
    uint32_t* error;                      /* the device error word, for FLEXDRAFT_ERROR_PAGE; may be null */
    int64_t q_stride, k_stride, v_stride; /* distances between rows, in elements */
    float eps;
    int32_t q_heads;
    int32_t kv_heads;
    int32_t first_row;
    int32_t end_row;
    int32_t unused;
};

#if defined(__cplusplus)
static_assert(sizeof(FlexdraftRopeTableParams) == 88, "mirrored in Rust");
static_assert(sizeof(FlexdraftNormRopeAppendParams) == 256, "mirrored in Rust");
#endif

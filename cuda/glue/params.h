/* Parameters of the kernels around the matrix products. Activations are bf16 rows, `cols` elements each
 * (a multiple of 8) and `*_stride` elements from one to the next; vectors are f32. */
#pragma once

#include "../common/params.h"

/* out[r] = table[ids[r]], or zeros where the id is not of the table. */
struct FlexdraftEmbedParams {
    const int32_t* ids;    /* [rows] */
    const uint16_t* table; /* [vocab, cols] */
    uint16_t* out;         /* [rows, cols] */
    uint32_t* error;       /* null, or FLEXDRAFT_ERROR_TOKEN is set */
    int64_t cols;
    int32_t rows;
    int32_t vocab;
};

/* out[r] = x[indices[r]], or zeros where there is no such row. */
struct FlexdraftGatherParams {
    const int32_t* indices; /* [rows]; -1: none, on purpose */
    const uint16_t* x;      /* [x_rows, cols] */
    uint16_t* out;          /* [rows, cols] */
    uint32_t* error;        /* null, or FLEXDRAFT_ERROR_ROW is set */
    int64_t cols;
    int32_t rows;
    int32_t x_rows;
};

/* x[r] += delta[r], if there is a delta; out[r] = x[r] / sqrt(mean(x[r]^2) + eps) * weight. */
struct FlexdraftRmsNormParams {
    uint16_t* x;           /* [rows, cols] */
    const uint16_t* delta; /* [rows, cols] or null */
    const float* weight;   /* [cols] */
    uint16_t* out;         /* [rows, cols] */
    int64_t cols;
    int32_t rows;
    float eps;
};

/* x += delta, eight elements a chunk. */
struct FlexdraftAddParams {
    uint16_t* x;           /* [8 chunks] */
    const uint16_t* delta; /* [8 chunks] */
    int64_t chunks;
};

/* out[r] = silu(x[r][0..cols]) * x[r][cols..2 cols]. */
struct FlexdraftSiluMulParams {
    const uint16_t* x; /* [rows, 2 cols] */
    uint16_t* out;     /* [rows, cols] */
    int64_t cols;
    int32_t rows;
    int32_t unused;
};

/* x[r] = silu(x[r] + bonus[owner[r]]): the calibrator's hidden row. It stays as it is where there is no such row
 * of bonus. */
struct FlexdraftSiluAddParams {
    uint16_t* x;           /* [rows, cols] */
    const uint16_t* bonus; /* [bonus_rows, cols] */
    const int32_t* owner;  /* [rows]; -1: none, on purpose */
    uint32_t* error;       /* null, or FLEXDRAFT_ERROR_ROW is set */
    int64_t cols;
    int32_t rows;
    int32_t bonus_rows;
};

/* cos_sin[r][i] = (cos, sin)(position of row r * inv_freq[i]) * scale; padded rows: (0, 0). */
struct FlexdraftRopeTableParams {
    struct FlexdraftPass pass;
    const float* inv_freq; /* [head_dim / 2] */
    float* cos_sin;        /* [rows, head_dim / 2, 2] */
    float scale;
    int32_t half_dim;
};

/* Norms (where there are weights) and rotates the q and k heads of rows first_row..end_row: q and mask rows' k in
 * place. The k and v heads of candidate rows go to the cache. */
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
static_assert(sizeof(FlexdraftEmbedParams) == 48, "mirrored in Rust");
static_assert(sizeof(FlexdraftGatherParams) == 48, "mirrored in Rust");
static_assert(sizeof(FlexdraftRmsNormParams) == 48, "mirrored in Rust");
static_assert(sizeof(FlexdraftAddParams) == 24, "mirrored in Rust");
static_assert(sizeof(FlexdraftSiluMulParams) == 32, "mirrored in Rust");
static_assert(sizeof(FlexdraftSiluAddParams) == 48, "mirrored in Rust");
static_assert(sizeof(FlexdraftRopeTableParams) == 88, "mirrored in Rust");
static_assert(sizeof(FlexdraftNormRopeAppendParams) == 224, "mirrored in Rust");
#endif

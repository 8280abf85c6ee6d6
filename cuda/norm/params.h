/* Parameters of RMSNorm and of the addition to the residual stream. Rows are bf16, with `cols` elements (a multiple of
 * 8); weights are f32. */
#pragma once

#include "../common/params.h"

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

#if defined(__cplusplus)
static_assert(sizeof(FlexdraftRmsNormParams) == 48, "mirrored in Rust");
static_assert(sizeof(FlexdraftAddParams) == 24, "mirrored in Rust");
#endif

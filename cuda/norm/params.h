/* Parameters of RMSNorm and of the addition to the residual stream. Rows are bf16, or f16 for the kernels whose names
 * end in _f16, with `cols` elements (a multiple of 8); weights are f32. */
#pragma once

#include "../common/params.h"

/* RMSNorm after an optional addition: x[r] += delta[r], if there is a delta; out[r] = weight * x[r] /
 * sqrt(mean(x[r]^2) + eps). */
struct FlexdraftRmsNormParams {
    uint16_t* x;           /* the residual stream, [rows, cols] */
    const uint16_t* delta; /* the values to add to `x`, [rows, cols]; may be null */
    const float* weight;   /* the weight of the norm, [cols] */
    uint16_t* out;         /* the normed rows, [rows, cols] */
    int64_t cols;
    int32_t rows;
    float eps;
};

/* The addition of a vector to another: x += delta, in chunks of eight elements. */
struct FlexdraftAddParams {
    uint16_t* x;           /* the vector to add to, [8 * chunks] */
    const uint16_t* delta; /* the vector to add, [8 * chunks] */
    int64_t chunks;
};

#if defined(__cplusplus)
static_assert(sizeof(FlexdraftRmsNormParams) == 48, "mirrored in Rust");
static_assert(sizeof(FlexdraftAddParams) == 24, "mirrored in Rust");
#endif

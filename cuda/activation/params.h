/* Parameters of the activations. Rows are bf16, or f16 for the kernels whose names end in _f16, with `cols` elements (a
 * multiple of 8). */
#pragma once

#include "../common/params.h"

/* The MLP's activation: out[r] = silu(x[r][0..cols]) * x[r][cols..2 cols]. */
struct FlexdraftSiluMulParams {
    const uint16_t* x; /* the gate and the up projection, side by side, [rows, 2 cols] */
    uint16_t* out;     /* the result, [rows, cols] */
    int64_t cols;
    int32_t rows;
    int32_t unused;
};

/* The hidden layer of the calibrator: x[r] = silu(x[r] + bonus[owner[r]]). Without such a row of bonus, x[r] does not
 * change. */
struct FlexdraftSiluAddParams {
    uint16_t* x;           /* the slots' half of the hidden layer, which the result replaces, [rows, cols] */
    const uint16_t* bonus; /* the bonus tokens' half of the hidden layer, [bonus_rows, cols] */
    const int32_t* owner;  /* the row of `bonus` for each row of `x`, [rows]; -1: none, on purpose */
    uint32_t* error;       /* the device error word, for FLEXDRAFT_ERROR_ROW; may be null */
    int64_t cols;
    int32_t rows;
    int32_t bonus_rows;
};

#if defined(__cplusplus)
static_assert(sizeof(FlexdraftSiluMulParams) == 32, "mirrored in Rust");
static_assert(sizeof(FlexdraftSiluAddParams) == 48, "mirrored in Rust");
#endif

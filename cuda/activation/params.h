/* Parameters of the activations. Rows are bf16, with `cols` elements (a multiple of 8). */
#pragma once

#include "../common/params.h"

/* out[r] = silu(x[r][0..cols]) * x[r][cols..2 cols]. */
struct FlexdraftSiluMulParams {
    const uint16_t* x; /* [rows, 2 cols] */
    uint16_t* out;     /* [rows, cols] */
    int64_t cols;
    int32_t rows;
    int32_t unused;
};

/* x[r] = silu(x[r] + bonus[owner[r]]): the calibrator's hidden row. Without such a row of bonus, x[r] does not
 * change. */
struct FlexdraftSiluAddParams {
    uint16_t* x;           /* [rows, cols] */
    const uint16_t* bonus; /* [bonus_rows, cols] */
    const int32_t* owner;  /* [rows]; -1: none, on purpose */
    uint32_t* error;       /* null, or FLEXDRAFT_ERROR_ROW is set */
    int64_t cols;
    int32_t rows;
    int32_t bonus_rows;
};

#if defined(__cplusplus)
static_assert(sizeof(FlexdraftSiluMulParams) == 32, "mirrored in Rust");
static_assert(sizeof(FlexdraftSiluAddParams) == 48, "mirrored in Rust");
#endif

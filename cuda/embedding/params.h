/* Parameters of the copies of rows by index. Rows are of a type of 16 bits, with `cols` elements (a multiple of 8). */
#pragma once

#include "../common/params.h"

/* Copies the embeddings of token ids: out[r] = table[ids[r]], or zeros if the table has no such id. */
struct FlexdraftEmbedParams {
    const int32_t* ids;    /* the token ids, [rows] */
    const uint16_t* table; /* the embedding table, [vocab, cols] */
    uint16_t* out;         /* the result, [rows, cols] */
    uint32_t* error;       /* the device error word, for FLEXDRAFT_ERROR_TOKEN; may be null */
    int64_t cols;
    int32_t rows;
    int32_t vocab;
};

/* Copies rows by index: out[r] = x[indices[r]], or zeros if `x` has no such row. */
struct FlexdraftGatherParams {
    const int32_t* indices; /* the row of `x` for each row of `out`, [rows]; -1: zeros, on purpose */
    const uint16_t* x;      /* the rows to copy from, [x_rows, cols] */
    uint16_t* out;          /* the result, [rows, cols] */
    uint32_t* error;        /* the device error word, for FLEXDRAFT_ERROR_ROW; may be null */
    int64_t cols;
    int32_t rows;
    int32_t x_rows;
};

#if defined(__cplusplus)
static_assert(sizeof(FlexdraftEmbedParams) == 48, "mirrored in Rust");
static_assert(sizeof(FlexdraftGatherParams) == 48, "mirrored in Rust");
#endif

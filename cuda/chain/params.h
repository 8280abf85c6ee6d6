/* Parameters of the kernels of Chained Calibration, which draw the tokens of a draft one after the other. Plain C; shapes
 * in elements, row-major. reference/src/chain.rs defines the method; C_j, l_j, s_j and t_j are its symbols. */
#pragma once

#include "../acceptance/params.h"
#include "../sampling/params.h"

/* The parameters of chain_choose_*, which chooses C_j, the ids of the largest logits, for each draft row. */
struct FlexdraftChooseParams {
    const void* logits; /* the calibrated logits, [logit_rows, logit_stride], f32, bf16 or f16 */
    /* the index in `logits` of each row, [rows]; -1: padding, with the ids 0 to count - 1 and logits of -inf; null: row r
     * has the logits r */
    const int32_t* logit_index;
    /* the partial results that sampling left of the rows, [rows, FLEXDRAFT_PARTIAL_FIELDS, chunks]; field 0 has the
     * largest logit of each chunk */
    const float* partials;
    int32_t* ids;         /* result: the chosen ids in descending order of their logits, [rows, count] */
    float* chosen;        /* result: l_j, the logits of the chosen ids; NaN becomes -inf, [rows, count] */
    uint32_t* error;      /* the device error word (FlexdraftError); may be null */
    int64_t logit_stride; /* elements from one row of logits to the next: a multiple of 8, at least vocab */
    int32_t rows;
    int32_t logit_rows;
    int32_t vocab;
    int32_t chunks;    /* number of chunks per row: vocab / chunk_ids, rounded up */
    int32_t chunk_ids; /* vocabulary ids per chunk: FLEXDRAFT_CHUNK or FLEXDRAFT_CALIBRATED_CHUNK */
    int32_t count;     /* K, the number of ids chosen per row: 1 to FLEXDRAFT_CHAIN_LIMIT, at most vocab */
};

/* The parameters of chain_score_*, which computes the scores of all pairs of neighbouring tokens as dot products of
 * factors: entry [a][b] of a row's table is the score of its id b after id a of the row before. */
struct FlexdraftChainScoreParams {
    /* the factors of the tokens before: of the bonus token of each draft, then of each row's chosen ids,
     * [drafts + rows * count, before_stride] */
    const float* before;
    const void* after;     /* the factors of the chosen ids, [rows * count, after_stride], f32, bf16 or f16 */
    const int32_t* owners; /* the draft of each row, [rows]; the rows of a draft follow each other */
    /* result: the scores, [rows, count, count]; in the first row of a draft, only entries [0][b] are written, the scores
     * after the bonus token */
    float* scores;
    uint32_t* error;       /* the device error word (FlexdraftError); may be null */
    int64_t before_stride; /* elements from one factor to the next: a multiple of 8, at least rank */
    int64_t after_stride;  /* as before_stride */
    int32_t rows;
    int32_t drafts;
    int32_t count; /* K, as in FlexdraftChooseParams */
    int32_t rank;  /* elements per factor */
};

/* The parameters of chain_walk, which draws the tokens of each draft row by row. */
struct FlexdraftWalkParams {
    const struct FlexdraftDraft* drafts;         /* the drafts, [draft_count] */
    const int32_t* logit_index;                  /* -1 for padding rows, whose stats become zero, [rows]; may be null */
    const struct FlexdraftRowSampling* sampling; /* how each row is warped and drawn from, [rows] */
    const int32_t* starts; /* the positions from which FlexdraftRowSampling.position counts, [sequences]; may be null */
    const int32_t* ids;    /* C_j: the chosen ids of each row, [rows, count] */
    const float* scores;   /* the scores of pairs of neighbouring tokens, [rows, count, count] */
    float* chosen;         /* the logits l_j of the chosen ids, replaced by the chained logits s_j, [rows, count] */
    /* result: the statistics of each row of logits that are s_j in C_j and -inf elsewhere, [rows] */
    struct FlexdraftRowStats* stats;
    uint32_t* error; /* the device error word (FlexdraftError); may be null */
    int32_t draft_count;
    int32_t rows;
    int32_t count; /* K, as in FlexdraftChooseParams */
    int32_t sequences;
};

enum FlexdraftChainConstant {
    FLEXDRAFT_CHAIN_LIMIT = 32 /* the most ids that a chain scores per row: one per lane of a warp */
};

#if defined(__cplusplus)
static_assert(sizeof(FlexdraftChooseParams) == 80, "mirrored in Rust");
static_assert(sizeof(FlexdraftChainScoreParams) == 72, "mirrored in Rust");
static_assert(sizeof(FlexdraftWalkParams) == 88, "mirrored in Rust");
#endif

/* Parameters of the sampling kernels. Plain C; shapes in elements, row-major. */
#pragma once

#include "../common/params.h"

/* How one row of logits is warped and drawn from. */
struct FlexdraftRowSampling {
    uint64_t seed;     /* of the request: the key of its random numbers */
    uint64_t position; /* counter words 2 and 3, before starts[sequence] is added */
    /* 1 / temperature, rounded to f32. 0, and any value that is not a finite number above 0, is greedy: the largest
     * logit, ties to the lowest id */
    float inverse_temperature;
    float top_p; /* 1 is off */
    /* min-p as a score: the smallest f32 s with exp(s) >= min_p; −inf is off */
    float min_score;
    int32_t top_k;             /* 0 is off */
    uint32_t purpose_and_slot; /* counter word 1; 0: no draw, the token is that of the largest logit */
    int32_t sequence;          /* `position` counts from starts[sequence]; −1: from 0 */
};

/* The statistics of one row after sampling. The score of id x is 0 if logit[x] is the largest (or +inf), otherwise
 * (logit[x] − max) · inverse_temperature; NaN counts as −inf. x is kept if its score is above cut_score, or equal to
 * it and x <= cut_id. The probability of a kept id is p(x) = exp(score − log_sum), of any other id 0. At temperature
 * 0, or if max is −inf, p is 1 at `token` and 0 elsewhere. cuda/sampling/warping.cuh computes it. */
struct FlexdraftRowStats {
    int32_t token;             /* drawn, or that of the largest logit */
    float max;                 /* the largest logit */
    float log_sum;             /* ln of the sum of exp(score) over the ids kept; 0 at temperature 0 */
    float probability;         /* p(token) */
    float confidence;          /* the largest probability at temperature 1, nothing dropped */
    float token_logit;         /* logit[token] */
    float draft_probability;   /* p(draft token); 0 without a draft token */
    float inverse_temperature; /* of the row; 0 if the row is greedy */
    float cut_score;           /* −inf: everything is kept */
    int32_t cut_id;
    int32_t kept; /* number of ids that are kept; the size of the vocabulary if nothing is dropped */
    int32_t padding;
};

/* Sampling of rows, with or without calibration: logits + W2 · u + b2. Padding rows (logit_index −1) are skipped; their
 * stats are zero. */
struct FlexdraftSampleParams {
    void* logits;                                /* [logit_rows, logit_stride] f32 or bf16; written if `store` */
    const int32_t* logit_index;                  /* [rows] the row of logits; null: row r is logits row r */
    const struct FlexdraftRowSampling* sampling; /* [rows] */
    const int32_t* starts;                       /* [sequences]; null without sequences */
    const int32_t* draft;                        /* [rows] token to report p of, −1: none; may be null */
    const uint16_t* u;                           /* [rows, rank] bf16; null without a calibrator */
    const uint16_t* w2;                          /* [vocab, rank] bf16 */
    const float* b2;                             /* [vocab]; may be null */
    float* partials;                             /* [rows, FLEXDRAFT_PARTIAL_FIELDS, chunks] */
    struct FlexdraftRowStats* stats;             /* [rows] */
    uint32_t* error;                             /* the device error word; may be null */
    int64_t logit_stride; /* elements from a row of logits to the next: a multiple of 8, at least vocab */
    int32_t rows;
    int32_t logit_rows;
    int32_t vocab; /* number of vocabulary ids, 1 to 2^20 */
    int32_t rank;  /* the calibrator's rank, a multiple of 8 */
    int32_t sequences;
    int32_t chunks;         /* ceil(vocab / (calibrated ? FLEXDRAFT_CALIBRATED_CHUNK : FLEXDRAFT_CHUNK)) */
    int32_t store;          /* 1: the calibrated logits replace the logits that they were computed from */
    int32_t logits_current; /* 1: `logits` holds the logits that are sampled: no calibrator, or `store` */
};

enum FlexdraftSamplingConstant {
    FLEXDRAFT_CHUNK = 1024,          /* ids a partial result covers */
    FLEXDRAFT_CALIBRATED_CHUNK = 64, /* the same after the calibrator's matrix product */
    FLEXDRAFT_PARTIAL_FIELDS = 5,
    FLEXDRAFT_VOCAB_LIMIT = 1 << 20
};

#if defined(__cplusplus)
static_assert(sizeof(FlexdraftRowSampling) == 40, "mirrored in Rust");
static_assert(sizeof(FlexdraftRowStats) == 48, "mirrored in Rust");
static_assert(sizeof(FlexdraftSampleParams) == 128, "mirrored in Rust");
#endif

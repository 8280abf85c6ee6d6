/* Parameters of the sampling kernels. Plain C; shapes in elements, row-major. */
#pragma once

#include "../common/params.h"

/* How one row of logits becomes a distribution (warping), and with which random numbers a token is drawn from it. */
struct FlexdraftRowSampling {
    uint64_t seed;     /* seed of the request, the key of its random numbers */
    uint64_t position; /* words 2 and 3 of the random numbers' counter, before starts[sequence] is added */
    /* 1 / temperature, rounded to f32. 0, and any value that is not a finite number above 0, is greedy: the largest
     * logit, ties to the lowest id */
    float inverse_temperature;
    float top_p; /* top-p; 1 is off */
    /* min-p as a score: the smallest f32 s with exp(s) >= min_p; −inf is off */
    float min_score;
    int32_t top_k; /* top-k; 0 is off */
    /* word 1 of the random numbers' counter; 0: no draw, the token is the id of the largest logit */
    uint32_t purpose_and_slot;
    int32_t sequence; /* the index in `starts` of the position from which `position` counts; −1: from 0 */
};

/* Why no token may be drawn from a row of logits. −inf is sound: the logit of a forbidden id. */
enum FlexdraftLogitsFault {
    FLEXDRAFT_LOGITS_SOUND = 0,
    FLEXDRAFT_LOGITS_NAN = 1,      /* a NaN */
    FLEXDRAFT_LOGITS_INFINITE = 2, /* +inf, and no NaN */
    FLEXDRAFT_LOGITS_FORBIDDEN = 3 /* every id is forbidden: all are −inf */
};

/* The statistics of one row after sampling. The score of id x is 0 if logit[x] is the largest (or +inf), otherwise
 * (logit[x] − max) · inverse_temperature; NaN counts as −inf. x is kept if its score is above cut_score, or equal to
 * it and x <= cut_id. The probability of a kept id is p(x) = exp(score − log_sum), of any other id 0. At temperature
 * 0, or if max is −inf, p is 1 at `token` and 0 elsewhere. cuda/sampling/warping.cuh computes it. */
struct FlexdraftRowStats {
    int32_t token;             /* the token that was drawn, or the id of the largest logit */
    float max;                 /* the largest logit of the row */
    float log_sum;             /* ln of the sum of exp(score) over the ids that are kept; 0 at temperature 0 */
    float probability;         /* the probability of `token` */
    float confidence;          /* the largest probability at temperature 1, with no id dropped; 0 if max is −inf */
    float token_logit;         /* the logit of `token` */
    float draft_probability;   /* the probability of the row's draft token; 0 without a draft token */
    float inverse_temperature; /* 1 / temperature of the row; 0 if the row is greedy */
    float cut_score;           /* the lowest score that is kept; −inf: every id is kept */
    int32_t cut_id;            /* the highest id that is kept among the ids with the score cut_score */
    int32_t kept;              /* number of ids that are kept; the size of the vocabulary if nothing is dropped */
    /* FlexdraftLogitsFault. The other fields of a faulty row are as above, but no token of a target may come from it */
    int32_t fault;
};

/* The effects of an edit on a logit, in the order in which they act. */
enum FlexdraftEditEffect {
    FLEXDRAFT_EDIT_REPEATED = 1,  /* the repetition penalty: divides a positive logit, multiplies a negative logit */
    FLEXDRAFT_EDIT_GENERATED = 2, /* subtracts `operand`, then the presence penalty */
    FLEXDRAFT_EDIT_BIASED = 4,    /* adds `operand` */
    FLEXDRAFT_EDIT_FORBIDDEN = 8  /* sets the logit to −inf */
};

/* An edit: the change of the logit of one id, in some rows of a sequence. */
struct FlexdraftLogitEdit {
    int32_t id;
    uint16_t first_row; /* the first row that is edited, counted from the sequence's first row */
    uint16_t end_row;   /* the last row that is edited, plus 1 */
    uint32_t effects;   /* FlexdraftEditEffect, one bit each */
    float operand;
};

/* The edits of one row of logits, which act before the row is sampled. */
struct FlexdraftRowEdits {
    int32_t first_offset;     /* the place in `edit_offsets` of the sequence's chunks + 1 offsets; −1: no edits */
    int32_t first_word;       /* the place in `masks` of the sequence's mask; −1: every id is allowed */
    int32_t row;              /* the row, counted from the sequence's first row */
    float repetition_penalty; /* the repetition penalty, above 0 */
    float presence_penalty;
    int32_t unused;
};

/* The parameters of sampling, with or without the calibrator's correction: logits + W2 · u + b2. Padding rows
 * (logit_index −1) are skipped; their stats are zero. */
struct FlexdraftSampleParams {
    void* logits; /* the logits, [logit_rows, logit_stride], f32, bf16 or f16; written if `store`, and by edits */
    const int32_t* logit_index; /* the index in `logits` of each row, [rows]; null: row r has the logits r */
    const struct FlexdraftRowSampling* sampling; /* how each row is warped and drawn from, [rows] */
    const int32_t* starts; /* the positions from which FlexdraftRowSampling.position counts, [sequences]; may be null */
    const int32_t* draft;  /* the token of each row whose probability is reported, [rows]; −1: none; may be null */
    const uint16_t* u;     /* the calibrator's hidden layer, [rows, rank], bf16 or f16; null without a calibrator */
    const uint16_t* w2;    /* the weight of the calibrator's last layer, [vocab, rank], bf16 or f16 */
    const float* b2;       /* the bias of the calibrator's last layer, [vocab]; may be null */
    float* partials;       /* workspace: the partial results, [rows, FLEXDRAFT_PARTIAL_FIELDS, chunks] */
    struct FlexdraftRowStats* stats; /* result: the statistics of each row, [rows] */
    /* the edits of each row, [rows]; null: no row is edited; null with a calibrator */
    const struct FlexdraftRowEdits* row_edits;
    /* for each chunk of a sequence, and for the end, the place of the first edit in `edits`, [offset_count] */
    const int32_t* edit_offsets;
    const struct FlexdraftLogitEdit* edits; /* the edits of sequences, by id, then in their order, [edit_count] */
    const uint32_t* masks; /* masks: bit x % 32 of word x / 32 is set if id x is allowed, [mask_words] */
    uint32_t* error;       /* the device error word (FlexdraftError); may be null */
    int64_t logit_stride;  /* elements from one row of logits to the next: a multiple of 8, at least vocab */
    int32_t rows;
    int32_t logit_rows;
    int32_t vocab; /* number of vocabulary ids, 1 to 2^20 */
    int32_t rank;  /* the calibrator's rank, a multiple of 8 */
    int32_t sequences;
    /* number of chunks per row: vocab / (calibrated ? FLEXDRAFT_CALIBRATED_CHUNK : FLEXDRAFT_CHUNK), rounded up */
    int32_t chunks;
    int32_t store;          /* 1: the calibrated logits replace the logits that they were computed from */
    int32_t logits_current; /* 1: `logits` holds the logits that are sampled, without a calibrator or with `store` */
    int32_t offset_count;
    int32_t edit_count;
    int32_t mask_words;
    int32_t unused;
};

enum FlexdraftSamplingConstant {
    FLEXDRAFT_CHUNK = 1024,          /* vocabulary ids per partial result of sample_rows_* */
    FLEXDRAFT_CALIBRATED_CHUNK = 64, /* vocabulary ids per partial result of calibrated_sample_* */
    FLEXDRAFT_PARTIAL_FIELDS = 5,
    FLEXDRAFT_VOCAB_LIMIT = 1 << 20
};

#if defined(__cplusplus)
static_assert(sizeof(FlexdraftRowSampling) == 40, "mirrored in Rust");
static_assert(sizeof(FlexdraftRowStats) == 48, "mirrored in Rust");
static_assert(sizeof(FlexdraftLogitEdit) == 16, "mirrored in Rust");
static_assert(sizeof(FlexdraftRowEdits) == 24, "mirrored in Rust");
static_assert(sizeof(FlexdraftSampleParams) == 176, "mirrored in Rust");
#endif

/* Parameters of the acceptance kernels. Plain C; shapes in elements, row-major. */
#pragma once

#include "../sampling/params.h"

/* The acceptance rules. At temperature 0 every rule is FLEXDRAFT_RULE_MATCH. */
enum FlexdraftRule {
    FLEXDRAFT_RULE_MATCH = 0,     /* a draft token passes if it is the token that the target drew; greedy */
    FLEXDRAFT_RULE_REJECTION = 1, /* speculative sampling, arXiv 2211.17192 and 2302.01318 */
    FLEXDRAFT_RULE_BLOCK = 2      /* block verification, arXiv 2403.10444 */
};

/* One sequence of a verification. d_1 to d_v are its draft tokens. Row first_target + i of the target has p_i, the
 * distribution of the token after d_i, for i = 0 to v; row first_draft + j - 1 of the draft has q_j, the distribution
 * that d_j was drawn from. */
struct FlexdraftVerify {
    uint64_t seed;             /* of the request */
    uint64_t groups;           /* bit k: the pass has a mask group for accepted length k */
    int64_t position;          /* n, the position of candidate 0 */
    int32_t rule;              /* FlexdraftRule */
    int32_t drafts;            /* v, 0 to 63 */
    int32_t first_target;      /* row of p_0 */
    int32_t first_draft;       /* row of q_1; -1: q_j(d_j) = 1 for every j */
    int32_t first_token;       /* place of d_1 in `tokens` */
    int32_t first_draft_stats; /* row of the statistics of q_1; not read where first_draft is -1 */
};

/* The result of a verification. */
struct FlexdraftVerdict {
    int32_t accepted;      /* the accepted length a; -1: the sequence's rows do not exist, and nothing else is set */
    int32_t bonus;         /* the token at position n + a + 1 */
    float probability;     /* p_a(bonus), warped */
    int32_t group;         /* the rank of group a, which drafts next, among the pass's groups; -1: the pass lacks it */
    int64_t cached_length; /* n + a + 1: positions whose K and V stay */
};

/* The verification of a batch: acceptance and bonus tokens. */
struct FlexdraftAcceptParams {
    const struct FlexdraftVerify* sequences;      /* [batch] */
    const int32_t* tokens;                        /* [token_count] draft tokens */
    const void* target;                           /* [target_rows, logit_stride] logits, f32 or bf16 */
    const struct FlexdraftRowStats* target_stats; /* [target_rows] */
    /* [target_rows, FLEXDRAFT_PARTIAL_FIELDS, ceil(vocab / FLEXDRAFT_CHUNK)] the partial results that sample_rows_* left
     * of `target`; field 0 has the largest logit of each chunk; null: every id is read */
    const float* target_partials;
    const void* draft;                           /* [draft_rows, logit_stride] of the target's type; may be null */
    const struct FlexdraftRowStats* draft_stats; /* [draft_stats_rows]; may be null */
    float* sums;       /* [batch, 64, chunks] for block verification: sums of max(P_i p_i - q_(i+1), 0) */
    float* best;       /* [batch, chunks, 2] the best id of each chunk: its value in the race, and the bits of its id */
    uint32_t* arrived; /* [batch] zero before and after a launch */
    struct FlexdraftVerdict* verdicts; /* [batch] */
    int32_t* committed;                /* [batch, 64] d_1..d_a and the bonus token, then -1 */
    uint32_t* error;                   /* the device error word; may be null */
    int64_t logit_stride;              /* elements from a row of logits to the next: a multiple of 8, at least vocab */
    int32_t batch;
    int32_t vocab;
    int32_t chunks; /* ceil(vocab / FLEXDRAFT_ACCEPT_CHUNK) */
    int32_t target_rows;
    int32_t draft_rows;
    int32_t draft_stats_rows;
    int32_t token_count;
    int32_t unused;
};

/* A sequence that drafts from a pass: slots 1 to S - 1 of the mask group that its verdict names, S being the slots per
 * group. The rows of its groups follow each other: S rows per group in a pass, S - 1 in logits, where slot 0 has no
 * row. */
struct FlexdraftDraft {
    uint64_t groups;     /* bit k: the pass has a group for accepted length k; 0: its one group follows the verdict */
    int32_t sequence;    /* index of the sequence's verdict */
    int32_t first_slot;  /* the first row of the first group: of slot 0 in a pass, of slot 1 in logits */
    int32_t slots;       /* S, 1 to 64 */
    int32_t first_draft; /* the first of its S - 1 draft rows */
    int32_t in_logits;   /* 1: the groups are rows of the logits; 0: rows of the pass */
    int32_t unused;
};

/* The selection of the rows that draft, after a verification. */
struct FlexdraftSelectParams {
    const struct FlexdraftDraft* drafts;     /* [count] */
    const struct FlexdraftVerdict* verdicts; /* [batch] */
    int32_t* bonus;                          /* [count] the verdict's token; 0 without a verdict */
    int32_t* starts;                         /* [count] the position of c_0 of the next step */
    int32_t* sources;    /* [rows] a draft row's row of the pass, or of the logits; -1: no such group */
    int32_t* draft_rows; /* [rows] a draft row's row of the logits: its source there, or the draft row itself; or -1 */
    uint32_t* error;     /* the device error word; may be null */
    int32_t count;
    int32_t batch;
    int32_t rows;
    int32_t unused;
};

/* Moves the one group of every sequence of a drafting pass from the largest accepted length to the accepted length of
 * its verdict. */
struct FlexdraftFollowParams {
    const int32_t* sequences;                /* [batch] index of the verdict of each sequence of the pass */
    const struct FlexdraftVerdict* verdicts; /* [verdict_count] */
    const int32_t* start;                    /* [batch] as in FlexdraftPass */
    int32_t* first_group;                    /* [batch] as in FlexdraftPass; never becomes larger */
    uint32_t* error;                         /* the device error word; may be null */
    int32_t batch;
    int32_t verdict_count;
};

enum FlexdraftAcceptConstant {
    FLEXDRAFT_ACCEPT_CHUNK = 2048, /* ids of a CTA */
    FLEXDRAFT_MAX_DRAFTS = 63
};

#if defined(__cplusplus)
static_assert(sizeof(FlexdraftVerify) == 48, "mirrored in Rust");
static_assert(sizeof(FlexdraftVerdict) == 24, "mirrored in Rust");
static_assert(sizeof(FlexdraftAcceptParams) == 144, "mirrored in Rust");
static_assert(sizeof(FlexdraftDraft) == 32, "mirrored in Rust");
static_assert(sizeof(FlexdraftSelectParams) == 72, "mirrored in Rust");
static_assert(sizeof(FlexdraftFollowParams) == 48, "mirrored in Rust");
#endif

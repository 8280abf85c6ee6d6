/* Parameters of the acceptance kernels. Plain C; shapes in elements, row-major. */
#pragma once

#include "../sampling/params.h"

/* The acceptance rules. At temperature 0 each of them is FLEXDRAFT_RULE_MATCH. */
enum FlexdraftRule {
    FLEXDRAFT_RULE_MATCH = 0,     /* the target's own tokens, while the drafts are the same; greedy */
    FLEXDRAFT_RULE_REJECTION = 1, /* speculative sampling, arXiv 2211.17192 and 2302.01318 */
    FLEXDRAFT_RULE_BLOCK = 2      /* block verification, arXiv 2403.10444 */
};

/* One sequence of a verification. Row i of the target is p_i, i = 0..drafts, and tells of d_{i+1}; row j - 1
 * of the draft is q_j. */
struct FlexdraftVerify {
    uint64_t seed;             /* of the request */
    uint64_t groups;           /* bit k: the pass has laid out a mask group for accepted length k */
    int64_t position;          /* n, the position of candidate 0 */
    int32_t rule;              /* FlexdraftRule */
    int32_t drafts;            /* v, 0 to 63 */
    int32_t first_target;      /* row of p_0 */
    int32_t first_draft;       /* row of q_1; -1: every q_j is the point mass at d_j */
    int32_t first_token;       /* place of d_1 in `tokens` */
    int32_t first_draft_stats; /* row of the statistics of q_1; not read where first_draft is -1 */
};

/* What a verification found. */
struct FlexdraftVerdict {
    int32_t accepted;      /* a; -1: the sequence's rows do not exist, and nothing else is set */
    int32_t bonus;         /* the token at position n + a + 1 */
    float probability;     /* p_a(bonus), warped */
    int32_t group;         /* the rank of group a among the pass's groups, which drafts next; -1: not laid out */
    int64_t cached_length; /* n + a + 1: positions whose K and V stay */
};

struct FlexdraftAcceptParams {
    const struct FlexdraftVerify* sequences;      /* [batch] */
    const int32_t* tokens;                        /* [token_count] draft tokens */
    const void* target;                           /* [target_rows, logit_stride] logits, f32 or bf16 */
    const struct FlexdraftRowStats* target_stats; /* [target_rows] */
    /* [target_rows, FLEXDRAFT_PARTIAL_FIELDS, ceil(vocab / FLEXDRAFT_CHUNK)] what sample_rows_* found in the chunks of
     * `target`, field 0 their largest logits; null: every id is read */
    const float* target_partials;
    const void* draft;                           /* [draft_rows, logit_stride] of the target's type; may be null */
    const struct FlexdraftRowStats* draft_stats; /* [draft_stats_rows]; may be null */
    float* sums;                                 /* [batch, 64, chunks]: of max(P_i p_i - q_{i+1}, 0); block */
    float* best;                                 /* [batch, chunks, 2]: score and, in bits, token */
    uint32_t* arrived;                           /* [batch] zero before and after a launch */
    struct FlexdraftVerdict* verdicts;           /* [batch] */
    int32_t* committed;                          /* [batch, 64] d_1..d_a and the bonus token, then -1 */
    uint32_t* error;                             /* the device error word; may be null */
    int64_t logit_stride;                        /* a multiple of 8, at least vocab */
    int32_t batch;
    int32_t vocab;
    int32_t chunks; /* ceil(vocab / FLEXDRAFT_ACCEPT_CHUNK) */
    int32_t target_rows;
    int32_t draft_rows;
    int32_t draft_stats_rows;
    int32_t token_count;
    int32_t unused;
};

/* A sequence that drafts from a pass: slots 1..S of the group that its verdict names. The rows of its groups follow
 * each other: S rows a group in a pass, S - 1 in logits, where slot 0 has no row. */
struct FlexdraftDraft {
    uint64_t groups;     /* bit k: the pass has a group for accepted length k; 0: one, which follows the verdict */
    int32_t sequence;    /* which verdict is its */
    int32_t first_slot;  /* the first row of the first group: of slot 0 in a pass, of slot 1 in logits */
    int32_t slots;       /* S, 1 to 64 */
    int32_t first_draft; /* its first of the draft rows: S - 1 of them */
    int32_t in_logits;   /* 1: the groups are rows of the logits; 0: rows of the pass */
    int32_t unused;
};

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

/* Moves the one group of every sequence of a drafting pass from the largest accepted length that it was laid
 * out for to the one of its verdict. */
struct FlexdraftFollowParams {
    const int32_t* sequences;                /* [batch] which verdict is that of the pass's sequence */
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

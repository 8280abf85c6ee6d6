/* Parameters of the acceptance kernels. Plain C; shapes in elements, row-major. */
#pragma once

#include "../sampling/params.h"

/* The acceptance rules. At temperature 0 every rule is FLEXDRAFT_RULE_MATCH. */
enum FlexdraftRule {
    FLEXDRAFT_RULE_MATCH = 0,     /* rule `match`, and greedy: a draft token passes if the target drew it too */
    FLEXDRAFT_RULE_REJECTION = 1, /* rule `rejection`: speculative sampling, arXiv 2211.17192 and 2302.01318 */
    FLEXDRAFT_RULE_BLOCK = 2      /* rule `block`: block verification, arXiv 2403.10444 */
};

/* The values of FlexdraftVerify.first_draft that are not rows. */
enum FlexdraftDraftKind {
    FLEXDRAFT_DRAFT_CERTAIN = -1, /* the draft tokens are not drawn: q_j(d_j) = 1 for every j */
    FLEXDRAFT_DRAFT_CHAINED = -2  /* the draft has a chain: q_1 is the row first_draft_stats of the chosen ids */
};

/* One sequence whose draft tokens are verified. d_1 to d_v are its draft tokens. Row first_target + i of the target
 * has p_i, the distribution of the token after d_i, for i = 0 to v; row first_draft + j - 1 of the draft has q_j, the
 * distribution that d_j was drawn from. */
struct FlexdraftVerify {
    uint64_t seed;             /* seed of the request, the key of its random numbers */
    uint64_t groups;           /* accepted lengths that have a mask group in the pass: bit k for accepted length k */
    int64_t position;          /* n, the position of candidate 0, the bonus token of the step before */
    int32_t rule;              /* FlexdraftRule */
    int32_t drafts;            /* v, the number of draft tokens, 0 to 63 */
    int32_t first_target;      /* the row of the target's logits that gives p_0 */
    int32_t first_draft;       /* the row of the draft's logits that gives q_1, or a FlexdraftDraftKind */
    int32_t first_token;       /* the index of d_1 in `tokens` */
    int32_t first_draft_stats; /* the row of q_1 in the draft's statistics; not read if q_j(d_j) is 1 */
};

/* The result of verifying the draft tokens of one sequence. */
struct FlexdraftVerdict {
    /* a, the number of accepted draft tokens; -1: the sequence's rows do not exist, and no other field is set */
    int32_t accepted;
    int32_t bonus;     /* the bonus token, at position n + a + 1; after a fault, some id of the vocabulary */
    float probability; /* the probability p_a of the bonus token, after warping */
    /* the rank of mask group a, which makes the next draft, among the groups of the pass; -1: the pass has no such
     * group */
    int32_t group;
    int64_t cached_length; /* n + a + 1, the number of positions whose K and V stay in the cache */
    /* FlexdraftLogitsFault of the target's row a. After a fault, a is the first faulty row among the rows that the
     * rule reached: d_1 to d_a stand, and there is no bonus token */
    int32_t fault;
    int32_t unused;
};

/* The parameters of accept_*, which decides how many draft tokens of each sequence are accepted, and draws the bonus
 * tokens. */
struct FlexdraftAcceptParams {
    const struct FlexdraftVerify* sequences; /* the sequences to verify, [batch] */
    const int32_t* tokens;                   /* the draft tokens of all sequences, [token_count] */
    const void* target;                      /* the target's logits, [target_rows, logit_stride], f32, bf16 or f16 */
    const struct FlexdraftRowStats* target_stats; /* the statistics of the target's rows, [target_rows] */
    /* the partial results that sample_rows_* left of `target`, [target_rows, FLEXDRAFT_PARTIAL_FIELDS, ceil(vocab /
     * FLEXDRAFT_CHUNK)]; field 0 has the largest logit of each chunk; null: every id is read */
    const float* target_partials;
    const void* draft; /* the drafts' logits, [draft_rows, logit_stride], of the target's type; may be null */
    const struct FlexdraftRowStats* draft_stats; /* statistics of the drafts' rows, [draft_stats_rows]; may be null */
    /* the chosen ids of drafts with a chain, every other id has the logit -inf, [draft_stats_rows, draft_count]; null
     * without a chain */
    const int32_t* draft_ids;
    const float* draft_chosen; /* the chained logits of the chosen ids, [draft_stats_rows, draft_count] */
    /* workspace of block verification: the sums of max(P_i p_i - q_(i+1), 0), [batch, 64, chunks] */
    float* sums;
    /* workspace: the best id of each chunk, as its value in the race and the bits of the id, [batch, chunks, 2] */
    float* best;
    uint32_t* arrived; /* the number of CTAs that have finished a sequence, [batch]; zero before and after a launch */
    struct FlexdraftVerdict* verdicts; /* result: the verdict of each sequence, [batch] */
    /* result: d_1 to d_a, the bonus token unless there is a fault, then -1, [batch, 64] */
    int32_t* committed;
    uint32_t* error;      /* the device error word (FlexdraftError); may be null */
    int64_t logit_stride; /* elements from one row of logits to the next: a multiple of 8, at least vocab */
    int32_t batch;
    int32_t vocab;
    int32_t chunks; /* the number of chunks of the vocabulary, ceil(vocab / FLEXDRAFT_ACCEPT_CHUNK) */
    int32_t target_rows;
    int32_t draft_rows;
    int32_t draft_stats_rows;
    int32_t token_count;
    int32_t draft_count; /* K, the number of chosen ids per row, at most 32; 0 without a chain */
};

/* A sequence whose next draft comes from slots 1 to S - 1 of the mask group that its verdict names, S being the slots
 * per group. The rows of its groups follow each other: S rows per group in a pass, S - 1 in logits, where slot 0 has no
 * row. */
struct FlexdraftDraft {
    /* accepted lengths that have a mask group in the pass: bit k for accepted length k; 0: the pass has one group,
     * which follows the verdict */
    uint64_t groups;
    int32_t sequence; /* index of the sequence's verdict */
    /* the first row of the first mask group: of slot 0 in a pass, of slot 1 in logits; one less for slots that predict the
     * next position, where slots 0 to S - 2 draft */
    int32_t first_slot;
    int32_t slots;       /* S, the number of slots per mask group, 1 to 64 */
    int32_t first_draft; /* the first of the sequence's S - 1 draft rows */
    int32_t in_logits;   /* 1: the mask groups are rows of the logits; 0: rows of the pass */
    int32_t unused;
};

/* The parameters of select_drafts, which selects the rows that make the next drafts, after a verification. */
struct FlexdraftSelectParams {
    const struct FlexdraftDraft* drafts;     /* the sequences that draft, [count] */
    const struct FlexdraftVerdict* verdicts; /* the results of the verification, [batch] */
    int32_t* bonus;                          /* result: the bonus tokens, [count]; 0 without a verdict */
    int32_t* starts; /* result: the position of candidate 0 in the step that verifies the draft, [count] */
    /* result: the source of each draft row, a row of the pass or of the logits, [rows]; -1: no such group */
    int32_t* sources;
    /* result: the row of logits of each draft row, [rows]: its source if that is a row of logits, otherwise the draft
     * row itself; -1 without a source */
    int32_t* draft_rows;
    uint32_t* error; /* the device error word (FlexdraftError); may be null */
    int32_t count;
    int32_t batch;
    int32_t rows;
    int32_t unused;
};

/* Moves the one group of every sequence of a drafting pass from the largest accepted length to the accepted length of
 * its verdict. */
struct FlexdraftFollowParams {
    const int32_t* sequences;                /* the index of the verdict of each sequence of the pass, [batch] */
    const struct FlexdraftVerdict* verdicts; /* the results of a verification, [verdict_count] */
    const int32_t* start; /* the field of FlexdraftPass: n, the position of candidate 0 of each sequence, [batch] */
    /* the field of FlexdraftPass: the accepted length of each sequence's mask group, [batch]; never becomes larger */
    int32_t* first_group;
    uint32_t* error; /* the device error word (FlexdraftError); may be null */
    int32_t batch;
    int32_t verdict_count;
};

enum FlexdraftAcceptConstant {
    FLEXDRAFT_ACCEPT_CHUNK = 2048, /* vocabulary ids that a CTA of accept_* reads */
    FLEXDRAFT_MAX_DRAFTS = 63
};

#if defined(__cplusplus)
static_assert(sizeof(FlexdraftVerify) == 48, "mirrored in Rust");
static_assert(sizeof(FlexdraftVerdict) == 32, "mirrored in Rust");
static_assert(sizeof(FlexdraftAcceptParams) == 160, "mirrored in Rust");
static_assert(sizeof(FlexdraftDraft) == 32, "mirrored in Rust");
static_assert(sizeof(FlexdraftSelectParams) == 72, "mirrored in Rust");
static_assert(sizeof(FlexdraftFollowParams) == 48, "mirrored in Rust");
#endif

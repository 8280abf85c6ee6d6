// Generated from cuda/acceptance/params.h by the crate in bindings.

use super::common::*;
use super::sampling::*;

/// rule `match`, and greedy: a draft token passes if the target drew it too
pub const FLEXDRAFT_RULE_MATCH: FlexdraftRule = 0;
/// rule `rejection`: speculative sampling, arXiv 2211.17192 and 2302.01318
pub const FLEXDRAFT_RULE_REJECTION: FlexdraftRule = 1;
/// rule `block`: block verification, arXiv 2403.10444
pub const FLEXDRAFT_RULE_BLOCK: FlexdraftRule = 2;
/// The acceptance rules. At temperature 0 every rule is FLEXDRAFT_RULE_MATCH.
pub type FlexdraftRule = ::core::ffi::c_uint;
/// the draft tokens are not drawn: q_j(d_j) = 1 for every j
pub const FLEXDRAFT_DRAFT_CERTAIN: FlexdraftDraftKind = -1;
/// the draft has a chain: q_1 is the row first_draft_stats of the chosen ids
pub const FLEXDRAFT_DRAFT_CHAINED: FlexdraftDraftKind = -2;
/// The values of FlexdraftVerify.first_draft that are not rows.
pub type FlexdraftDraftKind = ::core::ffi::c_int;
/// One sequence whose draft tokens are verified. d_1 to d_v are its draft tokens. Row first_target + i of the target
/// has p_i, the distribution of the token after d_i, for i = 0 to v; row first_draft + j - 1 of the draft has q_j, the
/// distribution that d_j was drawn from.
#[repr(C)]
#[derive(Debug, Copy, Clone, PartialEq)]
pub struct FlexdraftVerify {
    /// seed of the request, the key of its random numbers
    pub seed: u64,
    /// accepted lengths that have a mask group in the pass: bit k for accepted length k
    pub groups: u64,
    /// n, the position of candidate 0, the bonus token of the step before
    pub position: i64,
    /// FlexdraftRule
    pub rule: i32,
    /// v, the number of draft tokens, 0 to 63
    pub drafts: i32,
    /// the row of the target's logits that gives p_0
    pub first_target: i32,
    /// the row of the draft's logits that gives q_1, or a FlexdraftDraftKind
    pub first_draft: i32,
    /// the index of d_1 in `tokens`
    pub first_token: i32,
    /// the row of q_1 in the draft's statistics; not read if q_j(d_j) is 1
    pub first_draft_stats: i32,
}
#[cfg(target_pointer_width = "64")]
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of FlexdraftVerify"][::core::mem::size_of::<FlexdraftVerify>() - 48usize];
    ["Alignment of FlexdraftVerify"][::core::mem::align_of::<FlexdraftVerify>() - 8usize];
    ["Offset of field: FlexdraftVerify::seed"][::core::mem::offset_of!(FlexdraftVerify, seed) - 0usize];
    ["Offset of field: FlexdraftVerify::groups"][::core::mem::offset_of!(FlexdraftVerify, groups) - 8usize];
    ["Offset of field: FlexdraftVerify::position"]
        [::core::mem::offset_of!(FlexdraftVerify, position) - 16usize];
    ["Offset of field: FlexdraftVerify::rule"][::core::mem::offset_of!(FlexdraftVerify, rule) - 24usize];
    ["Offset of field: FlexdraftVerify::drafts"][::core::mem::offset_of!(FlexdraftVerify, drafts) - 28usize];
    ["Offset of field: FlexdraftVerify::first_target"]
        [::core::mem::offset_of!(FlexdraftVerify, first_target) - 32usize];
    ["Offset of field: FlexdraftVerify::first_draft"]
        [::core::mem::offset_of!(FlexdraftVerify, first_draft) - 36usize];
    ["Offset of field: FlexdraftVerify::first_token"]
        [::core::mem::offset_of!(FlexdraftVerify, first_token) - 40usize];
    ["Offset of field: FlexdraftVerify::first_draft_stats"]
        [::core::mem::offset_of!(FlexdraftVerify, first_draft_stats) - 44usize];
};
/// The result of verifying the draft tokens of one sequence.
#[repr(C)]
#[derive(Debug, Copy, Clone, PartialEq)]
pub struct FlexdraftVerdict {
    /// a, the number of accepted draft tokens; -1: the sequence's rows do not exist, and no other field is set
    pub accepted: i32,
    /// the bonus token, at position n + a + 1; after a fault, some id of the vocabulary
    pub bonus: i32,
    /// the probability p_a of the bonus token, after warping
    pub probability: f32,
    /// the rank of mask group a, which makes the next draft, among the groups of the pass; -1: the pass has no such
    /// group
    pub group: i32,
    /// n + a + 1, the number of positions whose K and V stay in the cache
    pub cached_length: i64,
    /// FlexdraftLogitsFault of the target's row a. After a fault, a is the first faulty row among the rows that the
    /// rule reached: d_1 to d_a stand, and there is no bonus token
    pub fault: i32,
    pub unused: i32,
}
#[cfg(target_pointer_width = "64")]
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of FlexdraftVerdict"][::core::mem::size_of::<FlexdraftVerdict>() - 32usize];
    ["Alignment of FlexdraftVerdict"][::core::mem::align_of::<FlexdraftVerdict>() - 8usize];
    ["Offset of field: FlexdraftVerdict::accepted"]
        [::core::mem::offset_of!(FlexdraftVerdict, accepted) - 0usize];
    ["Offset of field: FlexdraftVerdict::bonus"][::core::mem::offset_of!(FlexdraftVerdict, bonus) - 4usize];
    ["Offset of field: FlexdraftVerdict::probability"]
        [::core::mem::offset_of!(FlexdraftVerdict, probability) - 8usize];
    ["Offset of field: FlexdraftVerdict::group"][::core::mem::offset_of!(FlexdraftVerdict, group) - 12usize];
    ["Offset of field: FlexdraftVerdict::cached_length"]
        [::core::mem::offset_of!(FlexdraftVerdict, cached_length) - 16usize];
    ["Offset of field: FlexdraftVerdict::fault"][::core::mem::offset_of!(FlexdraftVerdict, fault) - 24usize];
    ["Offset of field: FlexdraftVerdict::unused"]
        [::core::mem::offset_of!(FlexdraftVerdict, unused) - 28usize];
};
/// The parameters of accept_*, which decides how many draft tokens of each sequence are accepted, and draws the bonus
/// tokens.
#[repr(C)]
#[derive(Debug, Copy, Clone, PartialEq)]
pub struct FlexdraftAcceptParams {
    /// the sequences to verify, [batch]
    pub sequences: *const FlexdraftVerify,
    /// the draft tokens of all sequences, [token_count]
    pub tokens: *const i32,
    /// the target's logits, [target_rows, logit_stride], f32, bf16 or f16
    pub target: *const ::core::ffi::c_void,
    /// the statistics of the target's rows, [target_rows]
    pub target_stats: *const FlexdraftRowStats,
    /// the partial results that sample_rows_* left of `target`, [target_rows, FLEXDRAFT_PARTIAL_FIELDS, ceil(vocab /
    /// FLEXDRAFT_CHUNK)]; field 0 has the largest logit of each chunk; null: every id is read
    pub target_partials: *const f32,
    /// the drafts' logits, [draft_rows, logit_stride], of the target's type; may be null
    pub draft: *const ::core::ffi::c_void,
    /// statistics of the drafts' rows, [draft_stats_rows]; may be null
    pub draft_stats: *const FlexdraftRowStats,
    /// the chosen ids of drafts with a chain, every other id has the logit -inf, [draft_stats_rows, draft_count]; null
    /// without a chain
    pub draft_ids: *const i32,
    /// the chained logits of the chosen ids, [draft_stats_rows, draft_count]
    pub draft_chosen: *const f32,
    /// workspace of block verification: the sums of max(P_i p_i - q_(i+1), 0), [batch, 64, chunks]
    pub sums: *mut f32,
    /// workspace: the best id of each chunk, as its value in the race and the bits of the id, [batch, chunks, 2]
    pub best: *mut f32,
    /// the number of CTAs that have finished a sequence, [batch]; zero before and after a launch
    pub arrived: *mut u32,
    /// result: the verdict of each sequence, [batch]
    pub verdicts: *mut FlexdraftVerdict,
    /// result: d_1 to d_a, the bonus token unless there is a fault, then -1, [batch, 64]
    pub committed: *mut i32,
    /// the device error word (FlexdraftError); may be null
    pub error: *mut u32,
    /// elements from one row of logits to the next: a multiple of 8, at least vocab
    pub logit_stride: i64,
    pub batch: i32,
    pub vocab: i32,
    /// the number of chunks of the vocabulary, ceil(vocab / FLEXDRAFT_ACCEPT_CHUNK)
    pub chunks: i32,
    pub target_rows: i32,
    pub draft_rows: i32,
    pub draft_stats_rows: i32,
    pub token_count: i32,
    /// K, the number of chosen ids per row, at most 32; 0 without a chain
    pub draft_count: i32,
}
#[cfg(target_pointer_width = "64")]
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of FlexdraftAcceptParams"][::core::mem::size_of::<FlexdraftAcceptParams>() - 160usize];
    ["Alignment of FlexdraftAcceptParams"][::core::mem::align_of::<FlexdraftAcceptParams>() - 8usize];
    ["Offset of field: FlexdraftAcceptParams::sequences"]
        [::core::mem::offset_of!(FlexdraftAcceptParams, sequences) - 0usize];
    ["Offset of field: FlexdraftAcceptParams::tokens"]
        [::core::mem::offset_of!(FlexdraftAcceptParams, tokens) - 8usize];
    ["Offset of field: FlexdraftAcceptParams::target"]
        [::core::mem::offset_of!(FlexdraftAcceptParams, target) - 16usize];
    ["Offset of field: FlexdraftAcceptParams::target_stats"]
        [::core::mem::offset_of!(FlexdraftAcceptParams, target_stats) - 24usize];
    ["Offset of field: FlexdraftAcceptParams::target_partials"]
        [::core::mem::offset_of!(FlexdraftAcceptParams, target_partials) - 32usize];
    ["Offset of field: FlexdraftAcceptParams::draft"]
        [::core::mem::offset_of!(FlexdraftAcceptParams, draft) - 40usize];
    ["Offset of field: FlexdraftAcceptParams::draft_stats"]
        [::core::mem::offset_of!(FlexdraftAcceptParams, draft_stats) - 48usize];
    ["Offset of field: FlexdraftAcceptParams::draft_ids"]
        [::core::mem::offset_of!(FlexdraftAcceptParams, draft_ids) - 56usize];
    ["Offset of field: FlexdraftAcceptParams::draft_chosen"]
        [::core::mem::offset_of!(FlexdraftAcceptParams, draft_chosen) - 64usize];
    ["Offset of field: FlexdraftAcceptParams::sums"]
        [::core::mem::offset_of!(FlexdraftAcceptParams, sums) - 72usize];
    ["Offset of field: FlexdraftAcceptParams::best"]
        [::core::mem::offset_of!(FlexdraftAcceptParams, best) - 80usize];
    ["Offset of field: FlexdraftAcceptParams::arrived"]
        [::core::mem::offset_of!(FlexdraftAcceptParams, arrived) - 88usize];
    ["Offset of field: FlexdraftAcceptParams::verdicts"]
        [::core::mem::offset_of!(FlexdraftAcceptParams, verdicts) - 96usize];
    ["Offset of field: FlexdraftAcceptParams::committed"]
        [::core::mem::offset_of!(FlexdraftAcceptParams, committed) - 104usize];
    ["Offset of field: FlexdraftAcceptParams::error"]
        [::core::mem::offset_of!(FlexdraftAcceptParams, error) - 112usize];
    ["Offset of field: FlexdraftAcceptParams::logit_stride"]
        [::core::mem::offset_of!(FlexdraftAcceptParams, logit_stride) - 120usize];
    ["Offset of field: FlexdraftAcceptParams::batch"]
        [::core::mem::offset_of!(FlexdraftAcceptParams, batch) - 128usize];
    ["Offset of field: FlexdraftAcceptParams::vocab"]
        [::core::mem::offset_of!(FlexdraftAcceptParams, vocab) - 132usize];
    ["Offset of field: FlexdraftAcceptParams::chunks"]
        [::core::mem::offset_of!(FlexdraftAcceptParams, chunks) - 136usize];
    ["Offset of field: FlexdraftAcceptParams::target_rows"]
        [::core::mem::offset_of!(FlexdraftAcceptParams, target_rows) - 140usize];
    ["Offset of field: FlexdraftAcceptParams::draft_rows"]
        [::core::mem::offset_of!(FlexdraftAcceptParams, draft_rows) - 144usize];
    ["Offset of field: FlexdraftAcceptParams::draft_stats_rows"]
        [::core::mem::offset_of!(FlexdraftAcceptParams, draft_stats_rows) - 148usize];
    ["Offset of field: FlexdraftAcceptParams::token_count"]
        [::core::mem::offset_of!(FlexdraftAcceptParams, token_count) - 152usize];
    ["Offset of field: FlexdraftAcceptParams::draft_count"]
        [::core::mem::offset_of!(FlexdraftAcceptParams, draft_count) - 156usize];
};
/// A sequence whose next draft comes from slots 1 to S - 1 of the mask group that its verdict names, S being the slots
/// per group. The rows of its groups follow each other: S rows per group in a pass, S - 1 in logits, where slot 0 has no
/// row.
#[repr(C)]
#[derive(Debug, Copy, Clone, PartialEq)]
pub struct FlexdraftDraft {
    /// accepted lengths that have a mask group in the pass: bit k for accepted length k; 0: the pass has one group,
    /// which follows the verdict
    pub groups: u64,
    /// index of the sequence's verdict
    pub sequence: i32,
    /// the first row of the first mask group: of slot 0 in a pass, of slot 1 in logits; one less for slots that predict the
    /// next position, where slots 0 to S - 2 draft
    pub first_slot: i32,
    /// S, the number of slots per mask group, 1 to 64
    pub slots: i32,
    /// the first of the sequence's S - 1 draft rows
    pub first_draft: i32,
    /// 1: the mask groups are rows of the logits; 0: rows of the pass
    pub in_logits: i32,
    pub unused: i32,
}
#[cfg(target_pointer_width = "64")]
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of FlexdraftDraft"][::core::mem::size_of::<FlexdraftDraft>() - 32usize];
    ["Alignment of FlexdraftDraft"][::core::mem::align_of::<FlexdraftDraft>() - 8usize];
    ["Offset of field: FlexdraftDraft::groups"][::core::mem::offset_of!(FlexdraftDraft, groups) - 0usize];
    ["Offset of field: FlexdraftDraft::sequence"][::core::mem::offset_of!(FlexdraftDraft, sequence) - 8usize];
    ["Offset of field: FlexdraftDraft::first_slot"]
        [::core::mem::offset_of!(FlexdraftDraft, first_slot) - 12usize];
    ["Offset of field: FlexdraftDraft::slots"][::core::mem::offset_of!(FlexdraftDraft, slots) - 16usize];
    ["Offset of field: FlexdraftDraft::first_draft"]
        [::core::mem::offset_of!(FlexdraftDraft, first_draft) - 20usize];
    ["Offset of field: FlexdraftDraft::in_logits"]
        [::core::mem::offset_of!(FlexdraftDraft, in_logits) - 24usize];
    ["Offset of field: FlexdraftDraft::unused"][::core::mem::offset_of!(FlexdraftDraft, unused) - 28usize];
};
/// The parameters of select_drafts, which selects the rows that make the next drafts, after a verification.
#[repr(C)]
#[derive(Debug, Copy, Clone, PartialEq)]
pub struct FlexdraftSelectParams {
    /// the sequences that draft, [count]
    pub drafts: *const FlexdraftDraft,
    /// the results of the verification, [batch]
    pub verdicts: *const FlexdraftVerdict,
    /// result: the bonus tokens, [count]; 0 without a verdict
    pub bonus: *mut i32,
    /// result: the position of candidate 0 in the step that verifies the draft, [count]
    pub starts: *mut i32,
    /// result: the source of each draft row, a row of the pass or of the logits, [rows]; -1: no such group
    pub sources: *mut i32,
    /// result: the row of logits of each draft row, [rows]: its source if that is a row of logits, otherwise the draft
    /// row itself; -1 without a source
    pub draft_rows: *mut i32,
    /// the device error word (FlexdraftError); may be null
    pub error: *mut u32,
    pub count: i32,
    pub batch: i32,
    pub rows: i32,
    pub unused: i32,
}
#[cfg(target_pointer_width = "64")]
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of FlexdraftSelectParams"][::core::mem::size_of::<FlexdraftSelectParams>() - 72usize];
    ["Alignment of FlexdraftSelectParams"][::core::mem::align_of::<FlexdraftSelectParams>() - 8usize];
    ["Offset of field: FlexdraftSelectParams::drafts"]
        [::core::mem::offset_of!(FlexdraftSelectParams, drafts) - 0usize];
    ["Offset of field: FlexdraftSelectParams::verdicts"]
        [::core::mem::offset_of!(FlexdraftSelectParams, verdicts) - 8usize];
    ["Offset of field: FlexdraftSelectParams::bonus"]
        [::core::mem::offset_of!(FlexdraftSelectParams, bonus) - 16usize];
    ["Offset of field: FlexdraftSelectParams::starts"]
        [::core::mem::offset_of!(FlexdraftSelectParams, starts) - 24usize];
    ["Offset of field: FlexdraftSelectParams::sources"]
        [::core::mem::offset_of!(FlexdraftSelectParams, sources) - 32usize];
    ["Offset of field: FlexdraftSelectParams::draft_rows"]
        [::core::mem::offset_of!(FlexdraftSelectParams, draft_rows) - 40usize];
    ["Offset of field: FlexdraftSelectParams::error"]
        [::core::mem::offset_of!(FlexdraftSelectParams, error) - 48usize];
    ["Offset of field: FlexdraftSelectParams::count"]
        [::core::mem::offset_of!(FlexdraftSelectParams, count) - 56usize];
    ["Offset of field: FlexdraftSelectParams::batch"]
        [::core::mem::offset_of!(FlexdraftSelectParams, batch) - 60usize];
    ["Offset of field: FlexdraftSelectParams::rows"]
        [::core::mem::offset_of!(FlexdraftSelectParams, rows) - 64usize];
    ["Offset of field: FlexdraftSelectParams::unused"]
        [::core::mem::offset_of!(FlexdraftSelectParams, unused) - 68usize];
};
/// Moves the one group of every sequence of a drafting pass from the largest accepted length to the accepted length of
/// its verdict.
#[repr(C)]
#[derive(Debug, Copy, Clone, PartialEq)]
pub struct FlexdraftFollowParams {
    /// the index of the verdict of each sequence of the pass, [batch]
    pub sequences: *const i32,
    /// the results of a verification, [verdict_count]
    pub verdicts: *const FlexdraftVerdict,
    /// the field of FlexdraftPass: n, the position of candidate 0 of each sequence, [batch]
    pub start: *const i32,
    /// the field of FlexdraftPass: the accepted length of each sequence's mask group, [batch]; never becomes larger
    pub first_group: *mut i32,
    /// the device error word (FlexdraftError); may be null
    pub error: *mut u32,
    pub batch: i32,
    pub verdict_count: i32,
}
#[cfg(target_pointer_width = "64")]
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of FlexdraftFollowParams"][::core::mem::size_of::<FlexdraftFollowParams>() - 48usize];
    ["Alignment of FlexdraftFollowParams"][::core::mem::align_of::<FlexdraftFollowParams>() - 8usize];
    ["Offset of field: FlexdraftFollowParams::sequences"]
        [::core::mem::offset_of!(FlexdraftFollowParams, sequences) - 0usize];
    ["Offset of field: FlexdraftFollowParams::verdicts"]
        [::core::mem::offset_of!(FlexdraftFollowParams, verdicts) - 8usize];
    ["Offset of field: FlexdraftFollowParams::start"]
        [::core::mem::offset_of!(FlexdraftFollowParams, start) - 16usize];
    ["Offset of field: FlexdraftFollowParams::first_group"]
        [::core::mem::offset_of!(FlexdraftFollowParams, first_group) - 24usize];
    ["Offset of field: FlexdraftFollowParams::error"]
        [::core::mem::offset_of!(FlexdraftFollowParams, error) - 32usize];
    ["Offset of field: FlexdraftFollowParams::batch"]
        [::core::mem::offset_of!(FlexdraftFollowParams, batch) - 40usize];
    ["Offset of field: FlexdraftFollowParams::verdict_count"]
        [::core::mem::offset_of!(FlexdraftFollowParams, verdict_count) - 44usize];
};
/// vocabulary ids that a CTA of accept_* reads
pub const FLEXDRAFT_ACCEPT_CHUNK: FlexdraftAcceptConstant = 2048;
pub const FLEXDRAFT_MAX_DRAFTS: FlexdraftAcceptConstant = 63;
pub type FlexdraftAcceptConstant = ::core::ffi::c_uint;

// Generated from cuda/acceptance/params.h by the crate in bindings.

use super::common::*;
use super::sampling::*;

/// a draft token passes if it is the token that the target drew; greedy
pub const FLEXDRAFT_RULE_MATCH: FlexdraftRule = 0;
/// speculative sampling, arXiv 2211.17192 and 2302.01318
pub const FLEXDRAFT_RULE_REJECTION: FlexdraftRule = 1;
/// block verification, arXiv 2403.10444
pub const FLEXDRAFT_RULE_BLOCK: FlexdraftRule = 2;
/// The acceptance rules. At temperature 0 every rule is FLEXDRAFT_RULE_MATCH.
pub type FlexdraftRule = ::core::ffi::c_uint;
/// One sequence of a verification. d_1 to d_v are its draft tokens. Row first_target + i of the target has p_i, the
/// distribution of the token after d_i, for i = 0 to v; row first_draft + j - 1 of the draft has q_j, the distribution
/// that d_j was drawn from.
#[repr(C)]
#[derive(Debug, Copy, Clone, PartialEq)]
pub struct FlexdraftVerify {
    /// of the request
    pub seed: u64,
    /// bit k: the pass has a mask group for accepted length k
    pub groups: u64,
    /// n, the position of candidate 0
    pub position: i64,
    /// FlexdraftRule
    pub rule: i32,
    /// v, 0 to 63
    pub drafts: i32,
    /// row of p_0
    pub first_target: i32,
    /// row of q_1; -1: q_j(d_j) = 1 for every j
    pub first_draft: i32,
    /// place of d_1 in `tokens`
    pub first_token: i32,
    /// row of the statistics of q_1; not read where first_draft is -1
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
/// The result of a verification.
#[repr(C)]
#[derive(Debug, Copy, Clone, PartialEq)]
pub struct FlexdraftVerdict {
    /// the accepted length a; -1: the sequence's rows do not exist, and nothing else is set
    pub accepted: i32,
    /// the token at position n + a + 1
    pub bonus: i32,
    /// p_a(bonus), warped
    pub probability: f32,
    /// the rank of group a, which drafts next, among the pass's groups; -1: the pass lacks it
    pub group: i32,
    /// n + a + 1: positions whose K and V stay
    pub cached_length: i64,
}
#[cfg(target_pointer_width = "64")]
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of FlexdraftVerdict"][::core::mem::size_of::<FlexdraftVerdict>() - 24usize];
    ["Alignment of FlexdraftVerdict"][::core::mem::align_of::<FlexdraftVerdict>() - 8usize];
    ["Offset of field: FlexdraftVerdict::accepted"]
        [::core::mem::offset_of!(FlexdraftVerdict, accepted) - 0usize];
    ["Offset of field: FlexdraftVerdict::bonus"][::core::mem::offset_of!(FlexdraftVerdict, bonus) - 4usize];
    ["Offset of field: FlexdraftVerdict::probability"]
        [::core::mem::offset_of!(FlexdraftVerdict, probability) - 8usize];
    ["Offset of field: FlexdraftVerdict::group"][::core::mem::offset_of!(FlexdraftVerdict, group) - 12usize];
    ["Offset of field: FlexdraftVerdict::cached_length"]
        [::core::mem::offset_of!(FlexdraftVerdict, cached_length) - 16usize];
};
/// The verification of a batch: acceptance and bonus tokens.
#[repr(C)]
#[derive(Debug, Copy, Clone, PartialEq)]
pub struct FlexdraftAcceptParams {
    /// [batch]
    pub sequences: *const FlexdraftVerify,
    /// [token_count] draft tokens
    pub tokens: *const i32,
    /// [target_rows, logit_stride] logits, f32 or bf16
    pub target: *const ::core::ffi::c_void,
    /// [target_rows]
    pub target_stats: *const FlexdraftRowStats,
    /// [target_rows, FLEXDRAFT_PARTIAL_FIELDS, ceil(vocab / FLEXDRAFT_CHUNK)] the partial results that sample_rows_* left
    /// of `target`; field 0 has the largest logit of each chunk; null: every id is read
    pub target_partials: *const f32,
    /// [draft_rows, logit_stride] of the target's type; may be null
    pub draft: *const ::core::ffi::c_void,
    /// [draft_stats_rows]; may be null
    pub draft_stats: *const FlexdraftRowStats,
    /// [batch, 64, chunks] for block verification: sums of max(P_i p_i - q_(i+1), 0)
    pub sums: *mut f32,
    /// [batch, chunks, 2] the best id of each chunk: its value in the race, and the bits of its id
    pub best: *mut f32,
    /// [batch] zero before and after a launch
    pub arrived: *mut u32,
    /// [batch]
    pub verdicts: *mut FlexdraftVerdict,
    /// [batch, 64] d_1..d_a and the bonus token, then -1
    pub committed: *mut i32,
    /// the device error word; may be null
    pub error: *mut u32,
    /// elements from a row of logits to the next: a multiple of 8, at least vocab
    pub logit_stride: i64,
    pub batch: i32,
    pub vocab: i32,
    /// ceil(vocab / FLEXDRAFT_ACCEPT_CHUNK)
    pub chunks: i32,
    pub target_rows: i32,
    pub draft_rows: i32,
    pub draft_stats_rows: i32,
    pub token_count: i32,
    pub unused: i32,
}
#[cfg(target_pointer_width = "64")]
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of FlexdraftAcceptParams"][::core::mem::size_of::<FlexdraftAcceptParams>() - 144usize];
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
    ["Offset of field: FlexdraftAcceptParams::sums"]
        [::core::mem::offset_of!(FlexdraftAcceptParams, sums) - 56usize];
    ["Offset of field: FlexdraftAcceptParams::best"]
        [::core::mem::offset_of!(FlexdraftAcceptParams, best) - 64usize];
    ["Offset of field: FlexdraftAcceptParams::arrived"]
        [::core::mem::offset_of!(FlexdraftAcceptParams, arrived) - 72usize];
    ["Offset of field: FlexdraftAcceptParams::verdicts"]
        [::core::mem::offset_of!(FlexdraftAcceptParams, verdicts) - 80usize];
    ["Offset of field: FlexdraftAcceptParams::committed"]
        [::core::mem::offset_of!(FlexdraftAcceptParams, committed) - 88usize];
    ["Offset of field: FlexdraftAcceptParams::error"]
        [::core::mem::offset_of!(FlexdraftAcceptParams, error) - 96usize];
    ["Offset of field: FlexdraftAcceptParams::logit_stride"]
        [::core::mem::offset_of!(FlexdraftAcceptParams, logit_stride) - 104usize];
    ["Offset of field: FlexdraftAcceptParams::batch"]
        [::core::mem::offset_of!(FlexdraftAcceptParams, batch) - 112usize];
    ["Offset of field: FlexdraftAcceptParams::vocab"]
        [::core::mem::offset_of!(FlexdraftAcceptParams, vocab) - 116usize];
    ["Offset of field: FlexdraftAcceptParams::chunks"]
        [::core::mem::offset_of!(FlexdraftAcceptParams, chunks) - 120usize];
    ["Offset of field: FlexdraftAcceptParams::target_rows"]
        [::core::mem::offset_of!(FlexdraftAcceptParams, target_rows) - 124usize];
    ["Offset of field: FlexdraftAcceptParams::draft_rows"]
        [::core::mem::offset_of!(FlexdraftAcceptParams, draft_rows) - 128usize];
    ["Offset of field: FlexdraftAcceptParams::draft_stats_rows"]
        [::core::mem::offset_of!(FlexdraftAcceptParams, draft_stats_rows) - 132usize];
    ["Offset of field: FlexdraftAcceptParams::token_count"]
        [::core::mem::offset_of!(FlexdraftAcceptParams, token_count) - 136usize];
    ["Offset of field: FlexdraftAcceptParams::unused"]
        [::core::mem::offset_of!(FlexdraftAcceptParams, unused) - 140usize];
};
/// A sequence that drafts from a pass: slots 1 to S - 1 of the mask group that its verdict names, S being the slots per
/// group. The rows of its groups follow each other: S rows per group in a pass, S - 1 in logits, where slot 0 has no
/// row.
#[repr(C)]
#[derive(Debug, Copy, Clone, PartialEq)]
pub struct FlexdraftDraft {
    /// bit k: the pass has a group for accepted length k; 0: its one group follows the verdict
    pub groups: u64,
    /// index of the sequence's verdict
    pub sequence: i32,
    /// the first row of the first group: of slot 0 in a pass, of slot 1 in logits
    pub first_slot: i32,
    /// S, 1 to 64
    pub slots: i32,
    /// the first of its S - 1 draft rows
    pub first_draft: i32,
    /// 1: the groups are rows of the logits; 0: rows of the pass
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
/// The selection of the rows that draft, after a verification.
#[repr(C)]
#[derive(Debug, Copy, Clone, PartialEq)]
pub struct FlexdraftSelectParams {
    /// [count]
    pub drafts: *const FlexdraftDraft,
    /// [batch]
    pub verdicts: *const FlexdraftVerdict,
    /// [count] the verdict's token; 0 without a verdict
    pub bonus: *mut i32,
    /// [count] the position of c_0 of the next step
    pub starts: *mut i32,
    /// [rows] a draft row's row of the pass, or of the logits; -1: no such group
    pub sources: *mut i32,
    /// [rows] a draft row's row of the logits: its source there, or the draft row itself; or -1
    pub draft_rows: *mut i32,
    /// the device error word; may be null
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
    /// [batch] index of the verdict of each sequence of the pass
    pub sequences: *const i32,
    /// [verdict_count]
    pub verdicts: *const FlexdraftVerdict,
    /// [batch] as in FlexdraftPass
    pub start: *const i32,
    /// [batch] as in FlexdraftPass; never becomes larger
    pub first_group: *mut i32,
    /// the device error word; may be null
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
/// ids of a CTA
pub const FLEXDRAFT_ACCEPT_CHUNK: FlexdraftAcceptConstant = 2048;
pub const FLEXDRAFT_MAX_DRAFTS: FlexdraftAcceptConstant = 63;
pub type FlexdraftAcceptConstant = ::core::ffi::c_uint;

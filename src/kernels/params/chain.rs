// Generated from cuda/chain/params.h by the crate in bindings.

use super::acceptance::*;
use super::common::*;
use super::sampling::*;

/// The parameters of chain_choose_*, which chooses C_j, the ids of the largest logits, for each draft row.
#[repr(C)]
#[derive(Debug, Copy, Clone, PartialEq)]
pub struct FlexdraftChooseParams {
    /// the calibrated logits, [logit_rows, logit_stride], f32, bf16 or f16
    pub logits: *const ::core::ffi::c_void,
    /// the index in `logits` of each row, [rows]; -1: padding, with the ids 0 to count - 1 and logits of -inf; null: row r
    /// has the logits r
    pub logit_index: *const i32,
    /// the partial results that sampling left of the rows, [rows, FLEXDRAFT_PARTIAL_FIELDS, chunks]; field 0 has the
    /// largest logit of each chunk
    pub partials: *const f32,
    /// result: the chosen ids in descending order of their logits, [rows, count]
    pub ids: *mut i32,
    /// result: l_j, the logits of the chosen ids; NaN becomes -inf, [rows, count]
    pub chosen: *mut f32,
    /// the device error word (FlexdraftError); may be null
    pub error: *mut u32,
    /// elements from one row of logits to the next: a multiple of 8, at least vocab
    pub logit_stride: i64,
    pub rows: i32,
    pub logit_rows: i32,
    pub vocab: i32,
    /// number of chunks per row: vocab / chunk_ids, rounded up
    pub chunks: i32,
    /// vocabulary ids per chunk: FLEXDRAFT_CHUNK or FLEXDRAFT_CALIBRATED_CHUNK
    pub chunk_ids: i32,
    /// K, the number of ids chosen per row: 1 to FLEXDRAFT_CHAIN_LIMIT, at most vocab
    pub count: i32,
}
#[cfg(target_pointer_width = "64")]
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of FlexdraftChooseParams"][::core::mem::size_of::<FlexdraftChooseParams>() - 80usize];
    ["Alignment of FlexdraftChooseParams"][::core::mem::align_of::<FlexdraftChooseParams>() - 8usize];
    ["Offset of field: FlexdraftChooseParams::logits"]
        [::core::mem::offset_of!(FlexdraftChooseParams, logits) - 0usize];
    ["Offset of field: FlexdraftChooseParams::logit_index"]
        [::core::mem::offset_of!(FlexdraftChooseParams, logit_index) - 8usize];
    ["Offset of field: FlexdraftChooseParams::partials"]
        [::core::mem::offset_of!(FlexdraftChooseParams, partials) - 16usize];
    ["Offset of field: FlexdraftChooseParams::ids"]
        [::core::mem::offset_of!(FlexdraftChooseParams, ids) - 24usize];
    ["Offset of field: FlexdraftChooseParams::chosen"]
        [::core::mem::offset_of!(FlexdraftChooseParams, chosen) - 32usize];
    ["Offset of field: FlexdraftChooseParams::error"]
        [::core::mem::offset_of!(FlexdraftChooseParams, error) - 40usize];
    ["Offset of field: FlexdraftChooseParams::logit_stride"]
        [::core::mem::offset_of!(FlexdraftChooseParams, logit_stride) - 48usize];
    ["Offset of field: FlexdraftChooseParams::rows"]
        [::core::mem::offset_of!(FlexdraftChooseParams, rows) - 56usize];
    ["Offset of field: FlexdraftChooseParams::logit_rows"]
        [::core::mem::offset_of!(FlexdraftChooseParams, logit_rows) - 60usize];
    ["Offset of field: FlexdraftChooseParams::vocab"]
        [::core::mem::offset_of!(FlexdraftChooseParams, vocab) - 64usize];
    ["Offset of field: FlexdraftChooseParams::chunks"]
        [::core::mem::offset_of!(FlexdraftChooseParams, chunks) - 68usize];
    ["Offset of field: FlexdraftChooseParams::chunk_ids"]
        [::core::mem::offset_of!(FlexdraftChooseParams, chunk_ids) - 72usize];
    ["Offset of field: FlexdraftChooseParams::count"]
        [::core::mem::offset_of!(FlexdraftChooseParams, count) - 76usize];
};
/// The parameters of chain_score_*, which computes the scores of all pairs of neighbouring tokens as dot products of
/// factors: entry [a][b] of a row's table is the score of its id b after id a of the row before.
#[repr(C)]
#[derive(Debug, Copy, Clone, PartialEq)]
pub struct FlexdraftChainScoreParams {
    /// the factors of the tokens before: of the bonus token of each draft, then of each row's chosen ids,
    /// [drafts + rows * count, before_stride]
    pub before: *const f32,
    /// the factors of the chosen ids, [rows * count, after_stride], f32, bf16 or f16
    pub after: *const ::core::ffi::c_void,
    /// the draft of each row, [rows]; the rows of a draft follow each other
    pub owners: *const i32,
    /// result: the scores, [rows, count, count]; in the first row of a draft, only entries [0][b] are written, the scores
    /// after the bonus token
    pub scores: *mut f32,
    /// the device error word (FlexdraftError); may be null
    pub error: *mut u32,
    /// elements from one factor to the next: a multiple of 8, at least rank
    pub before_stride: i64,
    /// as before_stride
    pub after_stride: i64,
    pub rows: i32,
    pub drafts: i32,
    /// K, as in FlexdraftChooseParams
    pub count: i32,
    /// elements per factor
    pub rank: i32,
}
#[cfg(target_pointer_width = "64")]
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of FlexdraftChainScoreParams"][::core::mem::size_of::<FlexdraftChainScoreParams>() - 72usize];
    ["Alignment of FlexdraftChainScoreParams"][::core::mem::align_of::<FlexdraftChainScoreParams>() - 8usize];
    ["Offset of field: FlexdraftChainScoreParams::before"]
        [::core::mem::offset_of!(FlexdraftChainScoreParams, before) - 0usize];
    ["Offset of field: FlexdraftChainScoreParams::after"]
        [::core::mem::offset_of!(FlexdraftChainScoreParams, after) - 8usize];
    ["Offset of field: FlexdraftChainScoreParams::owners"]
        [::core::mem::offset_of!(FlexdraftChainScoreParams, owners) - 16usize];
    ["Offset of field: FlexdraftChainScoreParams::scores"]
        [::core::mem::offset_of!(FlexdraftChainScoreParams, scores) - 24usize];
    ["Offset of field: FlexdraftChainScoreParams::error"]
        [::core::mem::offset_of!(FlexdraftChainScoreParams, error) - 32usize];
    ["Offset of field: FlexdraftChainScoreParams::before_stride"]
        [::core::mem::offset_of!(FlexdraftChainScoreParams, before_stride) - 40usize];
    ["Offset of field: FlexdraftChainScoreParams::after_stride"]
        [::core::mem::offset_of!(FlexdraftChainScoreParams, after_stride) - 48usize];
    ["Offset of field: FlexdraftChainScoreParams::rows"]
        [::core::mem::offset_of!(FlexdraftChainScoreParams, rows) - 56usize];
    ["Offset of field: FlexdraftChainScoreParams::drafts"]
        [::core::mem::offset_of!(FlexdraftChainScoreParams, drafts) - 60usize];
    ["Offset of field: FlexdraftChainScoreParams::count"]
        [::core::mem::offset_of!(FlexdraftChainScoreParams, count) - 64usize];
    ["Offset of field: FlexdraftChainScoreParams::rank"]
        [::core::mem::offset_of!(FlexdraftChainScoreParams, rank) - 68usize];
};
/// The parameters of chain_walk, which draws the tokens of each draft row by row.
#[repr(C)]
#[derive(Debug, Copy, Clone, PartialEq)]
pub struct FlexdraftWalkParams {
    /// the drafts, [draft_count]
    pub drafts: *const FlexdraftDraft,
    /// -1 for padding rows, whose stats become zero, [rows]; may be null
    pub logit_index: *const i32,
    /// how each row is warped and drawn from, [rows]
    pub sampling: *const FlexdraftRowSampling,
    /// the positions from which FlexdraftRowSampling.position counts, [sequences]; may be null
    pub starts: *const i32,
    /// C_j: the chosen ids of each row, [rows, count]
    pub ids: *const i32,
    /// the scores of pairs of neighbouring tokens, [rows, count, count]
    pub scores: *const f32,
    /// the logits l_j of the chosen ids, replaced by the chained logits s_j, [rows, count]
    pub chosen: *mut f32,
    /// result: the statistics of each row of logits that are s_j in C_j and -inf elsewhere, [rows]
    pub stats: *mut FlexdraftRowStats,
    /// the device error word (FlexdraftError); may be null
    pub error: *mut u32,
    pub draft_count: i32,
    pub rows: i32,
    /// K, as in FlexdraftChooseParams
    pub count: i32,
    pub sequences: i32,
}
#[cfg(target_pointer_width = "64")]
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of FlexdraftWalkParams"][::core::mem::size_of::<FlexdraftWalkParams>() - 88usize];
    ["Alignment of FlexdraftWalkParams"][::core::mem::align_of::<FlexdraftWalkParams>() - 8usize];
    ["Offset of field: FlexdraftWalkParams::drafts"]
        [::core::mem::offset_of!(FlexdraftWalkParams, drafts) - 0usize];
    ["Offset of field: FlexdraftWalkParams::logit_index"]
        [::core::mem::offset_of!(FlexdraftWalkParams, logit_index) - 8usize];
    ["Offset of field: FlexdraftWalkParams::sampling"]
        [::core::mem::offset_of!(FlexdraftWalkParams, sampling) - 16usize];
    ["Offset of field: FlexdraftWalkParams::starts"]
        [::core::mem::offset_of!(FlexdraftWalkParams, starts) - 24usize];
    ["Offset of field: FlexdraftWalkParams::ids"]
        [::core::mem::offset_of!(FlexdraftWalkParams, ids) - 32usize];
    ["Offset of field: FlexdraftWalkParams::scores"]
        [::core::mem::offset_of!(FlexdraftWalkParams, scores) - 40usize];
    ["Offset of field: FlexdraftWalkParams::chosen"]
        [::core::mem::offset_of!(FlexdraftWalkParams, chosen) - 48usize];
    ["Offset of field: FlexdraftWalkParams::stats"]
        [::core::mem::offset_of!(FlexdraftWalkParams, stats) - 56usize];
    ["Offset of field: FlexdraftWalkParams::error"]
        [::core::mem::offset_of!(FlexdraftWalkParams, error) - 64usize];
    ["Offset of field: FlexdraftWalkParams::draft_count"]
        [::core::mem::offset_of!(FlexdraftWalkParams, draft_count) - 72usize];
    ["Offset of field: FlexdraftWalkParams::rows"]
        [::core::mem::offset_of!(FlexdraftWalkParams, rows) - 76usize];
    ["Offset of field: FlexdraftWalkParams::count"]
        [::core::mem::offset_of!(FlexdraftWalkParams, count) - 80usize];
    ["Offset of field: FlexdraftWalkParams::sequences"]
        [::core::mem::offset_of!(FlexdraftWalkParams, sequences) - 84usize];
};
/// the most ids that a chain scores per row: one per lane of a warp
pub const FLEXDRAFT_CHAIN_LIMIT: FlexdraftChainConstant = 32;
pub type FlexdraftChainConstant = ::core::ffi::c_uint;

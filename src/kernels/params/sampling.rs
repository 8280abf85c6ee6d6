// Generated from cuda/sampling/params.h by the crate in bindings.

use super::common::*;

/// How one row of logits becomes a distribution (warping), and with which random numbers a token is drawn from it.
#[repr(C)]
#[derive(Debug, Copy, Clone, PartialEq)]
pub struct FlexdraftRowSampling {
    /// seed of the request, the key of its random numbers
    pub seed: u64,
    /// words 2 and 3 of the random numbers' counter, before starts[sequence] is added
    pub position: u64,
    /// 1 / temperature, rounded to f32. 0, and any value that is not a finite number above 0, is greedy: the largest
    /// logit, ties to the lowest id
    pub inverse_temperature: f32,
    /// top-p; 1 is off
    pub top_p: f32,
    /// min-p as a score: the smallest f32 s with exp(s) >= min_p; −inf is off
    pub min_score: f32,
    /// top-k; 0 is off
    pub top_k: i32,
    /// word 1 of the random numbers' counter; 0: no draw, the token is the id of the largest logit
    pub purpose_and_slot: u32,
    /// the index in `starts` of the position from which `position` counts; −1: from 0
    pub sequence: i32,
}
#[cfg(target_pointer_width = "64")]
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of FlexdraftRowSampling"][::core::mem::size_of::<FlexdraftRowSampling>() - 40usize];
    ["Alignment of FlexdraftRowSampling"][::core::mem::align_of::<FlexdraftRowSampling>() - 8usize];
    ["Offset of field: FlexdraftRowSampling::seed"]
        [::core::mem::offset_of!(FlexdraftRowSampling, seed) - 0usize];
    ["Offset of field: FlexdraftRowSampling::position"]
        [::core::mem::offset_of!(FlexdraftRowSampling, position) - 8usize];
    ["Offset of field: FlexdraftRowSampling::inverse_temperature"]
        [::core::mem::offset_of!(FlexdraftRowSampling, inverse_temperature) - 16usize];
    ["Offset of field: FlexdraftRowSampling::top_p"]
        [::core::mem::offset_of!(FlexdraftRowSampling, top_p) - 20usize];
    ["Offset of field: FlexdraftRowSampling::min_score"]
        [::core::mem::offset_of!(FlexdraftRowSampling, min_score) - 24usize];
    ["Offset of field: FlexdraftRowSampling::top_k"]
        [::core::mem::offset_of!(FlexdraftRowSampling, top_k) - 28usize];
    ["Offset of field: FlexdraftRowSampling::purpose_and_slot"]
        [::core::mem::offset_of!(FlexdraftRowSampling, purpose_and_slot) - 32usize];
    ["Offset of field: FlexdraftRowSampling::sequence"]
        [::core::mem::offset_of!(FlexdraftRowSampling, sequence) - 36usize];
};
pub const FLEXDRAFT_LOGITS_SOUND: FlexdraftLogitsFault = 0;
/// a NaN
pub const FLEXDRAFT_LOGITS_NAN: FlexdraftLogitsFault = 1;
/// +inf, and no NaN
pub const FLEXDRAFT_LOGITS_INFINITE: FlexdraftLogitsFault = 2;
/// every id is forbidden: all are −inf
pub const FLEXDRAFT_LOGITS_FORBIDDEN: FlexdraftLogitsFault = 3;
/// Why no token may be drawn from a row of logits. −inf is sound: the logit of a forbidden id.
pub type FlexdraftLogitsFault = ::core::ffi::c_uint;
/// The statistics of one row after sampling. The score of id x is 0 if logit[x] is the largest (or +inf), otherwise
/// (logit[x] − max) · inverse_temperature; NaN counts as −inf. x is kept if its score is above cut_score, or equal to
/// it and x <= cut_id. The probability of a kept id is p(x) = exp(score − log_sum), of any other id 0. At temperature
/// 0, or if max is −inf, p is 1 at `token` and 0 elsewhere. cuda/sampling/warping.cuh computes it.
#[repr(C)]
#[derive(Debug, Copy, Clone, PartialEq)]
pub struct FlexdraftRowStats {
    /// the token that was drawn, or the id of the largest logit
    pub token: i32,
    /// the largest logit of the row
    pub max: f32,
    /// ln of the sum of exp(score) over the ids that are kept; 0 at temperature 0
    pub log_sum: f32,
    /// the probability of `token`
    pub probability: f32,
    /// the largest probability at temperature 1, with no id dropped; 0 if max is −inf
    pub confidence: f32,
    /// the logit of `token`
    pub token_logit: f32,
    /// the probability of the row's draft token; 0 without a draft token
    pub draft_probability: f32,
    /// 1 / temperature of the row; 0 if the row is greedy
    pub inverse_temperature: f32,
    /// the lowest score that is kept; −inf: every id is kept
    pub cut_score: f32,
    /// the highest id that is kept among the ids with the score cut_score
    pub cut_id: i32,
    /// number of ids that are kept; the size of the vocabulary if nothing is dropped
    pub kept: i32,
    /// FlexdraftLogitsFault. The other fields of a faulty row are as above, but no token of a target may come from it
    pub fault: i32,
}
#[cfg(target_pointer_width = "64")]
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of FlexdraftRowStats"][::core::mem::size_of::<FlexdraftRowStats>() - 48usize];
    ["Alignment of FlexdraftRowStats"][::core::mem::align_of::<FlexdraftRowStats>() - 4usize];
    ["Offset of field: FlexdraftRowStats::token"][::core::mem::offset_of!(FlexdraftRowStats, token) - 0usize];
    ["Offset of field: FlexdraftRowStats::max"][::core::mem::offset_of!(FlexdraftRowStats, max) - 4usize];
    ["Offset of field: FlexdraftRowStats::log_sum"]
        [::core::mem::offset_of!(FlexdraftRowStats, log_sum) - 8usize];
    ["Offset of field: FlexdraftRowStats::probability"]
        [::core::mem::offset_of!(FlexdraftRowStats, probability) - 12usize];
    ["Offset of field: FlexdraftRowStats::confidence"]
        [::core::mem::offset_of!(FlexdraftRowStats, confidence) - 16usize];
    ["Offset of field: FlexdraftRowStats::token_logit"]
        [::core::mem::offset_of!(FlexdraftRowStats, token_logit) - 20usize];
    ["Offset of field: FlexdraftRowStats::draft_probability"]
        [::core::mem::offset_of!(FlexdraftRowStats, draft_probability) - 24usize];
    ["Offset of field: FlexdraftRowStats::inverse_temperature"]
        [::core::mem::offset_of!(FlexdraftRowStats, inverse_temperature) - 28usize];
    ["Offset of field: FlexdraftRowStats::cut_score"]
        [::core::mem::offset_of!(FlexdraftRowStats, cut_score) - 32usize];
    ["Offset of field: FlexdraftRowStats::cut_id"]
        [::core::mem::offset_of!(FlexdraftRowStats, cut_id) - 36usize];
    ["Offset of field: FlexdraftRowStats::kept"][::core::mem::offset_of!(FlexdraftRowStats, kept) - 40usize];
    ["Offset of field: FlexdraftRowStats::fault"]
        [::core::mem::offset_of!(FlexdraftRowStats, fault) - 44usize];
};
/// the repetition penalty: divides a positive logit, multiplies a negative logit
pub const FLEXDRAFT_EDIT_REPEATED: FlexdraftEditEffect = 1;
/// subtracts `operand`, then the presence penalty
pub const FLEXDRAFT_EDIT_GENERATED: FlexdraftEditEffect = 2;
/// adds `operand`
pub const FLEXDRAFT_EDIT_BIASED: FlexdraftEditEffect = 4;
/// sets the logit to −inf
pub const FLEXDRAFT_EDIT_FORBIDDEN: FlexdraftEditEffect = 8;
/// The effects of an edit on a logit, in the order in which they act.
pub type FlexdraftEditEffect = ::core::ffi::c_uint;
/// An edit: the change of the logit of one id, in some rows of a sequence.
#[repr(C)]
#[derive(Debug, Copy, Clone, PartialEq)]
pub struct FlexdraftLogitEdit {
    pub id: i32,
    /// the first row that is edited, counted from the sequence's first row
    pub first_row: u16,
    /// the last row that is edited, plus 1
    pub end_row: u16,
    /// FlexdraftEditEffect, one bit each
    pub effects: u32,
    pub operand: f32,
}
#[cfg(target_pointer_width = "64")]
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of FlexdraftLogitEdit"][::core::mem::size_of::<FlexdraftLogitEdit>() - 16usize];
    ["Alignment of FlexdraftLogitEdit"][::core::mem::align_of::<FlexdraftLogitEdit>() - 4usize];
    ["Offset of field: FlexdraftLogitEdit::id"][::core::mem::offset_of!(FlexdraftLogitEdit, id) - 0usize];
    ["Offset of field: FlexdraftLogitEdit::first_row"]
        [::core::mem::offset_of!(FlexdraftLogitEdit, first_row) - 4usize];
    ["Offset of field: FlexdraftLogitEdit::end_row"]
        [::core::mem::offset_of!(FlexdraftLogitEdit, end_row) - 6usize];
    ["Offset of field: FlexdraftLogitEdit::effects"]
        [::core::mem::offset_of!(FlexdraftLogitEdit, effects) - 8usize];
    ["Offset of field: FlexdraftLogitEdit::operand"]
        [::core::mem::offset_of!(FlexdraftLogitEdit, operand) - 12usize];
};
/// The edits of one row of logits, which act before the row is sampled.
#[repr(C)]
#[derive(Debug, Copy, Clone, PartialEq)]
pub struct FlexdraftRowEdits {
    /// the place in `edit_offsets` of the sequence's chunks + 1 offsets; −1: no edits
    pub first_offset: i32,
    /// the place in `masks` of the sequence's mask; −1: every id is allowed
    pub first_word: i32,
    /// the row, counted from the sequence's first row
    pub row: i32,
    /// the repetition penalty, above 0
    pub repetition_penalty: f32,
    pub presence_penalty: f32,
    pub unused: i32,
}
#[cfg(target_pointer_width = "64")]
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of FlexdraftRowEdits"][::core::mem::size_of::<FlexdraftRowEdits>() - 24usize];
    ["Alignment of FlexdraftRowEdits"][::core::mem::align_of::<FlexdraftRowEdits>() - 4usize];
    ["Offset of field: FlexdraftRowEdits::first_offset"]
        [::core::mem::offset_of!(FlexdraftRowEdits, first_offset) - 0usize];
    ["Offset of field: FlexdraftRowEdits::first_word"]
        [::core::mem::offset_of!(FlexdraftRowEdits, first_word) - 4usize];
    ["Offset of field: FlexdraftRowEdits::row"][::core::mem::offset_of!(FlexdraftRowEdits, row) - 8usize];
    ["Offset of field: FlexdraftRowEdits::repetition_penalty"]
        [::core::mem::offset_of!(FlexdraftRowEdits, repetition_penalty) - 12usize];
    ["Offset of field: FlexdraftRowEdits::presence_penalty"]
        [::core::mem::offset_of!(FlexdraftRowEdits, presence_penalty) - 16usize];
    ["Offset of field: FlexdraftRowEdits::unused"]
        [::core::mem::offset_of!(FlexdraftRowEdits, unused) - 20usize];
};
/// The parameters of sampling, with or without the calibrator's correction: logits + W2 · u + b2. Padding rows
/// (logit_index −1) are skipped; their stats are zero.
#[repr(C)]
#[derive(Debug, Copy, Clone, PartialEq)]
pub struct FlexdraftSampleParams {
    /// the logits, [logit_rows, logit_stride], f32, bf16 or f16; written if `store`, and by edits
    pub logits: *mut ::core::ffi::c_void,
    /// the index in `logits` of each row, [rows]; null: row r has the logits r
    pub logit_index: *const i32,
    /// how each row is warped and drawn from, [rows]
    pub sampling: *const FlexdraftRowSampling,
    /// the positions from which FlexdraftRowSampling.position counts, [sequences]; may be null
    pub starts: *const i32,
    /// the token of each row whose probability is reported, [rows]; −1: none; may be null
    pub draft: *const i32,
    /// the calibrator's hidden layer, [rows, rank], bf16 or f16; null without a calibrator
    pub u: *const u16,
    /// the weight of the calibrator's last layer, [vocab, rank], bf16 or f16
    pub w2: *const u16,
    /// the bias of the calibrator's last layer, [vocab]; may be null
    pub b2: *const f32,
    /// workspace: the partial results, [rows, FLEXDRAFT_PARTIAL_FIELDS, chunks]
    pub partials: *mut f32,
    /// result: the statistics of each row, [rows]
    pub stats: *mut FlexdraftRowStats,
    /// the edits of each row, [rows]; null: no row is edited; null with a calibrator
    pub row_edits: *const FlexdraftRowEdits,
    /// for each chunk of a sequence, and for the end, the place of the first edit in `edits`, [offset_count]
    pub edit_offsets: *const i32,
    /// the edits of sequences, by id, then in their order, [edit_count]
    pub edits: *const FlexdraftLogitEdit,
    /// masks: bit x % 32 of word x / 32 is set if id x is allowed, [mask_words]
    pub masks: *const u32,
    /// the device error word (FlexdraftError); may be null
    pub error: *mut u32,
    /// elements from one row of logits to the next: a multiple of 8, at least vocab
    pub logit_stride: i64,
    pub rows: i32,
    pub logit_rows: i32,
    /// number of vocabulary ids, 1 to 2^20
    pub vocab: i32,
    /// the calibrator's rank, a multiple of 8
    pub rank: i32,
    pub sequences: i32,
    /// number of chunks per row: vocab / (calibrated ? FLEXDRAFT_CALIBRATED_CHUNK : FLEXDRAFT_CHUNK), rounded up
    pub chunks: i32,
    /// 1: the calibrated logits replace the logits that they were computed from
    pub store: i32,
    /// 1: `logits` holds the logits that are sampled, without a calibrator or with `store`
    pub logits_current: i32,
    pub offset_count: i32,
    pub edit_count: i32,
    pub mask_words: i32,
    pub unused: i32,
}
#[cfg(target_pointer_width = "64")]
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of FlexdraftSampleParams"][::core::mem::size_of::<FlexdraftSampleParams>() - 176usize];
    ["Alignment of FlexdraftSampleParams"][::core::mem::align_of::<FlexdraftSampleParams>() - 8usize];
    ["Offset of field: FlexdraftSampleParams::logits"]
        [::core::mem::offset_of!(FlexdraftSampleParams, logits) - 0usize];
    ["Offset of field: FlexdraftSampleParams::logit_index"]
        [::core::mem::offset_of!(FlexdraftSampleParams, logit_index) - 8usize];
    ["Offset of field: FlexdraftSampleParams::sampling"]
        [::core::mem::offset_of!(FlexdraftSampleParams, sampling) - 16usize];
    ["Offset of field: FlexdraftSampleParams::starts"]
        [::core::mem::offset_of!(FlexdraftSampleParams, starts) - 24usize];
    ["Offset of field: FlexdraftSampleParams::draft"]
        [::core::mem::offset_of!(FlexdraftSampleParams, draft) - 32usize];
    ["Offset of field: FlexdraftSampleParams::u"]
        [::core::mem::offset_of!(FlexdraftSampleParams, u) - 40usize];
    ["Offset of field: FlexdraftSampleParams::w2"]
        [::core::mem::offset_of!(FlexdraftSampleParams, w2) - 48usize];
    ["Offset of field: FlexdraftSampleParams::b2"]
        [::core::mem::offset_of!(FlexdraftSampleParams, b2) - 56usize];
    ["Offset of field: FlexdraftSampleParams::partials"]
        [::core::mem::offset_of!(FlexdraftSampleParams, partials) - 64usize];
    ["Offset of field: FlexdraftSampleParams::stats"]
        [::core::mem::offset_of!(FlexdraftSampleParams, stats) - 72usize];
    ["Offset of field: FlexdraftSampleParams::row_edits"]
        [::core::mem::offset_of!(FlexdraftSampleParams, row_edits) - 80usize];
    ["Offset of field: FlexdraftSampleParams::edit_offsets"]
        [::core::mem::offset_of!(FlexdraftSampleParams, edit_offsets) - 88usize];
    ["Offset of field: FlexdraftSampleParams::edits"]
        [::core::mem::offset_of!(FlexdraftSampleParams, edits) - 96usize];
    ["Offset of field: FlexdraftSampleParams::masks"]
        [::core::mem::offset_of!(FlexdraftSampleParams, masks) - 104usize];
    ["Offset of field: FlexdraftSampleParams::error"]
        [::core::mem::offset_of!(FlexdraftSampleParams, error) - 112usize];
    ["Offset of field: FlexdraftSampleParams::logit_stride"]
        [::core::mem::offset_of!(FlexdraftSampleParams, logit_stride) - 120usize];
    ["Offset of field: FlexdraftSampleParams::rows"]
        [::core::mem::offset_of!(FlexdraftSampleParams, rows) - 128usize];
    ["Offset of field: FlexdraftSampleParams::logit_rows"]
        [::core::mem::offset_of!(FlexdraftSampleParams, logit_rows) - 132usize];
    ["Offset of field: FlexdraftSampleParams::vocab"]
        [::core::mem::offset_of!(FlexdraftSampleParams, vocab) - 136usize];
    ["Offset of field: FlexdraftSampleParams::rank"]
        [::core::mem::offset_of!(FlexdraftSampleParams, rank) - 140usize];
    ["Offset of field: FlexdraftSampleParams::sequences"]
        [::core::mem::offset_of!(FlexdraftSampleParams, sequences) - 144usize];
    ["Offset of field: FlexdraftSampleParams::chunks"]
        [::core::mem::offset_of!(FlexdraftSampleParams, chunks) - 148usize];
    ["Offset of field: FlexdraftSampleParams::store"]
        [::core::mem::offset_of!(FlexdraftSampleParams, store) - 152usize];
    ["Offset of field: FlexdraftSampleParams::logits_current"]
        [::core::mem::offset_of!(FlexdraftSampleParams, logits_current) - 156usize];
    ["Offset of field: FlexdraftSampleParams::offset_count"]
        [::core::mem::offset_of!(FlexdraftSampleParams, offset_count) - 160usize];
    ["Offset of field: FlexdraftSampleParams::edit_count"]
        [::core::mem::offset_of!(FlexdraftSampleParams, edit_count) - 164usize];
    ["Offset of field: FlexdraftSampleParams::mask_words"]
        [::core::mem::offset_of!(FlexdraftSampleParams, mask_words) - 168usize];
    ["Offset of field: FlexdraftSampleParams::unused"]
        [::core::mem::offset_of!(FlexdraftSampleParams, unused) - 172usize];
};
/// vocabulary ids per partial result of sample_rows_*
pub const FLEXDRAFT_CHUNK: FlexdraftSamplingConstant = 1024;
/// vocabulary ids per partial result of calibrated_sample_*
pub const FLEXDRAFT_CALIBRATED_CHUNK: FlexdraftSamplingConstant = 64;
pub const FLEXDRAFT_PARTIAL_FIELDS: FlexdraftSamplingConstant = 5;
pub const FLEXDRAFT_VOCAB_LIMIT: FlexdraftSamplingConstant = 1048576;
pub type FlexdraftSamplingConstant = ::core::ffi::c_uint;

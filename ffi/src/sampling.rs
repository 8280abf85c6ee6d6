//! Sampling and calibration of logits.

use std::ffi::c_void;

use flexdraft::kernels::sampling::{
    Calibration, Edits, Logit, LogitRows, RowSampling, RowStats, Sample, workspace_len,
};
use flexdraft::random::{Purpose, Stream};
use flexdraft::runtime::Runtime;
use flexdraft::sampling::SamplingParams;
use half::{bf16, f16};

use crate::buffer::{
    FLEXDRAFT_BF16, FLEXDRAFT_F16, FLEXDRAFT_F32, FlexdraftBuffer, Operands, Typed, wrong_dtype,
};
use crate::processor::{Call, FlexdraftKernels, On, launch};
use crate::status::{FlexdraftError, Outcome, Refusal, Versioned, flag, guard, read, size, versioned, write};

/// Purpose of a draw: no random numbers. The token is the id of the largest logit; the other parameters still decide
/// the row's probabilities.
pub const FLEXDRAFT_NO_DRAW: u32 = 0;
/// Purpose of a draw: a token of the target, or a draft token of the rule match. The position is the token's own, and
/// the slot is 0.
pub const FLEXDRAFT_TARGET_DRAW: u32 = 1;
/// Purpose of a draw: a draft token of the rules rejection and block. The position is the position of candidate 0 of
/// the step that will verify the draft, and the slot is the draft token's own, from 1 on.
pub const FLEXDRAFT_DRAFT_DRAW: u32 = 2;

/// How one row of logits is warped and drawn from, in device memory. `flexdraft_row_sampling` makes it.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct FlexdraftRowSampling {
    /// The library's representation.
    pub words: [u64; 5],
}

/// The sampling parameters of one row, for `flexdraft_row_sampling`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct FlexdraftSamplingParams {
    /// Size of this struct in bytes.
    pub struct_size: u64,
    /// Temperature; 0 is greedy.
    pub temperature: f32,
    /// Probability mass to keep, above 0 and at most 1; 1 keeps all.
    pub top_p: f32,
    /// Smallest probability to keep, relative to the largest, from 0 and below 1.
    pub min_p: f32,
    /// FLEXDRAFT_NO_DRAW, FLEXDRAFT_TARGET_DRAW or FLEXDRAFT_DRAFT_DRAW.
    pub purpose: u32,
    /// Number of largest logits to keep; 0 keeps all.
    pub top_k: u64,
    /// Seed of the request's random numbers.
    pub seed: u64,
    /// Slot that keys the random numbers, below 65536.
    pub slot: u64,
    /// Position that keys the random numbers, or what is added to the sequence's start.
    pub position: u64,
    /// 1 if `position` counts from the start of `sequence` in the operand `starts`; 0 if it is absolute.
    pub relative: u32,
    /// Index of the sequence in `starts`; used if `relative` is 1.
    pub sequence: u32,
}

/// The statistics of one row after sampling, in device memory. An id's score is (logit - max) * inverse_temperature. An
/// id is kept if its score is above `cut_score`, or equal to it with an id of at most `cut_id`; its probability is
/// exp(score - log_sum).
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct FlexdraftRowStats {
    /// The token that was drawn; without a draw, the id of the largest logit (ties to the lowest id).
    pub token: i32,
    /// The largest logit of the row.
    pub max: f32,
    /// Natural logarithm of the sum of exp(score) over the kept ids; 0 at temperature 0.
    pub log_sum: f32,
    /// Probability of `token`.
    pub probability: f32,
    /// The largest probability at temperature 1, with nothing dropped; 0 if no logit is above −∞.
    pub confidence: f32,
    /// Logit of `token`.
    pub token_logit: f32,
    /// Probability of the row's token in the operand `draft`; 0 without a token.
    pub draft_probability: f32,
    /// Reciprocal of the temperature; 0 for greedy rows.
    pub inverse_temperature: f32,
    /// The lowest score that is kept; -inf if nothing is dropped.
    pub cut_score: f32,
    /// The highest id that is kept among the ids with the lowest kept score.
    pub cut_id: i32,
    /// Number of kept ids.
    pub kept: i32,
    /// Fault of the row: 0 for none, 1 for a NaN, 2 for +inf, 3 if no id is allowed. No token of a target may come from
    /// a faulty row.
    pub fault: i32,
}

const _: () = {
    use std::mem::offset_of;
    assert!(size_of::<FlexdraftRowSampling>() == size_of::<RowSampling>());
    assert!(align_of::<FlexdraftRowSampling>() >= align_of::<RowSampling>());
    assert!(size_of::<FlexdraftRowStats>() == size_of::<RowStats>());
    assert!(offset_of!(FlexdraftRowStats, token) == offset_of!(RowStats, token));
    assert!(offset_of!(FlexdraftRowStats, max) == offset_of!(RowStats, max));
    assert!(offset_of!(FlexdraftRowStats, log_sum) == offset_of!(RowStats, log_sum));
    assert!(offset_of!(FlexdraftRowStats, probability) == offset_of!(RowStats, probability));
    assert!(offset_of!(FlexdraftRowStats, confidence) == offset_of!(RowStats, confidence));
    assert!(offset_of!(FlexdraftRowStats, token_logit) == offset_of!(RowStats, token_logit));
    assert!(offset_of!(FlexdraftRowStats, draft_probability) == offset_of!(RowStats, draft_probability));
    assert!(offset_of!(FlexdraftRowStats, inverse_temperature) == offset_of!(RowStats, inverse_temperature));
    assert!(offset_of!(FlexdraftRowStats, cut_score) == offset_of!(RowStats, cut_score));
    assert!(offset_of!(FlexdraftRowStats, cut_id) == offset_of!(RowStats, cut_id));
    assert!(offset_of!(FlexdraftRowStats, kept) == offset_of!(RowStats, kept));
    assert!(offset_of!(FlexdraftRowStats, fault) == offset_of!(RowStats, fault));
};

/// The operands of `flexdraft_sample` and `flexdraft_sample_partials`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct FlexdraftSample {
    /// Size of this struct in bytes.
    pub struct_size: u64,
    /// Number of token ids, 1 to 2^20.
    pub vocab: u64,
    /// Elements from one row of logits to the next: a multiple of 8, at least `vocab`.
    pub stride: u64,
    /// Logits, f32, bf16 or f16 `[logit_rows, stride]`, aligned to 16 bytes; written if `update` is 1, and by edits.
    pub logits: FlexdraftBuffer,
    /// Optional. The row of `logits` of each row, i32 `[rows]`; -1 makes a row padding. Without it, row r has logits
    /// row r.
    pub logit_index: FlexdraftBuffer,
    /// FLEXDRAFT_ROW_SAMPLING `[rows]`.
    pub sampling: FlexdraftBuffer,
    /// Optional. Positions from which relative draws count, i32 `[sequences]`.
    pub starts: FlexdraftBuffer,
    /// Optional. A token per row whose probability is computed, i32 `[rows]`; -1 for none.
    pub draft: FlexdraftBuffer,
    /// Rank r of the calibrator, a multiple of 8; 0 without a calibrator. Then the three operands below are absent.
    pub rank: u64,
    /// The calibrator's hidden layer u, bf16 or f16 `[rows, r]`, aligned to 16 bytes; of the type of the logits, if these
    /// have 16 bits.
    pub hidden: FlexdraftBuffer,
    /// The calibrator's weight W2, of the type of `hidden`, `[vocab, r]`, aligned to 16 bytes.
    pub weight: FlexdraftBuffer,
    /// Optional. The calibrator's bias b2, f32 `[vocab]`.
    pub bias: FlexdraftBuffer,
    /// f32, at least `flexdraft_sample_workspace_len` elements; its contents do not matter.
    pub workspace: FlexdraftBuffer,
    /// Written: FLEXDRAFT_ROW_STATS `[rows]`.
    pub stats: FlexdraftBuffer,
    /// Optional. The device error word, u32 `[1]`.
    pub error_word: FlexdraftBuffer,
    /// 1 if the calibrated logits replace the logits, which the rules rejection and block need, and rows with top-k,
    /// top-p or min-p.
    pub update: u32,
    /// Unused; 0.
    pub reserved: u32,
    /// Optional. The edits of each row, FLEXDRAFT_ROW_EDITS `[rows]`, which act before the row is sampled; the edited logits
    /// replace the logits. Not with a calibrator. Without it, the three operands below are absent. `flexdraft_edit_rows`
    /// makes the four tables.
    pub row_edits: FlexdraftBuffer,
    /// The places of edits, i32.
    pub edit_offsets: FlexdraftBuffer,
    /// The edits, FLEXDRAFT_LOGIT_EDIT.
    pub edits: FlexdraftBuffer,
    /// The masks of allowed ids, u32.
    pub masks: FlexdraftBuffer,
}

versioned!(FlexdraftSamplingParams, FlexdraftSample before row_edits);

/// An operation that takes logits of each type.
pub(crate) trait OnLogits {
    /// Runs the operation on logits of type `L`.
    fn run_on<R: Runtime, L: Logit + Typed>(&self, on: &On<'_, R>) -> Outcome<()>;

    /// Runs the operation on logits of the type that `logits` has.
    fn dispatch<R: Runtime>(&self, name: &str, logits: &FlexdraftBuffer, on: &On<'_, R>) -> Outcome<()> {
        match logits.dtype {
            FLEXDRAFT_F32 => self.run_on::<R, f32>(on),
            FLEXDRAFT_BF16 => self.run_on::<R, bf16>(on),
            FLEXDRAFT_F16 => self.run_on::<R, f16>(on),
            _ if logits.is_absent() => Err(Refusal::null(name, "elements of type f32, bf16 or f16")),
            other => Err(wrong_dtype(name, other, "f32, bf16 or f16")),
        }
    }
}

impl FlexdraftSample {
    /// Returns the logits and the way in which sampling changes them.
    ///
    /// # Safety
    ///
    /// The operands are valid for their sizes until the launches that take them have run.
    unsafe fn logit_rows<'a, L: Logit + Typed>(&self, operands: Operands) -> Outcome<LogitRows<'a, L>> {
        let updates = flag("update", self.update)?;
        let tables = [("edit_offsets", &self.edit_offsets), ("edits", &self.edits), ("masks", &self.masks)];
        // SAFETY: the caller upholds the contract of this function.
        unsafe {
            if !self.row_edits.is_absent() {
                let edits = Edits {
                    rows: operands.read("row_edits", &self.row_edits)?,
                    offsets: operands.read("edit_offsets", &self.edit_offsets)?,
                    edits: operands.read("edits", &self.edits)?,
                    masks: operands.read("masks", &self.masks)?,
                };
                return Ok(LogitRows::Edit(operands.write("logits", &self.logits)?, edits));
            }
            if let Some((name, _)) = tables.into_iter().find(|(_, buffer)| !buffer.is_absent()) {
                let expected = format!("a table, as `{name}` is present");
                return Err(Refusal::value("row_edits", "absent", &expected));
            }
            Ok(match updates {
                true => LogitRows::Update(operands.write("logits", &self.logits)?),
                false => LogitRows::Read(operands.read("logits", &self.logits)?),
            })
        }
    }

    /// # Safety
    ///
    /// The operands are valid for their sizes until the launches that take them have run.
    unsafe fn operands<R: Runtime, L: Logit + Typed>(&self, on: &On<'_, R>) -> Outcome<Sample<'_, L>> {
        let operands = on.operands();
        let rank = size("rank", self.rank)?;
        // SAFETY: the caller upholds the contract of this function.
        unsafe {
            if rank == 0 {
                for (name, buffer) in
                    [("hidden", &self.hidden), ("weight", &self.weight), ("bias", &self.bias)]
                {
                    if !buffer.is_absent() {
                        return Err(Refusal::value(
                            "rank",
                            0,
                            &format!("a multiple of 8, as `{name}` is present"),
                        ));
                    }
                }
            }
            let calibration = match rank {
                0 => None,
                _ => Some(Calibration {
                    rank,
                    hidden: operands.read_half("hidden", &self.hidden)?,
                    weight: operands.read_half("weight", &self.weight)?,
                    bias: operands.read_optional("bias", &self.bias)?,
                }),
            };
            Ok(Sample {
                vocab: size("vocab", self.vocab)?,
                stride: size("stride", self.stride)?,
                logits: self.logit_rows(operands)?,
                logit_index: operands.read_optional("logit_index", &self.logit_index)?,
                sampling: operands.read("sampling", &self.sampling)?,
                starts: operands.read_optional("starts", &self.starts)?,
                draft: operands.read_optional("draft", &self.draft)?,
                calibration,
                workspace: operands.write("workspace", &self.workspace)?,
                stats: operands.write("stats", &self.stats)?,
                error: operands.write_optional("error_word", &self.error_word)?,
            })
        }
    }
}

impl OnLogits for FlexdraftSample {
    fn run_on<R: Runtime, L: Logit + Typed>(&self, on: &On<'_, R>) -> Outcome<()> {
        // SAFETY: the caller of the exported function guarantees this.
        let args = unsafe { self.operands::<R, L>(on)? };
        Ok(on.kernels.sample(on.stream, args)?)
    }
}

impl Call for FlexdraftSample {
    type Output = ();

    fn run<R: Runtime>(&self, on: &On<'_, R>) -> Outcome<()> {
        self.dispatch("logits", &self.logits, on)
    }
}

/// Only the first launch of sampling.
#[repr(transparent)]
#[derive(Clone, Copy)]
pub(crate) struct Partials(pub FlexdraftSample);

impl OnLogits for Partials {
    fn run_on<R: Runtime, L: Logit + Typed>(&self, on: &On<'_, R>) -> Outcome<()> {
        // SAFETY: the caller of the exported function guarantees this.
        let args = unsafe { self.0.operands::<R, L>(on)? };
        Ok(on.kernels.sample_partials(on.stream, args)?)
    }
}

impl Call for Partials {
    type Output = ();

    fn run<R: Runtime>(&self, on: &On<'_, R>) -> Outcome<()> {
        self.dispatch("logits", &self.0.logits, on)
    }
}

// SAFETY: the struct has the representation of `FlexdraftSample`.
unsafe impl Versioned for Partials {
    const NAME: &'static str = FlexdraftSample::NAME;
    const FIRST_SIZE: usize = FlexdraftSample::FIRST_SIZE;
}

/// Returns the sampling of a row in the kernels' form.
pub(crate) fn row_sampling(params: &FlexdraftSamplingParams) -> Outcome<RowSampling> {
    let slot = size("slot", params.slot)?;
    if slot >= 1 << 16 {
        return Err(Refusal::value("slot", slot, "a number below 65536"));
    }
    let position = size("position", params.position)?;
    let numbers = |purpose| Some(Stream::new(params.seed, purpose, slot, position));
    let numbers = match params.purpose {
        FLEXDRAFT_NO_DRAW => None,
        FLEXDRAFT_TARGET_DRAW => numbers(Purpose::TargetDraw),
        FLEXDRAFT_DRAFT_DRAW => numbers(Purpose::DraftDraw),
        other => return Err(Refusal::value("purpose", other, "0 (no draw), 1 (target) or 2 (draft)")),
    };
    let warping = SamplingParams {
        temperature: params.temperature,
        top_k: size("top_k", params.top_k)?,
        top_p: params.top_p,
        min_p: params.min_p,
    };
    let row = RowSampling::new(&warping, numbers)?;
    Ok(if flag("relative", params.relative)? { row.relative_to(params.sequence) } else { row })
}

/// Writes to `row` the sampling of one row, in host memory, for the caller to copy to the device.
///
/// Errors: FLEXDRAFT_VALUE for a parameter out of its range.
///
/// # Safety
///
/// `params`, `row` and `error` are null or valid.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn flexdraft_row_sampling(
    params: *const FlexdraftSamplingParams,
    row: *mut FlexdraftRowSampling,
    error: *mut FlexdraftError,
) -> i32 {
    let body = || {
        // SAFETY: the caller upholds the contract of this function.
        let params = unsafe { read(params)? };
        let made = row_sampling(&params)?;
        // SAFETY: as above.
        unsafe { write("row", row, FlexdraftRowSampling { words: bytemuck::cast(made) }) }
    };
    // SAFETY: the caller upholds the contract of this function.
    unsafe { guard(error, body) }
}

/// Writes to `len` the number of f32 elements of workspace that `flexdraft_sample` needs for `rows` rows. `calibrated`
/// is 1 if there is a calibrator, otherwise 0.
///
/// Errors: FLEXDRAFT_OVERFLOW if the number is too large.
///
/// # Safety
///
/// `len` and `error` are null or valid.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn flexdraft_sample_workspace_len(
    rows: u64,
    vocab: u64,
    calibrated: u32,
    len: *mut u64,
    error: *mut FlexdraftError,
) -> i32 {
    let body = || {
        let calibrated = flag("calibrated", calibrated)?;
        let elements = workspace_len(size("rows", rows)?, size("vocab", vocab)?, calibrated)?;
        // SAFETY: the caller upholds the contract of this function.
        unsafe { write("len", len, elements as u64) }
    };
    // SAFETY: the caller upholds the contract of this function.
    unsafe { guard(error, body) }
}

/// Draws a token from each row of logits, after temperature, top-k, top-p and min-p; two launches. With a calibrator,
/// the logits become logits + W2 u + b2 first, rounded to their type. With edits, the logits of a row become the edited
/// logits first.
///
/// The draw is Gumbel-max with one Philox number per id, keyed by seed, purpose, slot and position. A row's result has
/// the same bits in any batch. NaN counts as -inf; if no logit is above -inf, the token is id 0.
///
/// Faults in `error_word`: 2 for a draft token outside the vocabulary, 4 for a NaN, 16 for an index out of range, 32
/// for calibrated logits that were needed a second time but not stored.
///
/// Errors: as in `flexdraft_joint_attention`; FLEXDRAFT_VALUE if calibrator operands come without a rank, or other tables of
/// edits without `row_edits`; FLEXDRAFT_UNSUPPORTED for edits with a calibrator.
///
/// # Safety
///
/// The conditions of `flexdraft_joint_attention`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn flexdraft_sample(
    kernels: *const FlexdraftKernels,
    stream: *mut c_void,
    args: *const FlexdraftSample,
    error: *mut FlexdraftError,
) -> i32 {
    // SAFETY: the caller upholds the contract of this function.
    unsafe { launch(kernels, stream, args, error) }
}

/// Runs only the first of the two launches of `flexdraft_sample`: it calibrates or edits the logits and leaves the partial
/// results in the workspace, which `flexdraft_chain_choose` reads. `stats` does not change.
///
/// Errors: the errors of `flexdraft_sample`.
///
/// # Safety
///
/// The conditions of `flexdraft_joint_attention`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn flexdraft_sample_partials(
    kernels: *const FlexdraftKernels,
    stream: *mut c_void,
    args: *const FlexdraftSample,
    error: *mut FlexdraftError,
) -> i32 {
    // SAFETY: the caller upholds the contract of this function.
    unsafe { launch(kernels, stream, args.cast::<Partials>(), error) }
}

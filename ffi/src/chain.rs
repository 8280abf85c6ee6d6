//! Chained Calibration: the choice of ids, the scores of pairs, and the walk through them.

use std::ffi::c_void;

use flexdraft::kernels::chain::{ChainChoose, ChainScore, ChainWalk};
use flexdraft::kernels::sampling::Logit;
use flexdraft::runtime::Runtime;

use crate::buffer::{FlexdraftBuffer, Typed};
use crate::processor::{Call, FlexdraftKernels, On, launch};
use crate::sampling::OnLogits;
use crate::status::{FlexdraftError, Outcome, flag, size, versioned};

/// The operands of `flexdraft_chain_choose`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct FlexdraftChainChoose {
    /// Size of this struct in bytes.
    pub struct_size: u64,
    /// Number of token ids, 1 to 2^20.
    pub vocab: u64,
    /// Elements from one row of logits to the next: a multiple of 8, at least `vocab`.
    pub stride: u64,
    /// K: number of ids chosen per row, 1 to 32 and at most `vocab`.
    pub count: u64,
    /// The calibrated logits, f32, bf16 or f16 `[logit_rows, stride]`, aligned to 16 bytes.
    pub logits: FlexdraftBuffer,
    /// Optional. The row of `logits` of each row, i32 `[rows]`; -1 makes a row padding.
    pub logit_index: FlexdraftBuffer,
    /// The workspace of the `flexdraft_sample_partials` or `flexdraft_sample` call for the same rows, as that call left
    /// it: f32, exactly `flexdraft_sample_workspace_len` elements.
    pub partials: FlexdraftBuffer,
    /// Written: the chosen ids in descending order of their logits, i32 `[rows, K]`.
    pub ids: FlexdraftBuffer,
    /// Written: the logits of the chosen ids, NaN as -inf, f32 `[rows, K]`.
    pub chosen: FlexdraftBuffer,
    /// Optional. The device error word, u32 `[1]`.
    pub error_word: FlexdraftBuffer,
    /// 1 if the call that left `partials` had a calibrator.
    pub calibrated: u32,
    /// Unused; 0.
    pub reserved: u32,
}

/// The operands of `flexdraft_chain_score`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct FlexdraftChainScore {
    /// Size of this struct in bytes.
    pub struct_size: u64,
    /// Number of elements per factor, above 0.
    pub rank: u64,
    /// K: number of chosen ids per row, 1 to 32.
    pub count: u64,
    /// Number of drafts.
    pub drafts: u64,
    /// Factors of the previous tokens: of the bonus token of each draft, then of the chosen ids of each row; f32
    /// `[drafts + rows * K, before_stride]`, aligned to 16 bytes.
    pub before: FlexdraftBuffer,
    /// Elements from one factor in `before` to the next: a multiple of 8, at least `rank`.
    pub before_stride: u64,
    /// Factors of the chosen ids as scored tokens, f32, bf16 or f16 `[rows * K, after_stride]`, aligned to 16 bytes.
    pub after: FlexdraftBuffer,
    /// Elements from one factor in `after` to the next: a multiple of 8, at least `rank`.
    pub after_stride: u64,
    /// The draft of each row, i32 `[rows]`. The rows of a draft follow each other in the order of their slots.
    pub owners: FlexdraftBuffer,
    /// Written: entry `[a][b]` of a row is the score of its id b after id a of the row before; f32 `[rows, K, K]`. The
    /// first row of a draft gets only the entries `[0][b]`, the scores after the bonus token.
    pub scores: FlexdraftBuffer,
    /// Optional. The device error word, u32 `[1]`.
    pub error_word: FlexdraftBuffer,
}

/// The operands of `flexdraft_chain_walk`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct FlexdraftChainWalk {
    /// Size of this struct in bytes.
    pub struct_size: u64,
    /// K: number of chosen ids per row, 1 to 32.
    pub count: u64,
    /// The drafts with their rows, FLEXDRAFT_DRAFT `[drafts]`.
    pub drafts: FlexdraftBuffer,
    /// Optional. The operand of `flexdraft_chain_choose`, i32 `[rows]`.
    pub logit_index: FlexdraftBuffer,
    /// FLEXDRAFT_ROW_SAMPLING `[rows]`. Top-k counts among the chosen ids.
    pub sampling: FlexdraftBuffer,
    /// Optional. Positions from which relative draws count, i32 `[sequences]`.
    pub starts: FlexdraftBuffer,
    /// The chosen ids, i32 `[rows, K]`.
    pub ids: FlexdraftBuffer,
    /// The scores, f32 `[rows, K, K]`.
    pub scores: FlexdraftBuffer,
    /// Logits of the chosen ids, which the chained logits replace, f32 `[rows, K]`.
    pub chosen: FlexdraftBuffer,
    /// Written: FLEXDRAFT_ROW_STATS `[rows]`, of logits that are -inf outside the chosen ids.
    pub stats: FlexdraftBuffer,
    /// Optional. The device error word, u32 `[1]`.
    pub error_word: FlexdraftBuffer,
}

versioned!(FlexdraftChainChoose, FlexdraftChainScore, FlexdraftChainWalk);

impl OnLogits for FlexdraftChainChoose {
    fn run_on<R: Runtime, L: Logit + Typed>(&self, on: &On<'_, R>) -> Outcome<()> {
        let operands = on.operands();
        // SAFETY: the exported function's caller guarantees that operands are valid for their sizes.
        let args = unsafe {
            ChainChoose::<L> {
                vocab: size("vocab", self.vocab)?,
                stride: size("stride", self.stride)?,
                logits: operands.read("logits", &self.logits)?,
                logit_index: operands.read_optional("logit_index", &self.logit_index)?,
                partials: operands.read("partials", &self.partials)?,
                calibrated: flag("calibrated", self.calibrated)?,
                count: size("count", self.count)?,
                ids: operands.write("ids", &self.ids)?,
                chosen: operands.write("chosen", &self.chosen)?,
                error: operands.write_optional("error_word", &self.error_word)?,
            }
        };
        Ok(on.kernels.chain_choose(on.stream, &args)?)
    }
}

impl Call for FlexdraftChainChoose {
    type Output = ();

    fn run<R: Runtime>(&self, on: &On<'_, R>) -> Outcome<()> {
        self.dispatch("logits", &self.logits, on)
    }
}

impl OnLogits for FlexdraftChainScore {
    fn run_on<R: Runtime, L: Logit + Typed>(&self, on: &On<'_, R>) -> Outcome<()> {
        let operands = on.operands();
        // SAFETY: the exported function's caller guarantees that operands are valid for their sizes.
        let args = unsafe {
            ChainScore::<L> {
                rank: size("rank", self.rank)?,
                count: size("count", self.count)?,
                drafts: size("drafts", self.drafts)?,
                before: operands.read("before", &self.before)?,
                before_stride: size("before_stride", self.before_stride)?,
                after: operands.read("after", &self.after)?,
                after_stride: size("after_stride", self.after_stride)?,
                owners: operands.read("owners", &self.owners)?,
                scores: operands.write("scores", &self.scores)?,
                error: operands.write_optional("error_word", &self.error_word)?,
            }
        };
        Ok(on.kernels.chain_score(on.stream, &args)?)
    }
}

impl Call for FlexdraftChainScore {
    type Output = ();

    fn run<R: Runtime>(&self, on: &On<'_, R>) -> Outcome<()> {
        self.dispatch("after", &self.after, on)
    }
}

impl Call for FlexdraftChainWalk {
    type Output = ();

    fn run<R: Runtime>(&self, on: &On<'_, R>) -> Outcome<()> {
        let operands = on.operands();
        // SAFETY: the exported function's caller guarantees that operands are valid for their sizes.
        let args = unsafe {
            ChainWalk {
                drafts: operands.read("drafts", &self.drafts)?,
                logit_index: operands.read_optional("logit_index", &self.logit_index)?,
                sampling: operands.read("sampling", &self.sampling)?,
                starts: operands.read_optional("starts", &self.starts)?,
                count: size("count", self.count)?,
                ids: operands.read("ids", &self.ids)?,
                scores: operands.read("scores", &self.scores)?,
                chosen: operands.write("chosen", &self.chosen)?,
                stats: operands.write("stats", &self.stats)?,
                error: operands.write_optional("error_word", &self.error_word)?,
            }
        };
        Ok(on.kernels.chain_walk(on.stream, &args)?)
    }
}

/// Chooses the ids of the K largest logits of each row, ties to the lowest id.
///
/// Fault in `error_word`: 16 for an index outside the logits.
///
/// Errors: as in `flexdraft_joint_attention`.
///
/// # Safety
///
/// The conditions of `flexdraft_joint_attention`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn flexdraft_chain_choose(
    kernels: *const FlexdraftKernels,
    stream: *mut c_void,
    args: *const FlexdraftChainChoose,
    error: *mut FlexdraftError,
) -> i32 {
    // SAFETY: the caller upholds the contract of this function.
    unsafe { launch(kernels, stream, args, error) }
}

/// Computes the scores of all pairs of chosen ids of neighbouring rows, as dot products of factors, with f32 sums in a
/// fixed order.
///
/// Fault in `error_word`: 16 for a row whose draft does not exist; the row gets no scores.
///
/// Errors: as in `flexdraft_joint_attention`.
///
/// # Safety
///
/// The conditions of `flexdraft_joint_attention`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn flexdraft_chain_score(
    kernels: *const FlexdraftKernels,
    stream: *mut c_void,
    args: *const FlexdraftChainScore,
    error: *mut FlexdraftError,
) -> i32 {
    // SAFETY: the caller upholds the contract of this function.
    unsafe { launch(kernels, stream, args, error) }
}

/// Draws the tokens of each draft row by row, among the chosen ids of the row: the chained logit of an id is its logit
/// plus its score after the previously drawn token.
///
/// Fault in `error_word`: 16 for a draft whose rows do not exist, and for a sequence without a start.
///
/// Errors: as in `flexdraft_joint_attention`.
///
/// # Safety
///
/// The conditions of `flexdraft_joint_attention`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn flexdraft_chain_walk(
    kernels: *const FlexdraftKernels,
    stream: *mut c_void,
    args: *const FlexdraftChainWalk,
    error: *mut FlexdraftError,
) -> i32 {
    // SAFETY: the caller upholds the contract of this function.
    unsafe { launch(kernels, stream, args, error) }
}

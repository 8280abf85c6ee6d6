//! The `Device` trait: the operations of a decode step, implemented for the CPU and for GPUs.
//!
//! [`Device`] lists the operations. The forward pass ([`crate::model`]) and the decode step
//! ([`crate::decode`]) are written once, generic over it. An implementation makes two promises:
//!
//! - **Row-invariance.** A row's result has the same bits whatever other rows, sequences or threads
//!   compute with it. Therefore greedy verification (v + 1 rows) and autoregressive decoding (one row)
//!   agree at near-ties, and parallel and sequential drafts always agree. A device that was told to give
//!   this promise up reports it ([`Device::is_row_invariant`]).
//! - **Checked operands.** Shapes that do not fit each other give a [`DeviceError`], never a panic.

pub mod cpu;
mod error;
pub mod gpu;

use std::ops::Range;

pub use error::DeviceError;

use crate::acceptance::Rule;
pub use crate::layout::{AttentionShape, RowKind};
use crate::layout::{GroupSet, Pass};
use crate::sampling::SamplingParams;
use crate::tensor::Tensor;

/// Number format in which a device stores activations and the KV cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Precision {
    /// Single precision for all values.
    #[default]
    F32,
    /// Every value that a GPU would store in bf16 is rounded to bf16 (to nearest, ties to even). Sums are
    /// still computed in f32, and logits stay f32.
    Bf16,
}

/// Rotary position embedding (RoFormer, arXiv 2104.09864), rotate-half form.
///
/// Dimension pair (i, i + head_dim / 2) at position p is rotated by the angle p · `inv_freq[i]`; cosine and
/// sine are multiplied by `scale` (1 except for yarn).
#[derive(Clone, Debug, PartialEq)]
pub struct Rope {
    /// Inverse frequencies `[head_dim / 2]`, in radians per position.
    pub inv_freq: Vec<f32>,
    /// Factor on cosine and sine.
    pub scale: f32,
}

/// One part of a fused linear layer: some output rows, computed from some columns of a stored matrix.
#[derive(Clone, Debug)]
pub struct LinearPart<'a> {
    /// The stored matrix `[out, in]`.
    pub weight: &'a Tensor,
    /// The input columns that the part uses; `None` for all of them.
    pub columns: Option<Range<usize>>,
    /// The bias `[out]`, added to the output.
    pub bias: Option<&'a Tensor>,
}

impl<'a> LinearPart<'a> {
    /// A part that uses the whole matrix, with an optional bias.
    pub fn new(weight: &'a Tensor, bias: Option<&'a Tensor>) -> Self {
        Self { weight, columns: None, bias }
    }
}

/// Norms and rotation of the q and k heads of a fused projection, applied before attention.
#[derive(Debug)]
pub struct QkTransform<'a, V> {
    /// Numbers of heads, and their dimensions.
    pub shape: AttentionShape,
    /// RMSNorm weights `[head_dim]` for each q head and each k head (Qwen3), if the model has them.
    pub norms: Option<(&'a V, &'a V)>,
    /// Epsilon of the norms.
    pub eps: f32,
    /// The rotation, applied after the norms.
    pub rope: &'a Rope,
}

/// The rows of a laid-out pass that an attention layer computes.
#[derive(Debug)]
pub struct AttentionRows<'a, P> {
    /// The pass, as [`Device::begin`] returned it.
    pub pass: &'a P,
    /// Whether mask rows take part. Layers before the tail have only candidate rows.
    pub masks: bool,
}

/// The last layer of the calibrator: `logits[r] += W2 u[r] + b2`.
#[derive(Debug)]
pub struct CalibratorOutput<'a, B, L> {
    /// u: one row per row of logits.
    pub hidden: &'a B,
    /// The layer with weight W2 and bias b2.
    pub output: &'a L,
}

/// The place of draft slots before the draft is made: rows of the pass, or rows of the logits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SlotRows {
    /// All S slots of each group are rows of the most recent pass. The logits of the drafts are computed
    /// after the verdict, in rows from `first_logits` on, draft after draft.
    Pass {
        /// The logits row of the first draft's slot 1.
        first_logits: usize,
    },
    /// Slots 1..S of each group already have rows of logits, before the verdict is known.
    Logits,
}

impl SlotRows {
    /// Returns the number of slots before slot 1 that have rows.
    fn skipped(self) -> usize {
        match self {
            SlotRows::Pass { .. } => 1,
            SlotRows::Logits => 0,
        }
    }
}

/// A sequence that drafts from slots 1..S of the mask group that its verdict selects.
#[derive(Clone, Debug)]
pub struct DraftRows<'a> {
    /// Index of the sequence within the verification.
    pub sequence: usize,
    /// The accepted lengths, as counted by the verdict, for which the pass has a group of this sequence.
    /// [`GroupSet::NONE`] if the pass has a single group that [follows](Device::resolve_groups) the verdict.
    pub groups: GroupSet,
    /// The first row of the first group; the rows of the other groups follow. [`SlotRows`] says which slots
    /// of a group have rows, and whether these are rows of the pass or of the logits.
    pub first_row: usize,
    /// S: the number of slots per group, 1 to [`MAX_BLOCK_SIZE`](crate::layout::MAX_BLOCK_SIZE). All slots
    /// but the first are drafts.
    pub slots: usize,
    /// The warping of the slots' logits before a token is drawn.
    pub sampling: &'a SamplingParams,
    /// The acceptance rule that will verify the draft: it decides which random numbers the draft uses.
    pub rule: Rule,
    /// The request's seed.
    pub seed: u64,
}

impl DraftRows<'_> {
    /// Returns the number of tokens that the sequence drafts: S − 1.
    pub fn drafted(&self) -> usize {
        self.slots.saturating_sub(1)
    }

    /// Returns the rows of slots 1..S of the group for `accepted`, or `None` if there is no such group.
    pub fn slot_rows(&self, accepted: usize, rows: SlotRows) -> Option<Range<usize>> {
        let rank = self.groups.iter().position(|k| k == accepted)?;
        let skipped = rows.skipped();
        let before = rank.saturating_mul(self.drafted().saturating_add(skipped)).saturating_add(skipped);
        let slot_1 = self.first_row.saturating_add(before);
        Some(slot_1..slot_1.saturating_add(self.drafted()))
    }
}

/// One drafted token and its confidence.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct DraftToken {
    /// Vocabulary id.
    pub token: u32,
    /// The largest probability of the slot's softmax at temperature 1.
    pub confidence: f32,
}

/// The location of a draft's logits: slot j has row `first_row + j − 1`.
#[derive(Debug)]
pub struct DraftLogits<'a, B> {
    /// The logits that [`Device::draft`] drew from, or logits that [`Device::copy_draft`] copied from them. A
    /// device may store values that it computed from a row when it drew (its largest logit, the sum of its
    /// exponentials) with the buffer, so that q is bit for bit the distribution that the draft was drawn
    /// from.
    pub logits: &'a B,
    /// The row of slot 1.
    pub first_row: usize,
    /// Index of slot 1 among the draws from these logits.
    pub first_draw: usize,
}

impl<B> Clone for DraftLogits<'_, B> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<B> Copy for DraftLogits<'_, B> {}

/// The request to verify one sequence's draft.
#[derive(Debug)]
pub struct VerifyRows<'a, B> {
    /// Target logits row of candidate 0; candidate i has row `first_row + i`.
    pub first_row: usize,
    /// The draft tokens d_1..d_v under verification. If there are none, the bonus token is drawn with the
    /// *target draw* numbers of its own position, whatever the rule. This is an autoregressive step; the
    /// first bonus token after a prompt is drawn in the same way.
    pub draft: &'a [u32],
    /// The calibrated logits that the draft was drawn from, with the same warping. `None` if the draft did
    /// not come from a distribution: each q_j is then the point mass at d_j. Rules that need no q (greedy,
    /// `match`) do not read the logits. A device reads them in place if all sequences name the same buffer.
    pub draft_logits: Option<DraftLogits<'a, B>>,
    /// The warping of both distributions.
    pub sampling: &'a SamplingParams,
    /// The acceptance rule. At temperature 0 every rule is greedy.
    pub rule: Rule,
    /// The request's seed.
    pub seed: u64,
    /// n: the position of candidate 0.
    pub start: usize,
}

/// The result of verifying one sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SequenceVerdict {
    /// a: the number of accepted draft tokens.
    pub accepted: usize,
    /// The new bonus token, at position n + a + 1.
    pub bonus: u32,
    /// n + a + 1: the position of the bonus token, and of c_0 of the next step.
    pub next_start: usize,
}

/// The results of a verification and of the drafting after it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct StepResults {
    /// The verdict of each sequence of the verification.
    pub verdicts: Vec<SequenceVerdict>,
    /// The tokens in slots 1..S of each draft, in the order of the [`DraftRows`].
    pub drafts: Vec<Vec<DraftToken>>,
}

/// The operations of a decode step. The [module documentation](self) states the promises that all operations
/// share.
///
/// Activations are row-major `[rows, cols]` buffers. Operations with a row range read and write the same row
/// indices of their operands, unless their docs say otherwise.
///
/// A device may run behind its caller: only [`read`](Device::read) and [`edit_row`](Device::edit_row) wait
/// for it. The device therefore looks up the outcome of a verification (the group to draft from, the bonus
/// token, the next position) in its own [`Results`](Device::Results), and the host waits once per step, for
/// verdicts and drafts.
pub trait Device: Send + Sync + 'static {
    /// Activations `[rows, cols]`.
    type Buffer: Send;
    /// A linear layer, possibly of several fused parts.
    type Linear: Send + Sync;
    /// A vector of weights: a norm, a bias, an embedding.
    type Vector: Send + Sync;
    /// A paged KV cache over all layers.
    type Cache: Send;
    /// Verdicts and drafts, in the device's memory. Reused from step to step.
    type Results: Send;
    /// A pass that was checked once and laid out in memory that the device's operations read.
    type Pass<'a>
    where
        Self: 'a;

    /// Makes a linear layer whose output is the outputs of its parts, side by side.
    fn new_linear(&self, parts: &[LinearPart<'_>]) -> Result<Self::Linear, DeviceError>;

    /// Makes a vector from a tensor `[n]`.
    fn new_vector(&self, tensor: &Tensor) -> Result<Self::Vector, DeviceError>;

    /// Makes a cache of `pages` pages of `page_size` tokens for each of `layers` layers.
    /// Every page id is below `pages`.
    fn new_cache(
        &self,
        layers: usize,
        pages: usize,
        page_size: usize,
        shape: AttentionShape,
    ) -> Result<Self::Cache, DeviceError>;

    /// Makes an empty buffer [0, cols] for activations, rounded to the device's [`Precision`].
    fn new_buffer(&self, cols: usize) -> Self::Buffer;

    /// Makes an empty buffer [0, cols] for logits, which are f32 in every [`Precision`].
    fn new_logits(&self, cols: usize) -> Self::Buffer;

    /// Makes results that hold no verdict yet.
    fn new_results(&self) -> Self::Results;

    /// Sets the number of rows. Existing rows keep their contents; the contents of new rows are unspecified.
    fn resize(&self, buffer: &mut Self::Buffer, rows: usize) -> Result<(), DeviceError>;

    /// Prepares products of `layer` with up to `rows` rows, into logits or activations, on a device that has
    /// to search for the best way. Called once before the first step.
    fn prepare(&self, layer: &Self::Linear, rows: usize, logits: bool) -> Result<(), DeviceError> {
        let _ = (layer, rows, logits);
        Ok(())
    }

    /// Returns whether a row's result has the same bits whatever other rows are computed with it. If not,
    /// decoding is not lossless.
    fn is_row_invariant(&self) -> bool {
        true
    }

    /// Checks a pass and lays it out on the device, for the operations that use its rows.
    ///
    /// # Errors
    ///
    /// [`DeviceError`] if a row has no page in `cache`, or if memory for the pass runs out.
    fn begin<'a>(&'a self, pass: &'a Pass<'a>, cache: &Self::Cache) -> Result<Self::Pass<'a>, DeviceError>;

    /// Writes row `ids[i]` of `table` `[vocab, cols]` to row `first_row + i` of `out`.
    fn embed(
        &self,
        table: &Self::Linear,
        ids: &[u32],
        first_row: usize,
        out: &mut Self::Buffer,
    ) -> Result<(), DeviceError>;

    /// Writes `value` to each of `rows` of `out`. Every mask row enters the tail with the same vector.
    fn fill_rows(
        &self,
        value: &Self::Vector,
        rows: Range<usize>,
        out: &mut Self::Buffer,
    ) -> Result<(), DeviceError>;

    /// Applies RMSNorm (arXiv 1910.07467): `out[r] = x[r] / sqrt(mean(x[r]²) + eps) · weight`.
    fn rms_norm(
        &self,
        x: &Self::Buffer,
        rows: Range<usize>,
        weight: &Self::Vector,
        eps: f32,
        out: &mut Self::Buffer,
    ) -> Result<(), DeviceError>;

    /// Applies a linear layer: `out[r] = W x[r] + b`.
    fn linear(
        &self,
        layer: &Self::Linear,
        x: &Self::Buffer,
        rows: Range<usize>,
        out: &mut Self::Buffer,
    ) -> Result<(), DeviceError> {
        let first_row = rows.start;
        self.linear_to(layer, x, rows, first_row, out)
    }

    /// Like [`linear`](Self::linear), but writes to the rows of `out` from `first_row` on.
    fn linear_to(
        &self,
        layer: &Self::Linear,
        x: &Self::Buffer,
        rows: Range<usize>,
        first_row: usize,
        out: &mut Self::Buffer,
    ) -> Result<(), DeviceError>;

    /// Adds to the residual stream: `hidden[r] += delta[r]`.
    fn add(
        &self,
        delta: &Self::Buffer,
        rows: Range<usize>,
        hidden: &mut Self::Buffer,
    ) -> Result<(), DeviceError>;

    /// [`add`](Self::add), followed by [`rms_norm`](Self::rms_norm) of the sum: the operations between two
    /// blocks.
    fn add_rms_norm(
        &self,
        delta: &Self::Buffer,
        rows: Range<usize>,
        hidden: &mut Self::Buffer,
        weight: &Self::Vector,
        eps: f32,
        out: &mut Self::Buffer,
    ) -> Result<(), DeviceError> {
        self.add(delta, rows.clone(), hidden)?;
        self.rms_norm(hidden, rows, weight, eps, out)
    }

    /// Applies the MLP's activation: `out[r] = silu(x[r][..I]) · x[r][I..]` for x [rows, 2I], the fused gate
    /// and up projections.
    fn silu_mul(
        &self,
        x: &Self::Buffer,
        rows: Range<usize>,
        out: &mut Self::Buffer,
    ) -> Result<(), DeviceError>;

    /// `x[r] = silu(x[r] + bonus[owner[r]])` for r in 0..owner.len(): the calibrator's hidden layer. Its
    /// bonus half has one row per sequence.
    fn silu_add(
        &self,
        bonus: &Self::Buffer,
        owner: &[usize],
        x: &mut Self::Buffer,
    ) -> Result<(), DeviceError>;

    /// Gathers rows: `out[i] = x[rows[i]]`; `out` is resized to `rows.len()` rows.
    fn gather(&self, x: &Self::Buffer, rows: &[usize], out: &mut Self::Buffer) -> Result<(), DeviceError>;

    /// Applies norms (if any) and rotation, by the rows' positions, to the q and k heads of rows `kind` of
    /// `qkv` `[total_rows, qkv_cols]`. q, and the k of mask rows, change in place. The k and v heads of
    /// **candidate** rows go to layer `layer` of the cache, at the rows' positions; nothing uses the k that
    /// remains in their `qkv` rows. The k and v of mask rows never enter the cache.
    ///
    /// A device may keep the rotations that it computed in `pass`, for later layers. `qkv` has a row for
    /// every row of the pass, whichever `kind` is computed.
    fn norm_rope_append(
        &self,
        transform: &QkTransform<'_, Self::Vector>,
        pass: &mut Self::Pass<'_>,
        kind: RowKind,
        qkv: &mut Self::Buffer,
        layer: usize,
        cache: &mut Self::Cache,
    ) -> Result<(), DeviceError>;

    /// Joint draft-and-verify attention over one layer of the paged cache.
    ///
    /// Each of `rows` attends with scale head_dim^−1/2 to cached positions 0..=limit. A mask row also attends
    /// to the S slots of its own group in `qkv`, merged last. `qkv` `[total_rows, qkv_cols]` went through
    /// [`norm_rope_append`](Self::norm_rope_append); `out` is `[total_rows, out_cols]`.
    fn joint_attention(
        &self,
        shape: AttentionShape,
        rows: AttentionRows<'_, Self::Pass<'_>>,
        qkv: &Self::Buffer,
        layer: usize,
        cache: &Self::Cache,
        out: &mut Self::Buffer,
    ) -> Result<(), DeviceError>;

    /// Lets `edit` change one row of logits on the host, which waits for the row. A NaN that `edit` leaves
    /// counts as −∞.
    fn edit_row(
        &self,
        logits: &mut Self::Buffer,
        row: usize,
        edit: &mut dyn FnMut(&mut [f32]),
    ) -> Result<(), DeviceError>;

    /// Applies each sequence's acceptance rule to target logits. The verdicts replace the contents of
    /// `results`.
    fn verify(
        &self,
        logits: &Self::Buffer,
        sequences: &[VerifyRows<'_, Self::Buffer>],
        results: &mut Self::Results,
    ) -> Result<(), DeviceError>;

    /// Returns the verdicts if they are available without waiting: before [`read`](Self::read) on a device
    /// that does not run behind its caller, and after `read` on every device.
    fn verdicts_if_ready<'a>(&self, results: &'a Self::Results) -> Option<&'a [SequenceVerdict]>;

    /// Moves the group of each sequence i of `pass` from its place in the layout to the accepted length of
    /// `verdicts[i]`. Called before any other operation on `pass`. The pass has one group per sequence and no
    /// candidates. It is laid out for the largest possible accepted length. If the verdicts are
    /// [known](Self::verdicts_if_ready), it is laid out for the accepted length itself, and this operation has nothing to
    /// do.
    fn resolve_groups(
        &self,
        pass: &mut Self::Pass<'_>,
        verdicts: &[usize],
        results: &Self::Results,
    ) -> Result<(), DeviceError>;

    /// Returns the most rows of a product of `head` that [joins](Self::joins_head_products) candidates and
    /// slots. Their logits stay in memory until the next step. 0 on a device that never joins them.
    fn joined_head_rows(&self, head: &Self::Linear) -> usize {
        let _ = head;
        0
    }

    /// Returns whether to join the products of `head`. A joined product computes logits, before the verdict,
    /// for `candidates` rows that are verified and for all `slots` rows of the groups. Separate products do
    /// the candidates first, and after the verdict the `drafted` rows of the groups that the verdicts select.
    /// Both give the same bits. Not called for more rows than [`joined_head_rows`](Self::joined_head_rows).
    fn joins_head_products(
        &self,
        head: &Self::Linear,
        candidates: usize,
        slots: usize,
        drafted: usize,
    ) -> bool {
        let _ = (head, candidates, slots, drafted);
        false
    }

    /// Selects, by the verdicts, the rows and bonus tokens that the next three operations use. If the
    /// verdicts are [known](Self::verdicts_if_ready), each accepted length must have a group. Otherwise, a sequence whose
    /// accepted length has no group gets a meaningless draft.
    fn select_drafts(
        &self,
        drafts: &[DraftRows<'_>],
        rows: SlotRows,
        results: &mut Self::Results,
    ) -> Result<(), DeviceError>;

    /// Writes the rows of the selected slots 1..S of `x` to `out`, which is resized. The rows of `x` are the
    /// rows that [`SlotRows`] names: rows of the pass, or rows of the logits.
    fn gather_selected(
        &self,
        x: &Self::Buffer,
        results: &Self::Results,
        out: &mut Self::Buffer,
    ) -> Result<(), DeviceError>;

    /// Writes row `bonus` of `table` for each selected draft to `out`, which is resized.
    fn embed_bonus(
        &self,
        table: &Self::Linear,
        results: &Self::Results,
        out: &mut Self::Buffer,
    ) -> Result<(), DeviceError>;

    /// Returns the number of rows drafted since the verification. This is the next draft's
    /// [`first_draw`](DraftLogits::first_draw) if all drafts of a step come from one buffer.
    fn drafted_rows(&self, results: &Self::Results) -> usize;

    /// Samples the selected `drafts` from `logits`: one token per row, draft after draft. If there is a
    /// calibrator, it corrects the selected rows first. The logits keep the values that were sampled from,
    /// for the [verification](Self::verify) of the drafts.
    fn draft(
        &self,
        calibration: Option<CalibratorOutput<'_, Self::Buffer, Self::Linear>>,
        logits: &mut Self::Buffer,
        drafts: &[DraftRows<'_>],
        results: &mut Self::Results,
    ) -> Result<(), DeviceError>;

    /// Copies the first `rows` rows of `draft`, with the values stored about their draws, to the first rows
    /// of `out`, which is resized.
    fn copy_draft(
        &self,
        draft: DraftLogits<'_, Self::Buffer>,
        rows: usize,
        out: &mut Self::Buffer,
    ) -> Result<(), DeviceError> {
        let end = draft.first_row.saturating_add(rows);
        self.gather(draft.logits, &(draft.first_row..end).collect::<Vec<_>>(), out)
    }

    /// Waits for all work on the device and returns its results: the verdicts, and the drafts since the
    /// verification or since the last call.
    ///
    /// # Errors
    ///
    /// [`DeviceError::Faults`] if a kernel has reported a fault since the last call.
    fn read(&self, results: &mut Self::Results) -> Result<StepResults, DeviceError>;

    /// Calls `work`, the operations of a step, on the thread that suits it best. A device with its own
    /// threads runs it on one of them, so that no operation has to wake the others.
    fn run<R: Send>(&self, work: impl FnOnce() -> R + Send) -> R {
        work()
    }
}

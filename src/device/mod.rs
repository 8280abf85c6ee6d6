//! The `Device` trait: the operations of a decode step, implemented for the CPU and for GPUs.
//!
//! | module | contents |
//! |---|---|
//! | here | the traits: [`Device`], [`Verification`], [`DraftSelection`] |
//! | `operands` | operands of the forward pass |
//! | `step` | everything that a step takes from the host |
//! | `drafts`, `verdicts` | what drafting and verification take and return |
//! | `error` | [`DeviceError`] |
//! | [`cpu`], [`gpu`] | the implementations; a file that both have has the same name in both |
//!
//! The forward pass ([`crate::model`]) and the decode step ([`crate::decode`]) are written once, generic over `Device`.
//! Each object returns the next object, which fixes the order of the operations:
//!
//! ```text
//! Device::begin ──▶ pass ──▶ norm_rope_append, joint_attention
//!        │
//!        ▼
//!  tables of the step
//!        │
//!        ▼
//! Device::verify ──▶ Verification ──▶ begin_drafting ──▶ pass
//!                         │ ▲
//!           select_drafts │ │ read: the host waits
//!                         ▼ │
//!                    DraftSelection ──▶ gather, embed_bonus, then draft, once
//! ```
//!
//! An implementation gives two guarantees:
//!
//! - **Row-invariance.** A row's result has the same bits whatever other rows, sequences or threads
//!   compute with it. Therefore greedy verification (v + 1 rows) and autoregressive decoding (one row)
//!   agree at near-ties, and parallel and sequential drafts always agree. A device that was told to give
//!   this guarantee up reports it ([`Device::is_row_invariant`]).
//! - **Checked operands.** Shapes that do not fit each other give a [`DeviceError`], never a panic.

pub mod cpu;
mod drafts;
mod error;
pub mod gpu;
mod operands;
mod step;
mod verdicts;

use std::ops::Range;

pub use drafts::{DraftLogits, DraftRows, DraftToken, SlotRows};
pub use error::DeviceError;
pub use operands::{
    AttentionRows, CalibratorOutput, Chain, ChainScores, Corrections, LinearPart, Precision, QkTransform,
    Rope,
};
pub use step::{DraftTables, DraftingPass, StepTables};
pub use verdicts::{SequenceVerdict, StepResults, VerifyRows};

use crate::kernels::ModelShape;
pub use crate::layout::{AttentionShape, RowKind};
use crate::tensor::Tensor;

/// The operations of a decode step. The [module documentation](self) states the guarantees that all operations
/// share.
///
/// Activations are row-major `[rows, cols]` buffers. Operations with a row range read and write the same row
/// indices of their operands, unless their docs say otherwise.
///
/// A device may run behind its caller: only [`read`](Verification::read), [`read_rows`](Device::read_rows) and
/// [`edit_row`](Device::edit_row) wait for it. The device therefore looks up the outcome of a verification (the group to draft from, the
/// bonus token, the next position) in its own [`Results`](Device::Results), and the host waits once per step,
/// for verdicts and drafts.
pub trait Device: Send + Sync + 'static {
    /// A buffer of activations or logits, `[rows, cols]`.
    type Buffer: Send + Sync;
    /// A linear layer, possibly of several fused parts.
    type Linear: Send + Sync;
    /// A vector of weights: of a norm, a bias or an embedding.
    type Vector: Send + Sync;
    /// A paged KV cache over all layers.
    type Cache: Send;
    /// Memory for the verdicts and drafts of a step. Steps use it one after the other.
    type Results: Send;
    /// A forward pass that was checked once and laid out in memory that the device's operations read.
    type Pass<'a>
    where
        Self: 'a;
    /// The tables of a step, which a verification takes.
    type Tables<'a>
    where
        Self: 'a;
    /// A verification on the device, and the drafting after it.
    type Verification<'a>: Verification<Self>
    where
        Self: 'a;

    /// Checks that the device can run a model of these shapes.
    ///
    /// # Errors
    ///
    /// [`DeviceError::UnsupportedModel`] with the first limit that the model exceeds.
    fn check_model(&self, shape: &ModelShape) -> Result<(), DeviceError> {
        let _ = shape;
        Ok(())
    }

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

    /// Makes empty memory for [`verify`](Self::verify).
    fn new_results(&self) -> Self::Results;

    /// Sets the number of rows. Existing rows keep their contents; the contents of new rows are unspecified.
    fn resize(&self, buffer: &mut Self::Buffer, rows: usize) -> Result<(), DeviceError>;

    /// Prepares products of `layer` with up to `rows` rows, into logits or activations, on a device that has to search
    /// for the best algorithm. Called once before the first step.
    fn prepare(&self, layer: &Self::Linear, rows: usize, logits: bool) -> Result<(), DeviceError> {
        let _ = (layer, rows, logits);
        Ok(())
    }

    /// Returns whether a row's result has the same bits whatever other rows are computed with it. If not,
    /// decoding is not lossless.
    fn is_row_invariant(&self) -> bool {
        true
    }

    /// Returns whether steps are padded to one of a few numbers of rows, because the device repeats the launches of
    /// equal steps faster. Padding changes no result.
    fn pads_steps(&self) -> bool {
        false
    }

    /// Checks the tables of a step and lays them out on the device. Returns the pass, for the operations that use
    /// its rows, and the tables, for the verification.
    ///
    /// # Errors
    ///
    /// [`DeviceError`] if a row of the pass has no page in `cache`, or if memory for the tables runs out.
    fn begin<'a>(
        &'a self,
        tables: StepTables<'a, Self::Buffer>,
        cache: &Self::Cache,
    ) -> Result<(Self::Pass<'a>, Self::Tables<'a>), DeviceError>;

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

    /// Adds rows to the residual stream: `hidden[r] += delta[r]`.
    fn add(
        &self,
        delta: &Self::Buffer,
        rows: Range<usize>,
        hidden: &mut Self::Buffer,
    ) -> Result<(), DeviceError>;

    /// Applies [`add`](Self::add), then [`rms_norm`](Self::rms_norm) to the sum: the operations between two blocks of
    /// the model.
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

    /// Computes the calibrator's hidden layer: `x[r] = silu(x[r] + bonus[owner[r]])` for r in 0..owner.len(). Its
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

    /// Returns rows of logits, for which the host waits once, and not at all for no rows.
    fn read_rows(&self, logits: &mut Self::Buffer, rows: &[usize]) -> Result<Vec<Vec<f32>>, DeviceError> {
        let mut read = Vec::with_capacity(rows.len());
        for &row in rows {
            self.edit_row(logits, row, &mut |values| read.push(values.to_vec()))?;
        }
        Ok(read)
    }

    /// Lets `edit` change one row of logits on the host, which waits for the row. If `edit` leaves a
    /// [fault](crate::logits::LogitsFault), a verification that reaches the row finds it.
    fn edit_row(
        &self,
        logits: &mut Self::Buffer,
        row: usize,
        edit: &mut dyn FnMut(&mut [f32]),
    ) -> Result<(), DeviceError>;

    /// Returns the maximum number of rows of a product of the LM head `head` that [joins](Self::joins_head_products)
    /// candidates and slots. Their logits stay in memory until the next step. 0 on a device that never joins them.
    fn joined_head_rows(&self, head: &Self::Linear) -> usize {
        let _ = head;
        0
    }

    /// Returns whether one product of the LM head `head` computes the logits of candidates and of slots together. A
    /// joined product computes logits, before the verdict, for `candidates` rows that are verified and for all
    /// `slots` rows of the groups. Separate products do the candidates first, and after the verdict the `drafted`
    /// rows of the groups that the verdicts select. Both give the same bits. Not called for more rows than
    /// [`joined_head_rows`](Self::joined_head_rows).
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

    /// Copies the first `rows` rows of `draft`, with the statistics stored about their draws, to the first rows of
    /// `out`, which is resized.
    fn copy_draft(
        &self,
        draft: DraftLogits<'_, Self::Buffer>,
        rows: usize,
        out: &mut Self::Buffer,
    ) -> Result<(), DeviceError> {
        let end = draft.first_row.saturating_add(rows);
        self.gather(draft.logits, &(draft.first_row..end).collect::<Vec<_>>(), out)
    }

    /// Writes the warped scores of a proposal, rows of `scores`, to the first rows of `out`, which is resized: the draft
    /// tokens were drawn from the softmax of these rows elsewhere. The buffer can then be the [`DraftLogits`] of a
    /// verification, with the mark [`is_warped`](DraftLogits::is_warped).
    ///
    /// # Errors
    ///
    /// [`DeviceError`] if a row does not have the buffer's columns.
    fn upload_draft(&self, scores: &[Vec<f32>], out: &mut Self::Buffer) -> Result<(), DeviceError>;

    /// Applies the acceptance rule of each of the step's sequences to target logits, after the sequence's
    /// [edits](VerifyRows::edits), which may change the logits. The verdicts replace the
    /// contents of `results`, which the returned object uses.
    ///
    /// A second verification in the same memory ends the first,
    ///
    /// ```compile_fail,E0499
    /// # use flexdraft::device::{Device, DeviceError, StepResults, Verification};
    /// fn twice<'a, D: Device>(
    ///     device: &'a D,
    ///     tables: [D::Tables<'a>; 2],
    ///     logits: &mut D::Buffer,
    ///     results: &'a mut D::Results,
    /// ) -> Result<StepResults, DeviceError> {
    ///     let [first, second] = tables;
    ///     let mut first = device.verify(first, logits, results)?;
    ///     let second = device.verify(second, logits, results)?;
    ///     first.read()
    /// }
    /// ```
    ///
    /// and each step is verified once:
    ///
    /// ```compile_fail,E0382
    /// # use flexdraft::device::{Device, DeviceError};
    /// fn twice<'a, D: Device>(
    ///     device: &'a D,
    ///     tables: D::Tables<'a>,
    ///     logits: &mut D::Buffer,
    ///     [first, second]: [&'a mut D::Results; 2],
    /// ) -> Result<(), DeviceError> {
    ///     device.verify(tables, logits, first)?;
    ///     device.verify(tables, logits, second)?;
    ///     Ok(())
    /// }
    /// ```
    fn verify<'a>(
        &'a self,
        tables: Self::Tables<'a>,
        logits: &mut Self::Buffer,
        results: &'a mut Self::Results,
    ) -> Result<Self::Verification<'a>, DeviceError>;

    /// Calls `work`, the operations of a step, on the most suitable thread. A device with its own threads runs `work`
    /// on one of them, so that no operation has to wake the other threads.
    fn run<R: Send>(&self, work: impl FnOnce() -> R + Send) -> R {
        work()
    }
}

/// The verdicts of a [verification](Device::verify), which drafting is based on.
pub trait Verification<D: Device + ?Sized> {
    /// Drafts and the rows that the verdicts select for them.
    type Selection<'s>: DraftSelection<D>
    where
        Self: 's;

    /// Returns the verdicts if they are available without waiting: before [`read`](Self::read) on a device
    /// that does not run behind its caller, and after `read` on every device.
    fn verdicts_if_ready(&self) -> Option<&[SequenceVerdict]>;

    /// Lays out a pass for drafting: each mask group is for the accepted length of its verdict.
    ///
    /// If the verdicts are [ready](Self::verdicts_if_ready), the caller lays the pass out for the accepted
    /// lengths. Otherwise the caller lays the pass out for the largest possible accepted lengths, and the
    /// device moves each group to its place. Only the [step's own](StepTables::drafting) drafting pass is on the
    /// device already; another pass is uploaded now.
    ///
    /// # Errors
    ///
    /// [`DeviceError`] if a row has no page in `cache`, if the pass has other rows, or if memory runs out.
    fn begin_drafting<'p>(
        &'p self,
        drafting: DraftingPass<'p>,
        cache: &D::Cache,
    ) -> Result<D::Pass<'p>, DeviceError>;

    /// Writes the embedding of the bonus token of verdict `verdicts[i]`, a row of `table` `[vocab, cols]`, to row i of
    /// `out`, which is resized to `verdicts.len()` rows.
    fn embed_bonus(
        &mut self,
        table: &D::Linear,
        verdicts: &[usize],
        out: &mut D::Buffer,
    ) -> Result<(), DeviceError>;

    /// Selects, by the verdicts, the rows and bonus tokens of `drafts`. If the verdicts are
    /// [ready](Self::verdicts_if_ready), each accepted length must have a group. Otherwise, a sequence whose
    /// accepted length has no group gets a meaningless draft. Only the drafts of [`StepTables`] are on the device
    /// already; other drafts are uploaded now.
    fn select_drafts<'s>(&'s mut self, drafts: DraftTables<'s>) -> Result<Self::Selection<'s>, DeviceError>;

    /// Returns the number of rows drafted since the verification. This is the next draft's
    /// [`first_draw`](DraftLogits::first_draw) if all drafts of a step come from one buffer.
    fn drafted_rows(&self) -> usize;

    /// Waits for all work on the device and returns its results: the verdicts, and the drafts since the
    /// verification or since the last call.
    ///
    /// # Errors
    ///
    /// [`DeviceError::Faults`] if a kernel has reported a fault since the last call that does not belong to a
    /// verdict.
    fn read(&mut self) -> Result<StepResults, DeviceError>;
}

/// Drafts whose rows were [selected](Verification::select_drafts), but whose tokens were not drawn yet.
///
/// ```no_run
/// # use flexdraft::device::{
/// #     Corrections, Device, DeviceError, DraftSelection, DraftTables, StepResults, Verification,
/// # };
/// fn draft<D: Device>(
///     verification: &mut D::Verification<'_>,
///     drafts: DraftTables<'_>,
///     logits: &mut D::Buffer,
/// ) -> Result<StepResults, DeviceError> {
///     let selection = verification.select_drafts(drafts)?;
///     selection.draft(Corrections::NONE, logits)?;
///     verification.read()
/// }
/// ```
///
/// Each draft is drawn once,
///
/// ```compile_fail,E0382
/// # use flexdraft::device::{Corrections, Device, DeviceError, DraftSelection, DraftTables, Verification};
/// fn draft<D: Device>(
///     verification: &mut D::Verification<'_>,
///     drafts: DraftTables<'_>,
///     logits: &mut D::Buffer,
/// ) -> Result<(), DeviceError> {
///     let selection = verification.select_drafts(drafts)?;
///     selection.draft(Corrections::NONE, logits)?;
///     selection.draft(Corrections::NONE, logits)
/// }
/// ```
///
/// and before the results are read:
///
/// ```compile_fail,E0499
/// # use flexdraft::device::{Corrections, Device, DeviceError, DraftSelection, DraftTables, Verification};
/// fn draft<D: Device>(
///     verification: &mut D::Verification<'_>,
///     drafts: DraftTables<'_>,
///     logits: &mut D::Buffer,
/// ) -> Result<(), DeviceError> {
///     let selection = verification.select_drafts(drafts)?;
///     let results = verification.read()?;
///     selection.draft(Corrections::NONE, logits)
/// }
/// ```
pub trait DraftSelection<D: Device + ?Sized> {
    /// Writes the rows of the selected slots of `x` to `out`, which is resized. The rows of `x` are the
    /// rows that [`SlotRows`] names: rows of the pass, or rows of the logits.
    fn gather(&self, x: &D::Buffer, out: &mut D::Buffer) -> Result<(), DeviceError>;

    /// Writes the embedding of each draft's bonus token, a row of `table`, to `out`, which is resized.
    fn embed_bonus(&self, table: &D::Linear, out: &mut D::Buffer) -> Result<(), DeviceError>;

    /// Corrects the selected rows of `logits`, and samples the drafts from them: one token per row, draft after
    /// draft. The buffer keeps the distributions that were sampled from, for the [verification](Device::verify) of
    /// the drafts: its rows of logits, or after a [`Chain`] the ids that were scored and their logits.
    ///
    /// # Errors
    ///
    /// [`DeviceError`] if an operand does not fit.
    fn draft(
        self,
        corrections: Corrections<'_, D::Buffer, D::Linear>,
        logits: &mut D::Buffer,
    ) -> Result<(), DeviceError>;
}

//! The kernels of sampling, from logits to tokens: calibration, temperature, top-k, top-p and min-p, the draw, and the
//! statistics that acceptance reads.
//!
//! [`Kernels::sample`] reads the logits once. Each row of logits (of a draft slot, or of the target after a candidate)
//! has its own [`RowSampling`] and gives one [`RowStats`]. With a [`Calibration`], the kernel first corrects the
//! logits, `logits + W2 u + b2` (FlexDraft, arXiv 2605.20022, "Bonus-guided Calibration"), and rounds them to the
//! stored type. The stored logits therefore describe exactly the distribution that a draft is drawn from.
//!
//! Edits of logits ([`LogitRows::Edit`]), which logit processors make, act first. Edited logits are stored, so that
//! acceptance reads them too. [`crate::processors`] has the rules; the kernel computes each edit with the same f32
//! operations, and rounds the result to the stored type.
//!
//! [`crate::sampling`] has the rules and [`crate::random`] the random numbers. A draw is Gumbel-max with one random
//! number per id. A row's result has the same bits in any batch. Top-k, top-p and min-p keep exactly the ids that
//! [`warp`](crate::sampling::warp) keeps; weights are in fixed point (units of 2⁻⁴³ of the largest) instead of doubles.
//!
//! A NaN among the logits counts as −∞ and sets value 4 in the error word. Logits of +∞ share the probability equally;
//! if no logit is above −∞, id 0 has all of it, and the confidence is 0. No input gives an id outside the vocabulary.
//! The statistics of such rows name the [fault](RowStats::logits_fault), and acceptance ends a sequence at a faulty row
//! of its target.
//!
//! ```
//! # #[cfg(feature = "simt")] {
//! use flexdraft::runtime::{Simt, SimtOptions};
//! use flexdraft::kernels::Kernels;
//! use flexdraft::kernels::sampling::{LogitRows, RowSampling, RowStats, Sample, workspace_len};
//! use flexdraft::random::Stream;
//! use flexdraft::sampling::SamplingParams;
//!
//! let kernels = Kernels::new(Simt::new(SimtOptions::default()));
//! let stream = kernels.runtime().stream();
//!
//! // Two rows over a vocabulary of six ids, padded to a stride of eight.
//! let logits = vec![0.5f32, 3.0, 1.0, 3.0, -1.0, 0.0, 9.0, 9.0, 4.0, 1.0, 2.0, 0.0, 0.0, 0.0, 9.0, 9.0];
//! let top_two = SamplingParams { top_k: 2, ..SamplingParams::at_temperature(1.0) };
//! let sampling = [
//!     RowSampling::new(&SamplingParams::GREEDY, None)?,
//!     RowSampling::new(&top_two, Some(Stream::target_draw(7, 120)))?,
//! ];
//! let mut workspace = vec![0.0; workspace_len(2, 6, false)?];
//! let mut stats = [RowStats::default(); 2];
//! kernels.sample(
//!     &stream,
//!     Sample {
//!         vocab: 6,
//!         stride: 8,
//!         logits: LogitRows::Read(stream.view(&logits)),
//!         logit_index: None,
//!         sampling: stream.view(&sampling),
//!         starts: None,
//!         draft: None,
//!         calibration: None,
//!         workspace: stream.view_mut(&mut workspace),
//!         stats: stream.view_mut(&mut stats),
//!         error: None,
//!     },
//! )?;
//! assert_eq!(stats[0].token, 1);
//! assert_eq!(stats[1].kept, 2);
//! assert!([0, 2].contains(&stats[1].token));
//! # }
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod calibration;
mod edits;
mod logits;
mod row;

use std::ptr;

pub use calibration::Calibration;
pub use edits::{EditTables, Edits, LogitEdit, RowEdits};
pub use logits::{Logit, LogitKernels, LogitRows};
pub(super) use row::fault_of_code;
pub use row::{RowSampling, RowStats};

use self::calibration::CalibratedShape;
use super::limits::{self, ExceededLimit};
use super::operands::{Grid, Operands};
use super::params::sampling::{
    FLEXDRAFT_CALIBRATED_CHUNK, FLEXDRAFT_CHUNK, FLEXDRAFT_PARTIAL_FIELDS, FlexdraftSampleParams,
};
use super::params::shapes::{FLEXDRAFT_FINISH_SHARED, FLEXDRAFT_FINISH_THREADS, FLEXDRAFT_PLAIN_WARPS};
use super::{KernelError, Kernels};
use crate::runtime::{QueueId, Runtime, View, ViewMut};

/// The operands of [`Kernels::sample`].
#[derive(Debug)]
pub struct Sample<'a, L> {
    /// The number of token ids, 1 to 2²⁰.
    pub vocab: usize,
    /// Elements from one row of logits to the next: a multiple of 8, at least `vocab`. Elements beyond the vocabulary are
    /// not used.
    pub stride: usize,
    /// The logits to sample from, `[logit_rows, stride]`.
    pub logits: LogitRows<'a, L>,
    /// The index in `logits` of each row, `[rows]`; −1 makes a row padding, with stats of zero. Without an index, row r
    /// has logits row r. The index is on the device, so no code checks that it names each logits row once if logits are
    /// updated ([`select_drafts`](Kernels::select_drafts) makes such an index). If several rows name one logits row,
    /// each of its logits gets the update of one of these rows, or of several in turn, and the stats of these rows are
    /// computed from such logits: the outcome is unspecified but within the vocabulary, and no other memory changes.
    /// The threads race in accesses of equal size, whose possible outcomes the PTX ISA's memory consistency model
    /// bounds ("Mixed-size Data-races").
    pub logit_index: Option<View<'a, i32>>,
    /// How each row is warped (temperature, top-k, top-p and min-p) and drawn from, `[rows]`.
    pub sampling: View<'a, RowSampling>,
    /// The positions from which [`RowSampling::relative_to`] counts, `[sequences]`, 0 or above.
    pub starts: Option<View<'a, i32>>,
    /// The token of each row whose probability is wanted, `[rows]`; −1 for none.
    pub draft: Option<View<'a, i32>>,
    /// The calibrator's correction of the rows, if they are rows of a draft.
    pub calibration: Option<Calibration<'a>>,
    /// Workspace of at least [`workspace_len`] elements; its contents do not matter.
    pub workspace: ViewMut<'a, f32>,
    /// Written by the kernel: the statistics of each row, `[rows]`.
    pub stats: ViewMut<'a, RowStats>,
    /// The device error word `[1]`, optional. The kernel sets value 2 for a draft token outside the vocabulary, value
    /// 4 for a NaN among the logits, value 16 for a row or sequence index out of range, and value 32 if it needed
    /// calibrated logits again that were not stored (see [`LogitRows::Update`]): top-k, top-p and min-p then drop no
    /// id, and the draft token has probability 0.
    pub error: Option<ViewMut<'a, u32>>,
}

/// Returns the number of elements of [`Sample::workspace`] for `rows` rows.
///
/// # Errors
///
/// [`KernelError::Overflow`] if the number is too large.
pub fn workspace_len(rows: usize, vocab: usize, calibrated: bool) -> Result<usize, KernelError> {
    chunks(vocab, calibrated)
        .checked_mul(FLEXDRAFT_PARTIAL_FIELDS as usize)
        .and_then(|fields| fields.checked_mul(rows))
        .ok_or(KernelError::Overflow { kernel: "sample", what: "workspace" })
}

fn chunks(vocab: usize, calibrated: bool) -> usize {
    vocab.div_ceil(if calibrated { FLEXDRAFT_CALIBRATED_CHUNK } else { FLEXDRAFT_CHUNK } as usize)
}

impl<R: Runtime> Kernels<R> {
    /// Calibrates rows of logits, applies temperature and truncation, and samples a token from each: two launches.
    ///
    /// # Errors
    ///
    /// [`KernelError`]: an operand of the wrong length, alignment, type or queue, a shape that the kernels do not
    /// support, or a launch that failed.
    ///
    /// # Example
    ///
    /// A row of a draft. A calibrator of rank 8, whose W2 raises the logit of id 2, corrects the row, and the corrected
    /// logits are stored.
    ///
    /// ```
    /// use flexdraft::runtime::{Simt, SimtOptions};
    /// use flexdraft::kernels::Kernels;
    /// use flexdraft::kernels::sampling::{
    ///     Calibration, LogitRows, RowSampling, RowStats, Sample, workspace_len,
    /// };
    /// use flexdraft::sampling::SamplingParams;
    /// use half::bf16;
    ///
    /// let kernels = Kernels::new(Simt::new(SimtOptions::default()));
    /// let stream = kernels.runtime().stream();
    /// let (vocab, rank) = (5, 8);
    /// let mut logits = vec![0.0f32, 2.0, 1.0, 0.0, 0.0, 9.0, 9.0, 9.0];
    /// let hidden = vec![bf16::ONE; 8];
    /// let mut weight = vec![bf16::ZERO; vocab * rank];
    /// weight[2 * rank..3 * rank].fill(bf16::from_f32(0.25));
    /// let bias = [0.0, 0.0, 0.5, 0.0, 0.0];
    /// let mut workspace = vec![0.0; workspace_len(1, vocab, true)?];
    /// let mut stats = [RowStats::default()];
    /// kernels.sample(&stream, Sample {
    ///     vocab,
    ///     stride: 8,
    ///     logits: LogitRows::Update(stream.view_mut(&mut logits)),
    ///     logit_index: None,
    ///     sampling: stream.view(&[RowSampling::new(&SamplingParams::GREEDY, None)?]),
    ///     starts: None,
    ///     draft: None,
    ///     calibration: Some(Calibration {
    ///         rank,
    ///         hidden: stream.view(&hidden).into(),
    ///         weight: stream.view(&weight).into(),
    ///         bias: Some(stream.view(&bias)),
    ///     }),
    ///     workspace: stream.view_mut(&mut workspace),
    ///     stats: stream.view_mut(&mut stats),
    ///     error: None,
    /// })?;
    /// // 1 + 8 · ¼ + ½ is more than 2. Elements beyond the vocabulary do not change.
    /// assert_eq!(logits, [0.0, 2.0, 3.5, 0.0, 0.0, 9.0, 9.0, 9.0]);
    /// assert_eq!((stats[0].token, stats[0].max), (2, 3.5));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn sample<L: Logit>(&self, stream: &R::Stream, args: Sample<'_, L>) -> Result<(), KernelError> {
        let queue = self.runtime.queue(stream);
        let shape = SampleShape::new(&args)?;
        self.launch_pass(stream, &shape, &args)?;
        let (operands, params) = shape.operands(L::KERNELS.finish, queue, &args)?;
        let ctas = [shape.rows as u32, 1, 1];
        let (threads, shared_bytes) = (FLEXDRAFT_FINISH_THREADS, FLEXDRAFT_FINISH_SHARED);
        let grid = Grid { ctas, threads, shared_bytes };
        // SAFETY: `params` holds the operands' pointers and the shapes they were checked against.
        unsafe { operands.launch(&self.runtime, stream, grid, &params) }
    }

    /// Launches the first of the two launches of [`sample`](Self::sample) alone: it calibrates or edits the logits, and
    /// leaves the partial results of the rows in the workspace, which [`chain_choose`](Self::chain_choose) reads. The
    /// statistics do not change.
    ///
    /// # Errors
    ///
    /// The errors of [`sample`](Self::sample).
    ///
    /// # Example
    ///
    /// See [`chain_choose`](Self::chain_choose).
    pub fn sample_partials<L: Logit>(
        &self,
        stream: &R::Stream,
        args: Sample<'_, L>,
    ) -> Result<(), KernelError> {
        self.launch_pass(stream, &SampleShape::new(&args)?, &args)
    }

    /// Launches the pass over the logits.
    fn launch_pass<L: Logit>(
        &self,
        stream: &R::Stream,
        shape: &SampleShape,
        args: &Sample<'_, L>,
    ) -> Result<(), KernelError> {
        let (kernel, grid) = match &args.calibration {
            None => {
                let groups = (shape.chunks as u32).div_ceil(FLEXDRAFT_PLAIN_WARPS);
                let threads = 32 * FLEXDRAFT_PLAIN_WARPS;
                (L::KERNELS.plain, Grid { ctas: [shape.rows as u32, groups, 1], threads, shared_bytes: 0 })
            }
            Some(calibration) => {
                let allowed = self.runtime.limits().shared_bytes_per_cta;
                let chosen = CalibratedShape::choose(shape.rows, calibration.rank, allowed);
                let kernels = calibration.kernels::<L>("sample")?;
                let overflow = KernelError::Overflow { kernel: kernels.small, what: "rank" };
                let (tiling, shared_bytes) = chosen.ok_or(overflow)?;
                let ctas = if shape.rows == 0 { 0 } else { args.vocab.div_ceil(tiling.tile) as u32 };
                let grid = Grid { ctas: [ctas, 1, 1], threads: tiling.threads, shared_bytes };
                ((tiling.kernel)(&kernels), grid)
            }
        };
        let (operands, params) = shape.operands(kernel, self.runtime.queue(stream), args)?;
        // SAFETY: `params` holds the operands' pointers and the shapes they were checked against.
        unsafe { operands.launch(&self.runtime, stream, grid, &params) }
    }
}

/// The shapes of a launch, each known to fit the kernels' types.
struct SampleShape {
    rows: usize,
    logit_rows: usize,
    chunks: usize,
}

impl SampleShape {
    fn new<L: Logit>(args: &Sample<'_, L>) -> Result<Self, KernelError> {
        const KERNEL: &str = "sample";
        let within = |checked: Result<(), ExceededLimit>| {
            checked.map_err(|limit| KernelError::exceeded(KERNEL, limit))
        };
        within(limits::vocabulary(args.vocab))?;
        within(limits::stride(args.stride, args.vocab))?;
        let rows = args.sampling.len();
        within(limits::count("rows", rows))?;
        let logit_rows = args.logits.len() / args.stride;
        within(limits::count("logits rows", logit_rows))?;
        if let Some(starts) = &args.starts {
            within(limits::count("sequences", starts.len()))?;
        }
        if let Some(calibration) = &args.calibration {
            within(limits::rank(calibration.rank))?;
            calibration.kernels::<L>(KERNEL)?;
            if matches!(args.logits, LogitRows::Edit(..)) {
                let (what, found) = ("rank", calibration.rank as i64);
                let supported = "no calibration of edited logits";
                return Err(KernelError::Unsupported { kernel: KERNEL, what, found, supported });
            }
        }
        if args.logit_index.is_none() && logit_rows < rows {
            let expected = rows.checked_mul(args.stride);
            let expected = expected.ok_or(KernelError::Overflow { kernel: KERNEL, what: "logits" })?;
            let found = args.logits.len();
            return Err(KernelError::Length { kernel: KERNEL, operand: "logits", expected, found });
        }
        Ok(SampleShape { rows, logit_rows, chunks: chunks(args.vocab, args.calibration.is_some()) })
    }

    /// The operands and parameters of a launch of `kernel`.
    fn operands<L: Logit>(
        &self,
        kernel: &'static str,
        queue: QueueId,
        args: &Sample<'_, L>,
    ) -> Result<(Operands, FlexdraftSampleParams), KernelError> {
        let &SampleShape { rows, logit_rows, chunks } = self;
        let mut operands = Operands::new(kernel, queue);
        let len = logit_rows * args.stride;
        let updated = matches!(args.logits, LogitRows::Update(_)) && args.calibration.is_some();
        let logits = match &args.logits {
            LogitRows::Read(view) => operands.read("logits", view, len, 16)?.cast_mut(),
            LogitRows::Update(view) | LogitRows::Edit(view, _) => operands.write("logits", view, len, 16)?,
        };
        let (mut row_edits, mut edit_offsets, mut edits, mut masks) =
            (ptr::null(), ptr::null(), ptr::null(), ptr::null());
        let (mut offset_count, mut edit_count, mut mask_words) = (0, 0, 0);
        if let LogitRows::Edit(_, tables) = &args.logits {
            (offset_count, edit_count, mask_words) =
                (tables.offsets.len(), tables.edits.len(), tables.masks.len());
            row_edits = operands.read("row edits", &tables.rows, rows, 4)?.cast();
            edit_offsets = operands.read("edit offsets", &tables.offsets, offset_count, 4)?;
            edits = operands.read("edits", &tables.edits, edit_count, 4)?.cast();
            masks = operands.read("masks", &tables.masks, mask_words, 4)?;
        }
        let mut optional = |operand, view: &Option<View<'_, i32>>, len: Option<usize>| match view {
            Some(view) => operands.read(operand, view, len.unwrap_or(view.len()), 4),
            None => Ok(ptr::null()),
        };
        let logit_index = optional("logit_index", &args.logit_index, Some(rows))?;
        let starts = optional("starts", &args.starts, None)?;
        let draft = optional("draft", &args.draft, Some(rows))?;
        let sampling = operands.read("sampling", &args.sampling, rows, 8)?.cast();
        let (mut u, mut w2, mut b2, mut rank) = (ptr::null(), ptr::null(), ptr::null(), 0);
        if let Some(calibration) = &args.calibration {
            let by_rank = |count: usize, what| {
                count.checked_mul(calibration.rank).ok_or(KernelError::Overflow { kernel, what })
            };
            rank = calibration.rank;
            u = calibration.hidden.read(&mut operands, "hidden", by_rank(rows, "hidden")?)?;
            w2 = calibration.weight.read(&mut operands, "weight", by_rank(args.vocab, "weight")?)?;
            if let Some(bias) = &calibration.bias {
                b2 = operands.read("bias", bias, args.vocab, 4)?;
            }
        }
        let needed = workspace_len(rows, args.vocab, args.calibration.is_some())?;
        let params = FlexdraftSampleParams {
            logits: logits.cast(),
            logit_index,
            sampling,
            starts,
            draft,
            u,
            w2,
            b2,
            partials: operands.workspace("workspace", &args.workspace, needed, 4)?,
            stats: operands.write("stats", &args.stats, rows, 4)?.cast(),
            row_edits,
            edit_offsets,
            edits,
            masks,
            error: match &args.error {
                Some(error) => operands.write("error", error, 1, 4)?,
                None => ptr::null_mut(),
            },
            logit_stride: args.stride as i64,
            rows: rows as i32,
            logit_rows: logit_rows as i32,
            vocab: args.vocab as i32,
            rank: rank as i32,
            sequences: args.starts.as_ref().map_or(0, View::len) as i32,
            chunks: chunks as i32,
            store: i32::from(updated),
            logits_current: i32::from(args.calibration.is_none() || updated),
            offset_count: operands.i32("edit offsets", offset_count)?,
            edit_count: operands.i32("edits", edit_count)?,
            mask_words: operands.i32("mask words", mask_words)?,
            unused: 0,
        };
        Ok((operands, params))
    }
}

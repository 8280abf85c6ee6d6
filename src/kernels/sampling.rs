//! From logits to tokens: calibration, temperature, top-k, top-p and min-p, the draw, and what acceptance
//! needs to know of a row.
//!
//! [`Kernels::sample`] reads the logits once. A row of them (a draft slot's, or the target's after a
//! candidate) has its own [`RowSampling`] and gives one [`RowStats`]. With a [`Calibration`] the logits are
//! first corrected, `logits + W2 u + b2` (FlexDraft, arXiv 2605.20022, "Bonus-guided Calibration"), and
//! rounded to the type that they are stored in, so that the distribution a draft is drawn from is exactly the
//! one that the stored logits describe.
//!
//! [`crate::sampling`] has the rules and [`crate::random`] the random numbers: a draw is
//! Gumbel-max, one number an id. A row's result has the same bits whatever rows are beside it. Top-k, top-p
//! and min-p keep exactly what [`warp`](crate::sampling::warp) keeps, with weights in fixed point (units of
//! 2⁻⁴³ of the largest) in place of doubles.
//!
//! Logits that are NaN count as −∞ and set bit 4 of the error word. Logits of +∞ share the mass equally; in
//! a row with nothing above −∞ id 0 has all of it. No input gives an id outside the vocabulary.
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

use std::ptr;

use cudarc::driver::{DeviceRepr, ValidAsZeroBits};
use half::bf16;

use super::limits::{self, ExceededLimit};
use super::operands::{Grid, Operands};
use super::params::sampling::{
    FLEXDRAFT_CALIBRATED_CHUNK, FLEXDRAFT_CHUNK, FLEXDRAFT_PARTIAL_FIELDS, FlexdraftRowSampling,
    FlexdraftRowStats, FlexdraftSampleParams,
};
use super::params::shapes::*;
use super::{KernelError, Kernels};
use crate::random::Stream;
use crate::runtime::{Element, QueueId, Runtime, View, ViewMut};
use crate::sampling::{SamplingError, SamplingParams};

/// How one row is warped and drawn from: `FlexdraftRowSampling` of `cuda/sampling/params.h`, validated.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RowSampling(FlexdraftRowSampling);

// SAFETY: ten words without padding (40 bytes, as asserted beside it), each valid for any bits; the kernels
// give every value a defined meaning.
unsafe impl bytemuck::Zeroable for RowSampling {}
// SAFETY: as above.
unsafe impl bytemuck::Pod for RowSampling {}
// SAFETY: it is plain data, as the kernels declare it.
unsafe impl DeviceRepr for RowSampling {}
// SAFETY: every field may be zero.
unsafe impl ValidAsZeroBits for RowSampling {}

impl Element for RowSampling {}

impl RowSampling {
    /// Warping by `params` and a draw with the numbers of `numbers`; without them no draw: the token is the
    /// largest logit's, and `params` still decides the row's probabilities.
    ///
    /// # Errors
    ///
    /// A parameter out of its range.
    pub fn new(params: &SamplingParams, numbers: Option<Stream>) -> Result<Self, SamplingError> {
        params.validate()?;
        let (seed, purpose_and_slot, position) = numbers.map_or((0, 0, 0), |numbers| numbers.parts());
        Ok(RowSampling(FlexdraftRowSampling {
            seed,
            position,
            inverse_temperature: params.inverse_temperature().unwrap_or(0.0),
            top_p: params.top_p,
            min_score: lowest_score(params.min_p),
            // A vocabulary has fewer ids than that, so nothing is dropped.
            top_k: i32::try_from(params.top_k).unwrap_or(0),
            purpose_and_slot,
            sequence: -1,
        }))
    }

    /// The same with a position counted from that of sequence `sequence` in [`Sample::starts`], for a
    /// position that is known on the device only.
    #[must_use]
    pub fn relative_to(mut self, sequence: u32) -> Self {
        // What exceeds the type exceeds every number of sequences, and is reported like an index that does.
        self.0.sequence = i32::try_from(sequence).unwrap_or(i32::MAX);
        self
    }
}

/// The smallest f32 whose exponential, in double precision, is at least `min_p`: −∞ for 0.
fn lowest_score(min_p: f32) -> f32 {
    if min_p <= 0.0 {
        return f32::NEG_INFINITY;
    }
    let suffices = |score: f32| f64::from(score).exp() >= f64::from(min_p);
    let mut score = f64::from(min_p).ln() as f32;
    while !suffices(score) {
        score = score.next_up();
    }
    while suffices(score.next_down()) {
        score = score.next_down();
    }
    score
}

/// What is known of one row after sampling: `FlexdraftRowStats` of `cuda/sampling/params.h`.
///
/// The score of id x is 0 where its logit is the largest, and `(logit − max) · inverse_temperature` elsewhere. x is
/// kept if its score is above `cut_score`, or equal to it and x ≤ `cut_id`; then its probability is
/// `exp(score − log_sum)`, otherwise 0. At temperature 0, and where `max` is −∞, `token` has all of it.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct RowStats {
    /// The token drawn, or the largest logit's (ties to the lowest id).
    pub token: i32,
    /// The largest logit.
    pub max: f32,
    /// ln Σ exp(score) over the ids kept, natural; 0 at temperature 0.
    pub log_sum: f32,
    /// The probability of `token`.
    pub probability: f32,
    /// The largest probability of the softmax at temperature 1, nothing dropped.
    pub confidence: f32,
    /// The logit of `token`.
    pub token_logit: f32,
    /// The probability of the row's token in [`Sample::draft`]; 0 without one.
    pub draft_probability: f32,
    /// The reciprocal of the row's temperature ([`SamplingParams::inverse_temperature`]); 0 for greedy rows.
    pub inverse_temperature: f32,
    /// The lowest score that is kept; −∞ where nothing is dropped.
    pub cut_score: f32,
    /// The highest id of that score that is kept.
    pub cut_id: i32,
    /// How many ids are kept; the size of the vocabulary where nothing is dropped.
    pub kept: i32,
    padding: i32,
}

const _: () = assert!(size_of::<RowStats>() == size_of::<FlexdraftRowStats>());
const _: () = assert!(std::mem::offset_of!(RowStats, kept) == std::mem::offset_of!(FlexdraftRowStats, kept));

// SAFETY: twelve words, each valid for any bits.
unsafe impl bytemuck::Zeroable for RowStats {}
// SAFETY: as above.
unsafe impl bytemuck::Pod for RowStats {}
// SAFETY: it is plain data, as the kernels declare it.
unsafe impl DeviceRepr for RowStats {}
// SAFETY: every field may be zero.
unsafe impl ValidAsZeroBits for RowStats {}

impl Element for RowStats {}

mod sealed {
    pub trait Sealed {}
    impl Sealed for f32 {}
    impl Sealed for half::bf16 {}
}

/// A type that logits are stored in: `f32` or `bf16`.
pub trait Logit: Element + sealed::Sealed {
    #[doc(hidden)]
    const KERNELS: LogitKernels;
}

/// The kernels of one logit type.
#[doc(hidden)]
#[derive(Clone, Copy, Debug)]
pub struct LogitKernels {
    plain: &'static str,
    calibrated_small: &'static str,
    calibrated_large: &'static str,
    finish: &'static str,
    pub(super) accept: &'static str,
    pub(super) block_sums: &'static str,
}

impl Logit for f32 {
    const KERNELS: LogitKernels = LogitKernels {
        plain: "sample_rows_f32",
        calibrated_small: "calibrated_sample_f32_64x16",
        calibrated_large: "calibrated_sample_f32_128x64",
        finish: "sample_finish_f32",
        accept: "accept_f32",
        block_sums: "accept_block_sums_f32",
    };
}

impl Logit for bf16 {
    const KERNELS: LogitKernels = LogitKernels {
        plain: "sample_rows_bf16",
        calibrated_small: "calibrated_sample_bf16_64x16",
        calibrated_large: "calibrated_sample_bf16_128x64",
        finish: "sample_finish_bf16",
        accept: "accept_bf16",
        block_sums: "accept_block_sums_bf16",
    };
}

/// Logits `[logit_rows, stride]`, aligned to 16 bytes.
#[derive(Debug)]
pub enum LogitRows<'a, L> {
    /// They stay as they are; calibrated logits are not kept.
    Read(View<'a, L>),
    /// Calibrated logits take the place of the logits that they were computed from. Needed where the
    /// acceptance rule compares distributions, and where a row with a calibrator asks for top-k, top-p or
    /// min-p.
    Update(ViewMut<'a, L>),
}

impl<L: Element> LogitRows<'_, L> {
    fn len(&self) -> usize {
        match self {
            LogitRows::Read(view) => view.len(),
            LogitRows::Update(view) => view.len(),
        }
    }
}

/// The calibrator's last layer and what goes into it.
#[derive(Debug)]
pub struct Calibration<'a> {
    /// r, a multiple of 8.
    pub rank: usize,
    /// u = silu(W1 \[embed(b); h] + b1) `[rows, r]`, aligned to 16 bytes.
    pub hidden: View<'a, bf16>,
    /// W2 `[vocab, r]`, aligned to 16 bytes.
    pub weight: View<'a, bf16>,
    /// b2 `[vocab]`.
    pub bias: Option<View<'a, f32>>,
}

/// The operands of [`Kernels::sample`].
#[derive(Debug)]
pub struct Sample<'a, L> {
    /// Ids, 1 to 2²⁰.
    pub vocab: usize,
    /// Elements from one row of logits to the next: a multiple of 8, at least `vocab`. What lies between is
    /// not used.
    pub stride: usize,
    /// Logits `[logit_rows, stride]`.
    pub logits: LogitRows<'a, L>,
    /// `[rows]`: which row of logits a row is; −1 makes it padding, with stats of zero. Without it row r is
    /// logits row r. It is on the device, so no code checks that each logits row is named once where they are updated
    /// ([`select_drafts`](Kernels::select_drafts) makes such an index). Of one that is named more often every logit
    /// is what one of these rows, or several after each other, make of it, and their stats are of such logits: an
    /// unspecified outcome within the vocabulary, and nothing else is touched. The threads meet in accesses of equal
    /// size, whose outcome the PTX ISA's memory consistency model bounds ("Mixed-size Data-races").
    pub logit_index: Option<View<'a, i32>>,
    /// `[rows]`
    pub sampling: View<'a, RowSampling>,
    /// `[sequences]`: what the positions of [`RowSampling::relative_to`] count from, 0 or above.
    pub starts: Option<View<'a, i32>>,
    /// `[rows]`: tokens whose probability is asked for, −1 for none.
    pub draft: Option<View<'a, i32>>,
    /// The correction of these rows, if they are a draft's.
    pub calibration: Option<Calibration<'a>>,
    /// [`workspace_len`] elements or more; what is in it does not matter.
    pub workspace: ViewMut<'a, f32>,
    /// `[rows]`, written.
    pub stats: ViewMut<'a, RowStats>,
    /// `[1]`, the device error word: bit 2 a draft token outside the vocabulary, 4 a NaN among the logits,
    /// 16 a row or sequence index out of range, 32 calibrated logits that were needed again but are not
    /// kept (see [`LogitRows::Update`]; nothing is dropped then, and the draft token has probability 0).
    pub error: Option<ViewMut<'a, u32>>,
}

/// Elements of [`Sample::workspace`] for `rows` rows.
///
/// # Errors
///
/// [`KernelError::Overflow`].
pub fn workspace_len(rows: usize, vocab: usize, calibrated: bool) -> Result<usize, KernelError> {
    chunks(vocab, calibrated)
        .checked_mul(FLEXDRAFT_PARTIAL_FIELDS as usize)
        .and_then(|fields| fields.checked_mul(rows))
        .ok_or(KernelError::Overflow { kernel: "sample", what: "workspace" })
}

fn chunks(vocab: usize, calibrated: bool) -> usize {
    vocab.div_ceil(if calibrated { FLEXDRAFT_CALIBRATED_CHUNK } else { FLEXDRAFT_CHUNK } as usize)
}

/// A shape of the calibrated kernel: `FlexdraftCalibratedShape` of `cuda/common/shapes.h`.
#[derive(Clone, Copy, Debug)]
struct CalibratedShape {
    kernel: fn(&LogitKernels) -> &'static str,
    /// Ids of a CTA.
    tile: usize,
    threads: u32,
    /// Shared memory in bytes, and what each slice of the rank adds.
    fixed: u32,
    slice: u32,
}

/// 64 ids by 16 rows a CTA.
const SMALL: CalibratedShape = CalibratedShape {
    kernel: |kernels| kernels.calibrated_small,
    tile: FLEXDRAFT_SMALL_TILE as usize,
    threads: 32 * FLEXDRAFT_SMALL_WARPS_ACROSS_TILE * FLEXDRAFT_SMALL_WARPS_ACROSS_ROWS,
    fixed: FLEXDRAFT_SMALL_SHARED,
    slice: FLEXDRAFT_SMALL_SLICE_SHARED,
};
/// 128 ids by 64 rows a CTA.
const LARGE: CalibratedShape = CalibratedShape {
    kernel: |kernels| kernels.calibrated_large,
    tile: FLEXDRAFT_LARGE_TILE as usize,
    threads: 32 * FLEXDRAFT_LARGE_WARPS_ACROSS_TILE * FLEXDRAFT_LARGE_WARPS_ACROSS_ROWS,
    fixed: FLEXDRAFT_LARGE_SHARED,
    slice: FLEXDRAFT_LARGE_SLICE_SHARED,
};

impl CalibratedShape {
    /// Shared memory of a CTA: its part of W2, the ring of u, and the corrections in f32.
    fn shared_bytes(self, rank: usize) -> Option<u32> {
        let slices = u32::try_from(rank.div_ceil(FLEXDRAFT_SLICE as usize)).ok()?;
        slices.checked_mul(self.slice)?.checked_add(self.fixed)
    }

    /// For many rows the large shape, where it fits a CTA of `allowed` bytes: both give the same bits. With what it
    /// needs; none if that overflows.
    fn choose(rows: usize, rank: usize, allowed: u32) -> Option<(Self, u32)> {
        let large = LARGE.shared_bytes(rank).filter(|&bytes| bytes <= allowed);
        match large {
            Some(bytes) if rows > FLEXDRAFT_SMALL_ROWS as usize => Some((LARGE, bytes)),
            _ => Some((SMALL, SMALL.shared_bytes(rank)?)),
        }
    }
}

impl<B: Runtime> Kernels<B> {
    /// Calibrates rows of logits, applies temperature and truncation, and samples a token from each: two launches.
    ///
    /// # Errors
    ///
    /// [`KernelError`]: an operand of the wrong length, alignment or queue, a shape that the kernels do not
    /// support, or a launch that failed.
    ///
    /// # Example
    ///
    /// A draft's row, corrected by a calibrator of rank 8 whose W2 lifts id 2, and kept as it was drawn from.
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
    ///         hidden: stream.view(&hidden),
    ///         weight: stream.view(&weight),
    ///         bias: Some(stream.view(&bias)),
    ///     }),
    ///     workspace: stream.view_mut(&mut workspace),
    ///     stats: stream.view_mut(&mut stats),
    ///     error: None,
    /// })?;
    /// // 1 + 8 · ¼ + ½ is more than 2; what lies beyond the vocabulary stays.
    /// assert_eq!(logits, [0.0, 2.0, 3.5, 0.0, 0.0, 9.0, 9.0, 9.0]);
    /// assert_eq!((stats[0].token, stats[0].max), (2, 3.5));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn sample<L: Logit>(&self, stream: &B::Stream, args: Sample<'_, L>) -> Result<(), KernelError> {
        let queue = self.runtime.queue(stream);
        let shape = SampleShape::new(&args)?;
        let (kernel, grid) = match &args.calibration {
            None => {
                let groups = (shape.chunks as u32).div_ceil(FLEXDRAFT_PLAIN_WARPS);
                let threads = 32 * FLEXDRAFT_PLAIN_WARPS;
                (L::KERNELS.plain, Grid { ctas: [shape.rows as u32, groups, 1], threads, shared_bytes: 0 })
            }
            Some(calibration) => {
                let allowed = self.runtime.limits().shared_bytes_per_cta;
                let chosen = CalibratedShape::choose(shape.rows, calibration.rank, allowed);
                let overflow = KernelError::Overflow { kernel: L::KERNELS.calibrated_small, what: "rank" };
                let (tiling, shared_bytes) = chosen.ok_or(overflow)?;
                let ctas = if shape.rows == 0 { 0 } else { args.vocab.div_ceil(tiling.tile) as u32 };
                let grid = Grid { ctas: [ctas, 1, 1], threads: tiling.threads, shared_bytes };
                ((tiling.kernel)(&L::KERNELS), grid)
            }
        };
        let (operands, params) = shape.operands(kernel, queue, &args)?;
        // SAFETY: `params` holds the operands' pointers and the shapes they were checked against.
        unsafe { operands.launch(&self.runtime, stream, grid, &params) }?;

        let (operands, params) = shape.operands(L::KERNELS.finish, queue, &args)?;
        let ctas = [shape.rows as u32, 1, 1];
        let (threads, shared_bytes) = (FLEXDRAFT_FINISH_THREADS, FLEXDRAFT_FINISH_SHARED);
        let grid = Grid { ctas, threads, shared_bytes };
        // SAFETY: as above.
        unsafe { operands.launch(&self.runtime, stream, grid, &params) }
    }
}

/// Shapes of a launch, each known to fit the kernels' types.
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
            LogitRows::Update(view) => operands.write("logits", view, len, 16)?,
        };
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
            u = operands.read("hidden", &calibration.hidden, by_rank(rows, "hidden")?, 16)?.cast();
            w2 = operands.read("weight", &calibration.weight, by_rank(args.vocab, "weight")?, 16)?.cast();
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
        };
        Ok((operands, params))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shape_of_a_calibrated_pass() {
        let chosen = |rows, rank, kib: u32| {
            CalibratedShape::choose(rows, rank, kib << 10)
                .map(|(shape, bytes)| ((shape.kernel)(&bf16::KERNELS), bytes))
        };
        let small = |bytes| Some(("calibrated_sample_bf16_64x16", bytes));
        let large = |bytes| Some(("calibrated_sample_bf16_128x64", bytes));
        // 15 slots of 1 and 4 sequences, then of 16 and 64, at the released rank.
        for kib in [99, 163, 227] {
            assert_eq!([15, 60, 64].map(|rows| chosen(rows, 512, kib)), [small(84_736); 3], "{kib} KiB");
        }
        assert_eq!(
            [99, 163, 227].map(|kib| chosen(65, 512, kib)),
            [small(84_736), small(84_736), large(203_776)]
        );
        assert_eq!(
            [99, 163, 227].map(|kib| chosen(960, 256, kib)),
            [small(51_968), large(138_240), large(138_240)]
        );
        // A rank that fills a slice in part needs all of it.
        assert_eq!(chosen(1, 8, 99), small(27_392));
        assert_eq!(chosen(1, usize::MAX, 227), None);
    }

    #[test]
    fn min_p_as_a_score_is_exact() {
        assert_eq!(lowest_score(0.0), f32::NEG_INFINITY);
        for min_p in [1e-45, 1e-38, 1e-10, 0.01, 0.1, 0.25, 0.5, 0.9, 1.0 - f32::EPSILON / 2.0] {
            let score = lowest_score(min_p);
            assert!(f64::from(score).exp() >= f64::from(min_p), "{min_p}");
            assert!(f64::from(score.next_down()).exp() < f64::from(min_p), "{min_p}");
        }
    }
}

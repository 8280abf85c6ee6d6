//! The kernels of Chained Calibration, which draw the tokens of a draft one after the other, each from logits that are
//! corrected for the token of the previous slot.
//!
//! Three launches follow the pass over the calibrated logits ([`Kernels::sample_partials`]):
//!
//! 1. [`Kernels::chain_choose`] chooses C_j for each draft row j: the ids of the K largest logits ℓ_j; ties go to the
//!    lowest id, and NaN counts as −∞.
//! 2. [`Kernels::chain_score`] computes the scores of all pairs of chosen ids of neighbouring rows, as dot products of
//!    two factors: K × K scores per row, and K after the bonus token. The caller makes the factors by matrix products.
//! 3. [`Kernels::chain_walk`] draws the tokens row by row: s_j(x) = ℓ_j(x) + score(t, x), where t is the token that was
//!    drawn from the row before, or the bonus token. Warping, sampling and confidence use only the K ids of C_j; every
//!    other id has probability 0. The random number of an id is the same as in [`Kernels::sample`].
//!
//! The ids of C_j, s_j and the row's [`RowStats`] are the distribution q_j that acceptance compares
//! ([`ChosenRows`](super::acceptance::ChosenRows)). A score is one sum in f32 in a fixed order and is not rounded again, so
//! a draft has the same bits in any batch.
//!
//! If no s_j is above −∞, the token is id 0, with probability 1 and confidence 0, as in [`Kernels::sample`], and the
//! walk continues from the first id of C_j.

use super::limits;
use super::operands::{Grid, Operands};
use super::params::chain::{FlexdraftChainScoreParams, FlexdraftChooseParams, FlexdraftWalkParams};
use super::params::sampling::{FLEXDRAFT_CALIBRATED_CHUNK, FLEXDRAFT_CHUNK};
use super::params::shapes::{
    FLEXDRAFT_CHOOSE_SHARED, FLEXDRAFT_CHOOSE_THREADS, FLEXDRAFT_SCORE_THREADS, FLEXDRAFT_SCORE_TILE,
    FLEXDRAFT_WALK_SHARED, FLEXDRAFT_WALK_THREADS,
};
use super::sampling::{Logit, RowSampling, RowStats, workspace_len};
use super::selection::Draft;
use super::{KernelError, Kernels};
use crate::runtime::{Runtime, View, ViewMut};

/// The largest number of ids per slot that the kernels chain: one per lane of a warp.
pub const MAX_CHOSEN: usize = super::params::chain::FLEXDRAFT_CHAIN_LIMIT as usize;

/// The operands of [`Kernels::chain_choose`].
#[derive(Debug)]
pub struct ChainChoose<'a, L> {
    /// The number of token ids, 1 to 2²⁰.
    pub vocab: usize,
    /// Elements from one row of logits to the next: a multiple of 8, at least `vocab`.
    pub stride: usize,
    /// The calibrated logits, `[logit_rows, stride]`.
    pub logits: View<'a, L>,
    /// The index in `logits` of each row, `[rows]`; −1 makes a row padding, whose ids are 0 to `count` − 1 and whose
    /// logits are −∞. Without an index, row r has logits row r.
    pub logit_index: Option<View<'a, i32>>,
    /// The workspace of the [`Kernels::sample_partials`] or [`Kernels::sample`] call for the same rows, as that call left
    /// it: [`workspace_len`] elements. The workspace of any other call gives an unspecified choice within the vocabulary.
    pub partials: View<'a, f32>,
    /// Whether that call had a calibration.
    pub calibrated: bool,
    /// K: the number of ids chosen per row, 1 to [`MAX_CHOSEN`] and at most `vocab`.
    pub count: usize,
    /// Written by the kernel: the chosen ids of each row in descending order of their logits, `[rows, count]`.
    pub ids: ViewMut<'a, i32>,
    /// Written by the kernel: the logits of the chosen ids, NaN as −∞, `[rows, count]`.
    pub chosen: ViewMut<'a, f32>,
    /// The device error word `[1]`, optional. The kernel sets value 16 for an index outside the logits; the row is then
    /// padding.
    pub error: Option<ViewMut<'a, u32>>,
}

/// The operands of [`Kernels::chain_score`].
#[derive(Debug)]
pub struct ChainScore<'a, L> {
    /// The number of elements per factor, above 0.
    pub rank: usize,
    /// K: the number of chosen ids per row, 1 to [`MAX_CHOSEN`].
    pub count: usize,
    /// The number of drafts.
    pub drafts: usize,
    /// The factors of the tokens before: of the bonus token of each draft, then of the chosen ids of each row,
    /// `[drafts + rows · count, before_stride]`.
    pub before: View<'a, f32>,
    /// Elements from one factor in `before` to the next: a multiple of 8, at least `rank`.
    pub before_stride: usize,
    /// The factors of the chosen ids as scored tokens, `[rows · count, after_stride]`.
    pub after: View<'a, L>,
    /// Elements from one factor in `after` to the next: a multiple of 8, at least `rank`.
    pub after_stride: usize,
    /// The draft of each row, `[rows]`. The rows of a draft follow each other in the order of their slots.
    pub owners: View<'a, i32>,
    /// Written by the kernel: for each row, entry \[a\]\[b\] is the score of its id b after id a of the row before,
    /// `[rows, count, count]`. In the first row of a draft, the kernel writes only the entries \[0\]\[b\], the scores
    /// after the bonus token.
    pub scores: ViewMut<'a, f32>,
    /// The device error word `[1]`, optional. The kernel sets value 16 for a row whose draft does not exist, and writes
    /// no scores for the row.
    pub error: Option<ViewMut<'a, u32>>,
}

/// The operands of [`Kernels::chain_walk`].
#[derive(Debug)]
pub struct ChainWalk<'a> {
    /// The drafts with their rows, `[drafts]`, as in [`SelectDrafts`](super::selection::SelectDrafts). A row that no
    /// draft has keeps its logits and statistics. If several drafts have a row, the result of the row is that of one of
    /// them, or a mixture.
    pub drafts: View<'a, Draft>,
    /// The operand of [`ChainChoose::logit_index`], `[rows]`; the statistics of padding rows become zero.
    pub logit_index: Option<View<'a, i32>>,
    /// How each row is warped and drawn from, `[rows]`. Top-k counts among the chosen ids.
    pub sampling: View<'a, RowSampling>,
    /// The positions from which [`RowSampling::relative_to`] counts, `[sequences]`, 0 or above.
    pub starts: Option<View<'a, i32>>,
    /// K: the number of chosen ids per row, 1 to [`MAX_CHOSEN`].
    pub count: usize,
    /// The chosen ids of each row, `[rows, count]`.
    pub ids: View<'a, i32>,
    /// The scores of pairs of neighbouring tokens, `[rows, count, count]`, from [`Kernels::chain_score`].
    pub scores: View<'a, f32>,
    /// The logits ℓ_j of the chosen ids, which the kernel replaces by the chained logits s_j, NaN as −∞, `[rows, count]`.
    pub chosen: ViewMut<'a, f32>,
    /// Written by the kernel: the statistics of each row, `[rows]`, of logits that are s_j in C_j and −∞ elsewhere. The
    /// confidence is the largest probability of softmax(s_j) at temperature 1. Ids whose s_j is −∞ do not count as kept.
    pub stats: ViewMut<'a, RowStats>,
    /// The device error word `[1]`, optional. The kernel sets value 16 for a draft whose rows do not exist, and for a
    /// sequence that has no start.
    pub error: Option<ViewMut<'a, u32>>,
}

/// Returns the number of rows of an operand `[rows, count]`.
fn rows_of(
    operands: &Operands,
    operand: &'static str,
    len: usize,
    count: usize,
) -> Result<usize, KernelError> {
    operands.within(limits::chosen(count))?;
    let rows = len.checked_div(count).unwrap_or(0);
    if rows * count != len {
        let (kernel, expected, found) = (operands.kernel(), rows * count, len);
        return Err(KernelError::Length { kernel, operand, expected, found });
    }
    Ok(rows)
}

impl<R: Runtime> Kernels<R> {
    /// Chooses the ids of the `count` largest logits of each row. The kernel reads the largest logit of every chunk of
    /// the vocabulary, which the pass over the logits left, and `count` chunks.
    ///
    /// # Errors
    ///
    /// [`KernelError`] if operands do not fit each other.
    ///
    /// # Example
    ///
    /// ```
    /// use flexdraft::runtime::{Simt, SimtOptions};
    /// use flexdraft::kernels::Kernels;
    /// use flexdraft::kernels::chain::ChainChoose;
    /// use flexdraft::kernels::sampling::{
    ///     LogitRows, RowSampling, RowStats, Sample, workspace_len,
    /// };
    /// use flexdraft::sampling::SamplingParams;
    ///
    /// let kernels = Kernels::new(Simt::new(SimtOptions::default()));
    /// let stream = kernels.runtime().stream();
    /// let logits = vec![0.5f32, 3.0, f32::NAN, 3.0, 1.0, 9.0, 9.0, 9.0];
    /// let (mut workspace, mut stats) = (vec![0.0; workspace_len(1, 5, false)?], [RowStats::default()]);
    /// kernels.sample_partials(&stream, Sample {
    ///     vocab: 5,
    ///     stride: 8,
    ///     logits: LogitRows::Read(stream.view(&logits)),
    ///     logit_index: None,
    ///     sampling: stream.view(&[RowSampling::new(&SamplingParams::GREEDY, None)?]),
    ///     starts: None,
    ///     draft: None,
    ///     calibration: None,
    ///     workspace: stream.view_mut(&mut workspace),
    ///     stats: stream.view_mut(&mut stats),
    ///     error: None,
    /// })?;
    /// let (mut ids, mut chosen) = ([0; 3], [0.0; 3]);
    /// kernels.chain_choose(&stream, &ChainChoose {
    ///     vocab: 5,
    ///     stride: 8,
    ///     logits: stream.view(&logits),
    ///     logit_index: None,
    ///     partials: stream.view(&workspace),
    ///     calibrated: false,
    ///     count: 3,
    ///     ids: stream.view_mut(&mut ids),
    ///     chosen: stream.view_mut(&mut chosen),
    ///     error: None,
    /// })?;
    /// assert_eq!((ids, chosen), ([1, 3, 4], [3.0, 3.0, 1.0]));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn chain_choose<L: Logit>(
        &self,
        stream: &R::Stream,
        args: &ChainChoose<'_, L>,
    ) -> Result<(), KernelError> {
        let mut operands = Operands::new(L::KERNELS.chain_choose, self.runtime.queue(stream));
        operands.within(limits::vocabulary(args.vocab))?;
        operands.within(limits::stride(args.stride, args.vocab))?;
        operands.within(limits::chosen(args.count))?;
        operands.within(limits::chosen_of(args.count, args.vocab))?;
        let rows = rows_of(&operands, "ids", args.ids.len(), args.count)?;
        let logit_rows = args.logits.len() / args.stride;
        let logits = operands.product("logits", &[logit_rows, args.stride])?;
        if args.logit_index.is_none() && logit_rows < rows {
            let expected = operands.product("logits", &[rows, args.stride])?;
            let (kernel, found) = (operands.kernel(), args.logits.len());
            return Err(KernelError::Length { kernel, operand: "logits", expected, found });
        }
        let partials = workspace_len(rows, args.vocab, args.calibrated)?;
        let chunk_ids = if args.calibrated { FLEXDRAFT_CALIBRATED_CHUNK } else { FLEXDRAFT_CHUNK } as usize;
        let params = FlexdraftChooseParams {
            logits: operands.read("logits", &args.logits, logits, 16)?.cast(),
            logit_index: operands.read_optional("logit_index", args.logit_index.as_ref(), rows, 4)?,
            partials: operands.read("partials", &args.partials, partials, 4)?,
            ids: operands.write("ids", &args.ids, args.ids.len(), 4)?,
            chosen: operands.write("chosen", &args.chosen, args.ids.len(), 4)?,
            error: operands.error_word(args.error.as_ref())?,
            logit_stride: args.stride as i64,
            rows: operands.i32("rows", rows)?,
            logit_rows: operands.i32("logits rows", logit_rows)?,
            vocab: operands.i32("vocabulary", args.vocab)?,
            chunks: operands.i32("chunks", args.vocab.div_ceil(chunk_ids))?,
            chunk_ids: operands.i32("ids per chunk", chunk_ids)?,
            count: operands.i32("chosen ids", args.count)?,
        };
        let ctas = [params.rows.cast_unsigned(), 1, 1];
        let (threads, shared_bytes) = (FLEXDRAFT_CHOOSE_THREADS, FLEXDRAFT_CHOOSE_SHARED);
        let grid = Grid { ctas, threads, shared_bytes };
        // SAFETY: the parameters belong to this kernel, and its operands were checked against their shapes; the kernel
        // checks the rows that the index names.
        unsafe { operands.launch(&self.runtime, stream, grid, &params) }
    }

    /// Computes the scores of all pairs of chosen ids of neighbouring rows, as dot products of factors.
    ///
    /// # Errors
    ///
    /// [`KernelError`] if operands do not fit each other.
    ///
    /// # Example
    ///
    /// One draft of two rows with two chosen ids each, and factors of one element.
    ///
    /// ```
    /// use flexdraft::runtime::{Simt, SimtOptions};
    /// use flexdraft::kernels::Kernels;
    /// use flexdraft::kernels::chain::ChainScore;
    ///
    /// let kernels = Kernels::new(Simt::new(SimtOptions::default()));
    /// let stream = kernels.runtime().stream();
    /// // A factor has a stride of 8. The factors of the bonus token, then of the ids of both rows.
    /// let factors = |values: &[f32]| -> Vec<f32> {
    ///     values.iter().flat_map(|&value| [value, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]).collect()
    /// };
    /// let (before, after) = (factors(&[2.0, 3.0, 5.0, 9.0, 9.0]), factors(&[1.0, -1.0, 0.5, 4.0]));
    /// let mut scores = [0.0; 2 * 2 * 2];
    /// kernels.chain_score(&stream, &ChainScore {
    ///     rank: 1,
    ///     count: 2,
    ///     drafts: 1,
    ///     before: stream.view(&before),
    ///     before_stride: 8,
    ///     after: stream.view(&after),
    ///     after_stride: 8,
    ///     owners: stream.view(&[0, 0]),
    ///     scores: stream.view_mut(&mut scores),
    ///     error: None,
    /// })?;
    /// // After the bonus token, and after each id of the first row.
    /// assert_eq!(scores[..2], [2.0, -2.0]);
    /// assert_eq!(scores[4..], [1.5, 12.0, 2.5, 20.0]);
    /// # Ok::<(), flexdraft::kernels::KernelError>(())
    /// ```
    pub fn chain_score<L: Logit>(
        &self,
        stream: &R::Stream,
        args: &ChainScore<'_, L>,
    ) -> Result<(), KernelError> {
        let mut operands = Operands::new(L::KERNELS.chain_score, self.runtime.queue(stream));
        operands.within(limits::chosen(args.count))?;
        operands.within(limits::factor(args.rank))?;
        operands.within(limits::factor_stride(args.before_stride, args.rank))?;
        operands.within(limits::factor_stride(args.after_stride, args.rank))?;
        let rows = args.owners.len();
        let chosen = operands.product("rows", &[rows, args.count])?;
        let overflow = KernelError::Overflow { kernel: operands.kernel(), what: "before" };
        let before = args.drafts.checked_add(chosen).ok_or(overflow)?;
        let before = operands.product("before", &[before, args.before_stride])?;
        let after = operands.product("after", &[chosen, args.after_stride])?;
        let scores = operands.product("scores", &[chosen, args.count])?;
        let params = FlexdraftChainScoreParams {
            before: operands.read("before", &args.before, before, 16)?,
            after: operands.read("after", &args.after, after, 16)?.cast(),
            owners: operands.read("owners", &args.owners, rows, 4)?,
            scores: operands.write("scores", &args.scores, scores, 4)?,
            error: operands.error_word(args.error.as_ref())?,
            before_stride: args.before_stride as i64,
            after_stride: args.after_stride as i64,
            rows: operands.i32("rows", rows)?,
            drafts: operands.i32("drafts", args.drafts)?,
            count: operands.i32("chosen ids", args.count)?,
            rank: operands.i32("rank", args.rank)?,
        };
        let tiles = params.count.cast_unsigned().div_ceil(FLEXDRAFT_SCORE_TILE);
        let ctas = [params.rows.cast_unsigned(), tiles, 1];
        let grid = Grid { ctas, threads: FLEXDRAFT_SCORE_THREADS, shared_bytes: 0 };
        // SAFETY: the parameters belong to this kernel, and its operands were checked against their shapes; the kernel
        // checks the drafts that `owners` names.
        unsafe { operands.launch(&self.runtime, stream, grid, &params) }
    }

    /// Draws the tokens of each draft row by row, among the chosen ids of the row.
    ///
    /// # Errors
    ///
    /// [`KernelError`] if operands do not fit each other.
    ///
    /// # Example
    ///
    /// A draft of two rows with two chosen ids each, drawn greedily. The first row prefers id 7 after the bonus token, and
    /// the second row prefers id 4 after id 7.
    ///
    /// ```
    /// use flexdraft::runtime::{Simt, SimtOptions};
    /// use flexdraft::kernels::Kernels;
    /// use flexdraft::kernels::chain::ChainWalk;
    /// use flexdraft::kernels::sampling::{RowSampling, RowStats};
    /// use flexdraft::kernels::selection::{Draft, DraftGroups};
    /// use flexdraft::layout::GroupSet;
    /// use flexdraft::sampling::SamplingParams;
    ///
    /// let kernels = Kernels::new(Simt::new(SimtOptions::default()));
    /// let stream = kernels.runtime().stream();
    /// let groups = GroupSet::NONE;
    /// let draft = Draft::new(&DraftGroups { sequence: 0, groups, first_slot: 0, slots: 3, first_draft: 0 })?;
    /// let mut chosen = [2.0, 1.5, 1.0, 0.5];
    /// let mut stats = [RowStats::default(); 2];
    /// kernels.chain_walk(&stream, &ChainWalk {
    ///     drafts: stream.view(&[draft]),
    ///     logit_index: None,
    ///     sampling: stream.view(&[RowSampling::new(&SamplingParams::GREEDY, None)?; 2]),
    ///     starts: None,
    ///     count: 2,
    ///     ids: stream.view(&[5, 7, 5, 4]),
    ///     scores: stream.view(&[0.0, 1.0, 0.0, 0.0, 3.0, 0.0, -2.0, 3.0]),
    ///     chosen: stream.view_mut(&mut chosen),
    ///     stats: stream.view_mut(&mut stats),
    ///     error: None,
    /// })?;
    /// assert_eq!(stats.map(|row| row.token), [7, 4]);
    /// assert_eq!(chosen, [2.0, 2.5, -1.0, 3.5]);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn chain_walk(&self, stream: &R::Stream, args: &ChainWalk<'_>) -> Result<(), KernelError> {
        let mut operands = Operands::new("chain_walk", self.runtime.queue(stream));
        let (drafts, rows) = (args.drafts.len(), args.sampling.len());
        operands.within(limits::chosen(args.count))?;
        let chosen = operands.product("chosen", &[rows, args.count])?;
        let scores = operands.product("scores", &[chosen, args.count])?;
        let sequences = args.starts.as_ref().map_or(0, View::len);
        let params = FlexdraftWalkParams {
            drafts: operands.read("drafts", &args.drafts, drafts, 8)?.cast(),
            logit_index: operands.read_optional("logit_index", args.logit_index.as_ref(), rows, 4)?,
            sampling: operands.read("sampling", &args.sampling, rows, 8)?.cast(),
            starts: operands.read_optional("starts", args.starts.as_ref(), sequences, 4)?,
            ids: operands.read("ids", &args.ids, chosen, 4)?,
            scores: operands.read("scores", &args.scores, scores, 4)?,
            chosen: operands.write("chosen", &args.chosen, chosen, 4)?,
            stats: operands.write("stats", &args.stats, rows, 4)?.cast(),
            error: operands.error_word(args.error.as_ref())?,
            draft_count: operands.i32("drafts", drafts)?,
            rows: operands.i32("rows", rows)?,
            count: operands.i32("chosen ids", args.count)?,
            sequences: operands.i32("sequences", sequences)?,
        };
        let ctas = [params.draft_count.cast_unsigned(), 1, 1];
        let (threads, shared_bytes) = (FLEXDRAFT_WALK_THREADS, FLEXDRAFT_WALK_SHARED);
        let grid = Grid { ctas, threads, shared_bytes };
        // SAFETY: the parameters belong to this kernel, and its operands were checked against their shapes; the kernel
        // checks the rows and sequences of drafts.
        unsafe { operands.launch(&self.runtime, stream, grid, &params) }
    }
}

//! Chained Calibration: the tokens of a draft, drawn one after the other.

use candle_core::{DType, Result, Tensor};
use flexdraft::kernels::chain::{ChainChoose as Choose, ChainScore as Score, ChainWalk as Walk, MAX_CHOSEN};
use flexdraft::kernels::sampling::{Logit, RowSampling, RowStats};
use flexdraft::kernels::selection::Draft;

use crate::operands::Elements::{self, F32, Index, Logits};
use crate::operands::{ANY, dim, of_logits};
use crate::processor::{Kernels, launch};

/// The operands of [`Kernels::chain_choose`].
#[derive(Clone, Copy, Debug)]
pub struct ChainChoose<'a> {
    /// The number of token ids, 1 to 2²⁰.
    pub vocab: usize,
    /// The calibrated logits, `[logit_rows, stride]`, f32, bf16 or f16.
    pub logits: &'a Tensor,
    /// The index in `logits` of each row, `[rows]`; −1 makes a row padding. Without an index, row r has logits row r.
    pub logit_index: Option<&'a Tensor>,
    /// The partial results of [`sample_partials`](Kernels::sample_partials) or [`sample`](Kernels::sample) for the same
    /// rows, `[rows, partials]`.
    pub partials: &'a Tensor,
    /// Whether that call had a calibration.
    pub calibrated: bool,
    /// K: the number of ids chosen per row, 1 to 32 and at most `vocab`.
    pub count: usize,
}

/// The results of [`Kernels::chain_choose`].
#[derive(Clone, Debug)]
pub struct Chosen {
    /// The chosen ids of each row in descending order of their logits, `[rows, K]` of i32.
    pub ids: Tensor,
    /// The logits of the chosen ids, NaN as −∞, `[rows, K]` of f32.
    pub logits: Tensor,
}

/// The operands of [`Kernels::chain_score`].
#[derive(Clone, Copy, Debug)]
pub struct ChainScore<'a> {
    /// The number of elements per factor, above 0.
    pub rank: usize,
    /// K: the number of chosen ids per row, 1 to 32.
    pub count: usize,
    /// The number of drafts.
    pub drafts: usize,
    /// The factors of the previous tokens: of the bonus token of each draft, then of the chosen ids of each row,
    /// `[drafts + rows · K, stride]` of f32. The stride is a multiple of 8, at least `rank`.
    pub before: &'a Tensor,
    /// The factors of the chosen ids as scored tokens, `[rows · K, stride]`, f32, bf16 or f16.
    pub after: &'a Tensor,
    /// The draft of each row, `[rows]`. The rows of a draft follow each other in the order of their slots.
    pub owners: &'a Tensor,
}

/// The operands of [`Kernels::chain_walk`].
#[derive(Clone, Copy, Debug)]
pub struct ChainWalk<'a> {
    /// The drafts with their rows, a [`table`](crate::table()) of [`Draft`].
    pub drafts: &'a Tensor,
    /// The operand of [`ChainChoose::logit_index`].
    pub logit_index: Option<&'a Tensor>,
    /// How each row is warped and drawn from, a table of [`RowSampling`]. Top-k counts among the chosen ids.
    pub sampling: &'a Tensor,
    /// The positions from which [`RowSampling::relative_to`] counts, `[sequences]`.
    pub starts: Option<&'a Tensor>,
    /// The chosen ids of each row, whose logits the kernel replaces in place by the chained logits.
    pub chosen: &'a Chosen,
    /// The scores of pairs of neighbouring tokens, `[rows, K, K]` of f32, from [`Kernels::chain_score`].
    pub scores: &'a Tensor,
}

impl Kernels {
    /// Chooses the ids of the `count` largest logits of each row, ties to the lowest id. An index outside the logits gives
    /// the fault [`Row`](flexdraft::kernels::Fault::Row), and the row is padding.
    ///
    /// # Errors
    ///
    /// An [`Error`](crate::Error) if operands do not fit each other.
    pub fn chain_choose(&self, args: &ChainChoose<'_>) -> Result<Chosen> {
        of_logits!(args.logits, self.chain_choose_of(args))
    }

    fn chain_choose_of<L: Logit>(&self, args: &ChainChoose<'_>) -> Result<Chosen> {
        let mut operands = self.operands("chain_choose");
        let (rows, stride) = (dim(args.partials, 0), dim(args.logits, 1));
        let logits = operands.read("logits", args.logits, Logits, &[ANY, ANY])?;
        let logit_index = operands.optional("logit_index", args.logit_index, Index, &[rows])?;
        let partials = operands.read("partials", args.partials, F32, &[ANY, ANY])?;
        // The kernel refuses a larger count.
        let shape = [rows, args.count.min(MAX_CHOSEN)];
        let (ids, chosen_ids) = operands.output("ids", DType::I32, &shape)?;
        let (chosen, chosen_logits) = operands.output("chosen", DType::F32, &shape)?;
        let error = self.faults(&mut operands)?;
        launch!(self, operands, |loaded, stream, memory| {
            loaded.chain_choose(
                stream,
                &Choose::<L> {
                    vocab: args.vocab,
                    stride,
                    logits: memory.view(logits),
                    logit_index: memory.optional(logit_index),
                    partials: memory.view(partials),
                    calibrated: args.calibrated,
                    count: args.count,
                    ids: memory.view_mut(ids),
                    chosen: memory.view_mut(chosen),
                    error: Some(memory.view_mut(error)),
                },
            )
        })?;
        Ok(Chosen { ids: chosen_ids, logits: chosen_logits })
    }

    /// Returns the scores of all pairs of chosen ids of neighbouring rows, `[rows, K, K]` of f32: entry \[a\]\[b\] of a row
    /// is the score of its id b after id a of the row before. The first row of a draft has the scores after the bonus token
    /// in its entries \[0\]\[b\], and zeros in the others. A row whose draft does not exist gives the fault
    /// [`Row`](flexdraft::kernels::Fault::Row), and zeros.
    ///
    /// # Errors
    ///
    /// An [`Error`](crate::Error) if operands do not fit each other.
    pub fn chain_score(&self, args: &ChainScore<'_>) -> Result<Tensor> {
        of_logits!(args.after, self.chain_score_of(args))
    }

    fn chain_score_of<L: Logit>(&self, args: &ChainScore<'_>) -> Result<Tensor> {
        let mut operands = self.operands("chain_score");
        let (rows, count) = (dim(args.owners, 0), args.count);
        let before = operands.read("before", args.before, F32, &[ANY, ANY])?;
        let after = operands.read("after", args.after, Logits, &[ANY, ANY])?;
        let owners = operands.read("owners", args.owners, Index, &[ANY])?;
        // The kernel refuses a larger count.
        let chosen = count.min(MAX_CHOSEN);
        let (scores, result) = operands.output("scores", DType::F32, &[rows, chosen, chosen])?;
        let error = self.faults(&mut operands)?;
        launch!(self, operands, |loaded, stream, memory| {
            loaded.chain_score(
                stream,
                &Score::<L> {
                    rank: args.rank,
                    count,
                    drafts: args.drafts,
                    before: memory.view(before),
                    before_stride: dim(args.before, 1),
                    after: memory.view(after),
                    after_stride: dim(args.after, 1),
                    owners: memory.view(owners),
                    scores: memory.view_mut(scores),
                    error: Some(memory.view_mut(error)),
                },
            )
        })?;
        Ok(result)
    }

    /// Draws the tokens of each draft row by row, among the chosen ids of the row. Returns the statistics of each row,
    /// a [`table`](crate::table()) of [`RowStats`]; zeros for a row that no draft has. A draft whose rows do not exist,
    /// and a sequence without a start, give the fault [`Row`](flexdraft::kernels::Fault::Row).
    ///
    /// # Errors
    ///
    /// An [`Error`](crate::Error) if operands do not fit each other.
    pub fn chain_walk(&self, args: &ChainWalk<'_>) -> Result<Tensor> {
        let mut operands = self.operands("chain_walk");
        let (rows, count) = (dim(args.sampling, 0), dim(&args.chosen.ids, 1));
        let drafts = operands.read("drafts", args.drafts, Elements::of::<Draft>(), &[ANY])?;
        let logit_index = operands.optional("logit_index", args.logit_index, Index, &[rows])?;
        let sampling = operands.read("sampling", args.sampling, Elements::of::<RowSampling>(), &[ANY])?;
        let starts = operands.optional("starts", args.starts, Index, &[ANY])?;
        let ids = operands.read("ids", &args.chosen.ids, Index, &[rows, ANY])?;
        let scores = operands.read("scores", args.scores, F32, &[rows, count, count])?;
        let chosen = operands.write("chosen", &args.chosen.logits, F32, &[rows, count])?;
        let (stats, result) = operands.output_table::<RowStats>("stats", rows)?;
        let error = self.faults(&mut operands)?;
        launch!(self, operands, |loaded, stream, memory| {
            loaded.chain_walk(
                stream,
                &Walk {
                    drafts: memory.view(drafts),
                    logit_index: memory.optional(logit_index),
                    sampling: memory.view(sampling),
                    starts: memory.optional(starts),
                    count,
                    ids: memory.view(ids),
                    scores: memory.view(scores),
                    chosen: memory.view_mut(chosen),
                    stats: memory.view_mut(stats),
                    error: Some(memory.view_mut(error)),
                },
            )
        })?;
        Ok(result)
    }
}

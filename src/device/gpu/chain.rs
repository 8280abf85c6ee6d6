//! Chained Calibration on a GPU: draws the tokens of drafts one after the other, each from logits that are corrected
//! for the token of the previous slot. The host does not wait.
//!
//! The factors of all scores are computed before the first token is drawn, for every chosen id that a token may become:
//! matrix products for all drafts together, which give each row the same bits in any batch.

use std::ops::Range;

use super::buffer::{GpuBuffer, STATS_WORDS};
use super::check::{expect, index32};
use super::chosen::ChosenIds;
use super::context::Context;
use super::elementwise;
use super::linear::{GpuLinear, Linears};
use super::memory::GrowableMemory;
use super::products::Products;
use super::scratch::{Scratch, error_word};
use super::selected::{Selected, staged};
use super::tables::CachedTable;
use crate::device::{Chain, ChainScores, DeviceError};
use crate::kernels::chain::{ChainChoose, ChainScore, ChainWalk};
use crate::kernels::sampling::workspace_len;
use crate::runtime::Runtime;

const OPERATION: &str = "draft";

/// Memory for the factors and scores of chains, which every step uses again.
#[derive(Debug)]
pub(super) struct ChainMemory<R: Runtime> {
    /// The embeddings of the bonus tokens, then of the chosen ids.
    embedded: Option<GpuBuffer<R>>,
    /// The factors of the tokens before: of the bonus tokens, then of the chosen ids.
    before: Option<GpuBuffer<R>>,
    /// The factors of the chosen ids as scored tokens.
    after: Option<GpuBuffer<R>>,
    /// The hidden layer of the factors before, if scores depend on the slots' hidden rows.
    inner: Option<GpuBuffer<R>>,
    /// The part of the hidden layer that comes from the slots' hidden rows.
    hidden: Option<GpuBuffer<R>>,
    scores: GrowableMemory<R, f32>,
    /// The draft of each row.
    owners: CachedTable<R>,
}

impl<R: Runtime> Default for ChainMemory<R> {
    fn default() -> Self {
        ChainMemory {
            embedded: None,
            before: None,
            after: None,
            inner: None,
            hidden: None,
            scores: GrowableMemory::default(),
            owners: CachedTable::default(),
        }
    }
}

/// Returns a buffer [rows, cols] of logits or activations: the buffer in `slot` if it has as many columns.
fn buffer<'a, R: Runtime>(
    slot: &'a mut Option<GpuBuffer<R>>,
    queue: (&R, &R::Stream),
    [rows, cols]: [usize; 2],
    logits: bool,
) -> Result<&'a mut GpuBuffer<R>, DeviceError> {
    let kept = slot.take().filter(|buffer| buffer.cols() == cols && buffer.is_logits() == logits);
    let buffer = slot.insert(kept.unwrap_or_else(|| GpuBuffer::new(cols, logits)));
    buffer.resize(queue, rows)?;
    Ok(buffer)
}

/// Returns the number of ids that a chain chooses per slot.
pub(super) fn chosen_count(top_k: usize, vocab: usize) -> Result<usize, DeviceError> {
    match top_k.min(vocab) {
        0 => Err(DeviceError::Contract {
            operation: OPERATION,
            operand: "number of ids that the chain scores",
            expected: "at least 1",
            found: top_k.to_string(),
        }),
        count => Ok(count),
    }
}

/// The calibrated logits of draft rows, whose partial results are in the shared workspace.
pub(super) struct CalibratedRows<'a, R: Runtime> {
    /// The logits `[rows, stride]`, from row `among.start` of the buffer on.
    pub(super) logits: &'a R::Memory<f32>,
    pub(super) among: Range<usize>,
    pub(super) vocab: usize,
    pub(super) stride: usize,
    /// Whether a calibrator corrected the logits.
    pub(super) calibrated: bool,
}

/// The draws of a draft with a chain.
pub(super) struct ChainedDraws<'a, R: Runtime> {
    /// Memory for the chosen ids, with draws `draws` for this draft.
    pub(super) chosen: &'a mut ChosenIds<R>,
    /// Memory for the statistics of draws.
    pub(super) stats: &'a mut R::Memory<u64>,
    pub(super) draws: Range<usize>,
}

/// Draws the tokens of the selected drafts, from calibrated logits. `owners` has the draft of each row.
pub(super) fn draft<P: Products>(
    linears: Linears<'_, P>,
    chain: &Chain<'_, GpuBuffer<P::Runtime>, GpuLinear<P>>,
    calibrated: &CalibratedRows<'_, P::Runtime>,
    (selected, owners): (&mut Selected<P::Runtime>, &[usize]),
    memory: &mut ChainMemory<P::Runtime>,
    draws: ChainedDraws<'_, P::Runtime>,
) -> Result<(), DeviceError> {
    let context = linears.context;
    let ChainedDraws { chosen, stats, draws } = draws;
    let (count, rows, drafts) = (chosen.count, selected.rows, selected.drafts);
    let elements = draws.start * count..draws.end * count;
    choose(context, calibrated, selected, (chosen, elements.clone()))?;
    let Some(bonus) = selected.bonus.memory() else { return Ok(()) };
    let tokens = Tokens { bonus, drafts, chosen: &chosen.ids, elements: elements.clone() };
    factors(linears, chain, tokens, owners, memory)?;
    score(context, (rows, drafts, count), owners, memory)?;

    let Selected { late, tables, block, starts, draft_rows, .. } = selected;
    let staged = staged(late, block);
    let starts = starts.reserve(context.queue(), drafts)?;
    let draft_rows = draft_rows.reserve(context.queue(), rows)?;
    let scores = memory.scores.reserve(context.queue(), rows * count * count)?;
    let overflow = DeviceError::Overflow { operation: OPERATION, operand: "draws" };
    let words = draws.start * STATS_WORDS..draws.end * STATS_WORDS;
    let mut scratch = context.scratch();
    let args = ChainWalk {
        drafts: staged.view(context.queue(), &tables.drafts)?,
        logit_index: Some(context.input(draft_rows, 0..rows)?),
        sampling: staged.view(context.queue(), &tables.row_sampling)?,
        starts: Some(context.input(starts, 0..drafts)?),
        count,
        ids: context.input(&chosen.ids, elements.clone())?,
        scores: context.input(scores, 0..rows * count * count)?,
        chosen: context.output(&mut chosen.logits, elements)?,
        stats: context.output(stats, words)?.cast().ok_or(overflow)?,
        error: Some(error_word(context.queue(), &mut scratch.error)?),
    };
    Ok(context.kernels.chain_walk(&context.stream, &args)?)
}

/// Chooses the most likely ids of each row.
fn choose<R: Runtime>(
    context: &Context<R>,
    calibrated: &CalibratedRows<'_, R>,
    selected: &mut Selected<R>,
    (chosen, elements): (&mut ChosenIds<R>, Range<usize>),
) -> Result<(), DeviceError> {
    let &CalibratedRows { logits, ref among, vocab, stride, calibrated } = calibrated;
    let rows = selected.rows;
    let draft_rows = selected.draft_rows.reserve(context.queue(), rows)?;
    let mut scratch = context.scratch();
    let Scratch { workspace, error, .. } = &mut *scratch;
    let partials = workspace_len(rows, vocab, calibrated)?;
    let args = ChainChoose {
        vocab,
        stride,
        logits: context.input(logits, among.start * stride..among.end * stride)?,
        logit_index: Some(context.input(draft_rows, 0..rows)?),
        partials: context.input(workspace.reserve(context.queue(), partials)?, 0..partials)?,
        calibrated,
        count: chosen.count,
        ids: context.output(&mut chosen.ids, elements.clone())?,
        chosen: context.output(&mut chosen.logits, elements)?,
        error: Some(error_word(context.queue(), error)?),
    };
    Ok(context.kernels.chain_choose(&context.stream, &args)?)
}

/// The tokens that a chain scores or scores after.
struct Tokens<'a, R: Runtime> {
    /// The bonus token of each of `drafts` drafts.
    bonus: &'a R::Memory<i32>,
    drafts: usize,
    /// Memory with the chosen ids of each row, which are its elements `elements`.
    chosen: &'a R::Memory<i32>,
    elements: Range<usize>,
}

/// Computes the factors of the scores in `memory`: of every token before a slot, and of every scored id.
fn factors<P: Products>(
    linears: Linears<'_, P>,
    chain: &Chain<'_, GpuBuffer<P::Runtime>, GpuLinear<P>>,
    Tokens { bonus, drafts, chosen, elements }: Tokens<'_, P::Runtime>,
    owners: &[usize],
    memory: &mut ChainMemory<P::Runtime>,
) -> Result<(), DeviceError> {
    let (context, queue) = (linears.context, linears.context.queue());
    let (ids, rows) = (elements.len(), owners.len());
    let tokens = drafts + ids;
    let chosen = || context.input(chosen, elements.clone());
    let ChainMemory { embedded, before, after, inner, hidden, .. } = memory;
    let embedded = buffer(embedded, queue, [tokens, chain.embed.in_cols], false)?;
    linears.embed_ids(chain.embed, context.input(bonus, 0..drafts)?, 0, embedded)?;
    linears.embed_ids(chain.embed, chosen()?, drafts, embedded)?;
    match chain.scores {
        ChainScores::Pair { before: a, after: b } => {
            let rank = a.out_cols;
            expect(OPERATION, "chain's B", vec![rank, a.in_cols], vec![b.out_cols, b.in_cols])?;
            let before = buffer(before, queue, [tokens, rank], true)?;
            linears.multiply(a, embedded, 0..tokens, 0, before)?;
            let after = buffer(after, queue, [ids, rank], true)?;
            linears.multiply(b, embedded, drafts..tokens, 0, after)
        }
        ChainScores::Hidden { rows: slots, before_half, hidden_half, output, lm_head } => {
            let rank = before_half.out_cols;
            expect(OPERATION, "chain's hidden half", vec![rank], vec![hidden_half.out_cols])?;
            expect(
                OPERATION,
                "chain's output",
                vec![lm_head.in_cols, rank],
                vec![output.out_cols, output.in_cols],
            )?;
            let inner = buffer(inner, queue, [tokens, rank], false)?;
            linears.multiply(before_half, embedded, 0..tokens, 0, inner)?;
            let hidden = buffer(hidden, queue, [rows, rank], false)?;
            linears.multiply(hidden_half, slots, 0..rows, 0, hidden)?;
            elementwise::silu_add(context, hidden, &scored_rows(owners, drafts, ids), inner)?;
            let before = buffer(before, queue, [tokens, output.out_cols], true)?;
            linears.multiply(output, inner, 0..tokens, 0, before)?;
            let after = buffer(after, queue, [ids, lm_head.in_cols], false)?;
            linears.embed_ids(lm_head, chosen()?, 0, after)
        }
    }
}

/// Returns the row that is scored after each token: after the bonus token of each draft, then after each of the `ids`
/// chosen ids of all rows. No row is scored after the ids of the last row of a draft, whose entry is the row itself.
fn scored_rows(owners: &[usize], drafts: usize, ids: usize) -> Vec<usize> {
    let first = |draft| owners.partition_point(|&owner| owner < draft).min(owners.len().saturating_sub(1));
    let count = ids.checked_div(owners.len()).unwrap_or(0);
    let next = |(row, owner): (usize, &usize)| match owners.get(row + 1) {
        Some(next) if next == owner => row + 1,
        _ => row,
    };
    let after_ids = owners.iter().enumerate().map(next).flat_map(|row| std::iter::repeat_n(row, count));
    (0..drafts).map(first).chain(after_ids).collect()
}

/// Computes the scores of all pairs of neighbouring tokens from their factors.
fn score<R: Runtime>(
    context: &Context<R>,
    (rows, drafts, count): (usize, usize, usize),
    owners: &[usize],
    memory: &mut ChainMemory<R>,
) -> Result<(), DeviceError> {
    let ChainMemory { before, after, scores, owners: table, .. } = memory;
    let (Some(before), Some(after)) = (before, after) else { return Ok(()) };
    let host = owners.iter().map(|&owner| index32(OPERATION, "draft", owner));
    let host: Vec<i32> = host.collect::<Result<_, _>>()?;
    let mut scratch = context.scratch();
    let block = scratch.block();
    let owners = match block.indices(context.queue(), &host) {
        Some(owners) => owners?,
        None => context.input(table.holding(context.queue(), host)?, 0..rows)?,
    };
    let scores = scores.reserve(context.queue(), rows * count * count)?;
    let (before_len, before_stride) = ((drafts + rows * count) * before.stride(), before.stride());
    let (after_len, after_stride, rank) = (rows * count * after.stride(), after.stride(), before.cols());
    let before = context.input(before.logits(OPERATION)?, 0..before_len)?;
    let scores = context.output(scores, 0..rows * count * count)?;
    let error = Some(error_word(context.queue(), &mut scratch.error)?);
    let (kernels, stream) = (&context.kernels, &context.stream);
    if after.is_logits() {
        let after = context.input(after.logits(OPERATION)?, 0..after_len)?;
        let args = ChainScore {
            rank,
            count,
            drafts,
            before,
            before_stride,
            after,
            after_stride,
            owners,
            scores,
            error,
        };
        Ok(kernels.chain_score(stream, &args)?)
    } else {
        let after = context.input(after.activations(OPERATION, "scored ids")?, 0..after_len)?;
        let args = ChainScore {
            rank,
            count,
            drafts,
            before,
            before_stride,
            after,
            after_stride,
            owners,
            scores,
            error,
        };
        Ok(kernels.chain_score(stream, &args)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_is_scored_after_the_ids_of_the_row_before() {
        // Draft 0 has rows 0 and 1, draft 1 has none, draft 2 has row 2.
        assert_eq!(scored_rows(&[0, 0, 2], 3, 6), [0, 2, 2, 1, 1, 1, 1, 2, 2]);
        assert_eq!(scored_rows(&[0, 0], 2, 2), [0, 1, 1, 1]);
    }
}

//! Verification: samples the target's rows, and applies the acceptance rules. The host does not wait.

use std::ptr;

use super::buffer::{GpuBuffer, STATS_WORDS, Values};
use super::check::{expect, index};
use super::chosen::ChosenIds;
use super::context::Context;
use super::memory::GrowableMemory;
use super::report::StepReport;
use super::sampling::{SampleLaunches, SampledRowRange, sample};
use super::scratch::{Scratch, error_word};
use super::selected::row_sampling;
use super::table_block::TableBlock;
use super::tables::{StagedTables, TableRange};
use crate::acceptance::Rule;
use crate::device::{DeviceError, DraftLogits, VerifyRows};
use crate::kernels::KernelError;
use crate::kernels::acceptance::{
    Accept, DraftDistributions, MAX_COMMITTED, SampledRows, Verify, VerifySequence, accept_workspace_len,
};
use crate::kernels::sampling::{
    EditTables, Edits, LogitEdit, LogitRows, RowEdits, RowSampling, RowStats, workspace_len,
};
use crate::layout::GroupSet;
use crate::random::Stream;
use crate::runtime::Runtime;
use crate::sampling::SamplingParams;

const OPERATION: &str = "verify";

/// Memory that verifications use one after the other.
#[derive(Debug)]
pub(super) struct VerificationMemory<R: Runtime> {
    target_stats: GrowableMemory<R, RowStats>,
    /// The workspace of acceptance. It is not the shared workspace, where sampling left its partial results.
    workspace: GrowableMemory<R, f32>,
    /// Copies, side by side, of the logits that the drafts were drawn from and of the statistics of their draws, if
    /// several buffers hold them.
    draft_logits: GrowableMemory<R, f32>,
    draws: GrowableMemory<R, u64>,
    /// Copies of the chosen ids of drafts with a chain, in place of their logits.
    chosen: Option<ChosenIds<R>>,
    /// Counters of the CTAs that have arrived, zero between launches.
    arrived: GrowableMemory<R, u32>,
    committed: GrowableMemory<R, i32>,
}

impl<R: Runtime> Default for VerificationMemory<R> {
    fn default() -> Self {
        VerificationMemory {
            target_stats: GrowableMemory::default(),
            workspace: GrowableMemory::default(),
            draft_logits: GrowableMemory::default(),
            draws: GrowableMemory::default(),
            chosen: None,
            arrived: GrowableMemory::default(),
            committed: GrowableMemory::default(),
        }
    }
}

/// The tables of a verification, among the tables of its step.
#[derive(Clone, Debug, Default)]
pub(super) struct VerifyTables {
    /// The sampling parameters of each row of logits up to the last candidate.
    samplings: TableRange<RowSampling>,
    /// The request to verify each sequence, as kernels take it.
    requests: TableRange<Verify>,
    /// The draft tokens of all sequences.
    tokens: TableRange<i32>,
    /// The drafts that are copied because several buffers hold their distributions.
    copied: CopiedDrafts,
    /// The logit processors' edits of the rows of logits, if a sequence has any.
    edits: Option<EditRanges>,
}

/// The sizes of the memory to which drafts are copied side by side.
#[derive(Clone, Copy, Debug, Default)]
struct CopiedDrafts {
    /// Number of draft tokens.
    draws: usize,
    /// Number of rows of logits, which draft tokens of a chain do not have.
    rows: usize,
}

impl CopiedDrafts {
    /// Adds a draft of `drafted` tokens.
    fn add<R: Runtime>(&mut self, draft: &DraftLogits<'_, GpuBuffer<R>>, drafted: usize) {
        self.draws += drafted;
        self.rows += if draft.logits.chosen().is_some() { 0 } else { drafted };
    }
}

/// The tables of the logit processors' edits, among the tables of a step.
#[derive(Clone, Debug)]
struct EditRanges {
    rows: TableRange<RowEdits>,
    offsets: TableRange<i32>,
    edits: TableRange<LogitEdit>,
    masks: TableRange<u32>,
    /// The number of ids of the vocabulary that the edits are for.
    vocab: usize,
}

impl VerifyTables {
    /// Adds the tables of a verification of `sequences` to `tables`. Their rows are among `logits` rows.
    pub(super) fn stage<R: Runtime>(
        tables: &mut StagedTables<R>,
        sequences: &[VerifyRows<'_, GpuBuffer<R>>],
        logits: usize,
    ) -> Result<Self, DeviceError> {
        if sequences.is_empty() {
            return Ok(Self::default());
        }
        // The verification reads the rows up to the last candidate.
        let last = |s: &VerifyRows<'_, _>| s.first_row.saturating_add(s.draft.len());
        let last = sequences.iter().map(last).max().unwrap_or(0);
        index(OPERATION, "row", last, logits)?;
        let rows = last + 1;
        let mut samplings = vec![row_sampling(OPERATION, &SamplingParams::GREEDY, None)?; rows];
        let (mut tokens, mut requests) = (Vec::new(), Vec::new());
        let drafts = DraftBuffers::of(sequences);
        let mut copied = CopiedDrafts::default();
        for sequence in sequences {
            let drafted = sequence.draft.len();
            let greedy = sequence.sampling.is_greedy();
            let rule = if greedy { Rule::Match } else { sequence.rule };
            let draws = !greedy && (rule == Rule::Match || drafted == 0);
            for (i, sampling) in samplings.iter_mut().skip(sequence.first_row).take(drafted + 1).enumerate() {
                let position = sequence.start.saturating_add(i + 1);
                let numbers = draws.then(|| Stream::target_draw(sequence.seed, position));
                *sampling = row_sampling(OPERATION, sequence.sampling, numbers)?;
            }
            let mut request = VerifySequence {
                rule,
                seed: sequence.seed,
                position: sequence.start,
                drafts: drafted,
                first_target: sequence.first_row,
                first_draft: None,
                first_token: tokens.len(),
                groups: GroupSet::default(),
            };
            requests.push(match compared(sequence) {
                None => Verify::new(&request)?,
                Some(draft) => {
                    let (row, draw) = match &drafts {
                        DraftBuffers::One(_) => (draft.first_row, draft.first_draw),
                        DraftBuffers::Several => (copied.rows, copied.draws),
                    };
                    copied.add(&draft, drafted);
                    if draft.logits.chosen().is_some() {
                        Verify::new(&request)?.with_chained_draft_at(draw)?
                    } else {
                        request.first_draft = Some(row);
                        Verify::new(&request)?.with_draft_stats_at(draw)?
                    }
                }
            });
            // A token id above `i32::MAX` is in no vocabulary, and never accepted.
            tokens.extend(sequence.draft.iter().map(|&token| i32::try_from(token).unwrap_or(i32::MAX)));
        }
        if let DraftBuffers::One(_) = drafts {
            copied = CopiedDrafts::default();
        }
        let (samplings, requests) = (tables.push(&samplings), tables.push(&requests));
        Ok(Self { samplings, requests, tokens: tables.push(&tokens), copied, edits: None })
    }

    /// Adds the tables of the sequences' edits. Their lengths differ from step to step, so that they come after the other
    /// tables of the step, whose places then stay the same.
    pub(super) fn stage_edits<R: Runtime>(
        &mut self,
        tables: &mut StagedTables<R>,
        sequences: &[VerifyRows<'_, GpuBuffer<R>>],
        vocab: usize,
    ) -> Result<(), DeviceError> {
        let edits = edit_tables(sequences, self.samplings.len(), vocab)?;
        self.edits = edits.map(|edits| EditRanges {
            rows: tables.push(&edits.rows),
            offsets: tables.push(&edits.offsets),
            edits: tables.push(&edits.edits),
            masks: tables.push(&edits.masks),
            vocab,
        });
        Ok(())
    }
}

/// Applies each sequence's acceptance rule, and leaves the verdicts in `report`. The tables are in `block`.
pub(super) fn verify<R: Runtime>(
    context: &Context<R>,
    logits: &mut GpuBuffer<R>,
    (sequences, staged): (&[VerifyRows<'_, GpuBuffer<R>>], &VerifyTables),
    block: &TableBlock<R>,
    memory: &mut VerificationMemory<R>,
    report: &mut StepReport<R>,
) -> Result<(), DeviceError> {
    let tables = &block.tables;
    let VerifyTables { samplings, requests, tokens, copied, edits } = staged;
    let (batch, vocab, stride) = (sequences.len(), logits.cols(), logits.stride());
    if batch == 0 {
        return Ok(());
    }
    let (rows, copied) = (samplings.len(), *copied);
    logits.expect_rows(OPERATION, "logits", vocab, rows)?;
    let drafts = DraftBuffers::of(sequences);
    let chained = chosen_count(sequences)?;
    for sequence in sequences {
        let Some(DraftLogits { logits, first_row, first_draw, .. }) = compared(sequence) else { continue };
        let drafted = sequence.draft.len();
        let end = if logits.chosen().is_some() { 0 } else { first_row.saturating_add(drafted) };
        logits.expect_rows(OPERATION, "draft_logits", vocab, end)?;
        logits.expect_draws(OPERATION, (first_row, first_draw), drafted)?;
    }
    let draft_logits = memory.draft_logits.reserve(context.queue(), copied.rows * stride)?;
    let draws = memory.draws.reserve(context.queue(), copied.draws * STATS_WORDS)?;
    if copied.rows > 0 {
        copy_logits(context, sequences, draft_logits)?;
    }
    if copied.draws > copied.rows {
        memory.chosen = Some(copy_chosen(context, sequences, memory.chosen.take(), (copied.draws, chained))?);
    }
    if copied.draws > 0 {
        copy_draws(context, sequences, draws)?;
    }
    let target_stats = memory.target_stats.reserve(context.queue(), rows)?;
    let values = match edits {
        None => LogitRows::Read(context.input(logits.logits(OPERATION)?, 0..rows * stride)?),
        Some(EditRanges { rows: row_edits, offsets, edits, masks, vocab: edited }) => {
            expect(OPERATION, "columns of logits", vec![*edited], vec![vocab])?;
            let (values, _) = logits.logits_and_draws_mut(OPERATION)?;
            let edits = Edits {
                rows: tables.view(context.queue(), row_edits)?,
                offsets: tables.view(context.queue(), offsets)?,
                edits: tables.view(context.queue(), edits)?,
                masks: tables.view(context.queue(), masks)?,
            };
            LogitRows::Edit(context.output(values, 0..rows * stride)?, edits)
        }
    };
    let rows_to_sample =
        SampledRowRange { vocab, stride, logits: values, logit_index: None, starts: None, calibration: None };
    let samplings = tables.view(context.queue(), samplings)?;
    sample(context, SampleLaunches::Draw, rows_to_sample, samplings, context.output(target_stats, 0..rows)?)?;
    let overflow = DeviceError::Overflow { operation: OPERATION, operand: "draws" };
    let draft = match &drafts {
        DraftBuffers::One(buffer) => {
            let drawn = buffer.drawn();
            let chosen = buffer.chosen().map(|chosen| chosen.rows(context, drawn.count)).transpose()?;
            let logits = match &chosen {
                None => Some(context.input(buffer.logits(OPERATION)?, 0..drawn.end * stride)?),
                Some(_) => None,
            };
            Some(DraftDistributions { logits, chosen, stats: buffer.draws(OPERATION, context)? })
        }
        DraftBuffers::Several if copied.draws == 0 => None,
        DraftBuffers::Several => {
            let stats = context.input(draws, 0..copied.draws * STATS_WORDS)?.cast().ok_or(overflow)?;
            let chosen = memory.chosen.as_ref().filter(|_| copied.draws > copied.rows);
            let chosen = chosen.map(|chosen| chosen.rows(context, copied.draws)).transpose()?;
            let logits = (copied.rows > 0).then(|| context.input(draft_logits, 0..copied.rows * stride));
            Some(DraftDistributions { logits: logits.transpose()?, chosen, stats })
        }
    };
    let arrived = memory.arrived.reserve(context.queue(), batch)?;
    let committed = memory.committed.reserve(context.queue(), batch * MAX_COMMITTED)?;
    let needed = accept_workspace_len(batch, vocab)
        .ok_or(KernelError::Overflow { kernel: "accept", what: "workspace" })?;
    let workspace = memory.workspace.reserve(context.queue(), needed)?;
    let mut scratch = context.scratch();
    let Scratch { workspace: partials, error, .. } = &mut *scratch;
    // Sampling left its partial results in the shared workspace. The same length reserves the same memory.
    let partials_len = workspace_len(rows, vocab, false)?;
    let partials = partials.reserve(context.queue(), partials_len)?;
    let args = Accept {
        vocab,
        stride,
        sequences: tables.view(context.queue(), requests)?,
        any_block: sequences
            .iter()
            .any(|s| s.rule == Rule::Block && !s.sampling.is_greedy() && !s.draft.is_empty()),
        tokens: tables.view(context.queue(), tokens)?,
        target: SampledRows {
            logits: context.input(logits.logits(OPERATION)?, 0..rows * stride)?,
            stats: context.input(target_stats, 0..rows)?,
        },
        target_partials: Some(context.input(partials, 0..partials_len)?),
        draft,
        workspace: context.view_mut(workspace),
        arrived: context.output(arrived, 0..batch)?,
        verdicts: report.verdicts_mut(OPERATION, context)?,
        committed: context.output(committed, 0..batch * MAX_COMMITTED)?,
        error: Some(error_word(context.queue(), error)?),
    };
    Ok(context.kernels.accept(&context.stream, &args)?)
}

/// Returns the tables of the logit processors' edits of `rows` rows of logits, or `None` if no sequence has edits.
fn edit_tables<R: Runtime>(
    sequences: &[VerifyRows<'_, GpuBuffer<R>>],
    rows: usize,
    vocab: usize,
) -> Result<Option<EditTables>, DeviceError> {
    let mut tables = None;
    for sequence in sequences {
        let Some(edits) = sequence.edits.filter(|edits| !edits.is_empty()) else { continue };
        let tables = tables.get_or_insert_with(|| EditTables::new(rows));
        tables.push(sequence.first_row, sequence.draft.len() + 1, edits, vocab)?;
    }
    Ok(tables)
}

/// Returns the number of chosen ids per row of the drafts that have a chain, and 0 if none has.
fn chosen_count<R: Runtime>(sequences: &[VerifyRows<'_, GpuBuffer<R>>]) -> Result<usize, DeviceError> {
    let counts = sequences.iter().filter_map(compared).map(|draft| draft.logits.drawn().chosen);
    let mut counts = counts.filter(|&count| count > 0);
    let first = counts.next().unwrap_or(0);
    match counts.find(|&count| count != first) {
        None => Ok(first),
        Some(other) => Err(DeviceError::Contract {
            operation: OPERATION,
            operand: "draft_logits",
            expected: "drafts that have the same number of ids per slot, if they have a chain",
            found: format!("drafts from {first} and from {other} ids per slot"),
        }),
    }
}

/// Copies the logits that the sequences' drafts without a chain were drawn from side by side.
fn copy_logits<R: Runtime>(
    context: &Context<R>,
    sequences: &[VerifyRows<'_, GpuBuffer<R>>],
    to: &mut R::Memory<f32>,
) -> Result<(), DeviceError> {
    let (runtime, stream) = context.queue();
    let mut first = 0;
    for sequence in sequences {
        let Some(DraftLogits { logits, first_row, .. }) = compared(sequence) else { continue };
        if logits.chosen().is_some() {
            continue;
        }
        let (rows, stride) = (first_row..first_row + sequence.draft.len(), logits.stride());
        runtime.copy(stream, logits.logits(OPERATION)?, logits.elements(&rows), to, first * stride)?;
        first += rows.len();
    }
    Ok(())
}

/// Copies the `count` chosen ids of the sequences' drafts with a chain, each to the place of its draw among all `draws`
/// draft tokens, into `memory` if it is large enough.
fn copy_chosen<R: Runtime>(
    context: &Context<R>,
    sequences: &[VerifyRows<'_, GpuBuffer<R>>],
    memory: Option<ChosenIds<R>>,
    (draws, count): (usize, usize),
) -> Result<ChosenIds<R>, DeviceError> {
    let suits = |memory: &ChosenIds<R>| memory.count == count && memory.draws >= draws;
    let mut to = match memory.filter(suits) {
        Some(memory) => memory,
        None => ChosenIds::new(context.queue(), draws, count)?,
    };
    let mut first = 0;
    for sequence in sequences {
        let Some(DraftLogits { logits, first_draw, .. }) = compared(sequence) else { continue };
        let drafted = sequence.draft.len();
        if let Some(chosen) = logits.chosen() {
            chosen.copy(context.queue(), first_draw..first_draw + drafted, &mut to, first)?;
        }
        first += drafted;
    }
    Ok(to)
}

/// Copies the statistics of the draws of the sequences' drafts side by side.
fn copy_draws<R: Runtime>(
    context: &Context<R>,
    sequences: &[VerifyRows<'_, GpuBuffer<R>>],
    to: &mut R::Memory<u64>,
) -> Result<(), DeviceError> {
    let (runtime, stream) = context.queue();
    let mut first = 0;
    for sequence in sequences {
        let Some(DraftLogits { logits, first_draw, .. }) = compared(sequence) else { continue };
        let Values::Logits { draws, .. } = &logits.values else { continue };
        let drafted = sequence.draft.len();
        let words = first_draw * STATS_WORDS..(first_draw + drafted) * STATS_WORDS;
        runtime.copy(stream, draws, words, to, first * STATS_WORDS)?;
        first += drafted;
    }
    Ok(())
}

/// The buffers that hold the distributions of a verification's drafts.
enum DraftBuffers<'a, R: Runtime> {
    /// One buffer, which the kernels read in place.
    One(&'a GpuBuffer<R>),
    /// Several buffers, whose rows are copied side by side; or none.
    Several,
}

impl<'a, R: Runtime> DraftBuffers<'a, R> {
    fn of(sequences: &[VerifyRows<'a, GpuBuffer<R>>]) -> Self {
        let mut buffers = sequences.iter().filter_map(compared).map(|draft| draft.logits);
        match buffers.next() {
            Some(first) if buffers.all(|other| ptr::eq(first, other)) => DraftBuffers::One(first),
            _ => DraftBuffers::Several,
        }
    }
}

/// Returns the logits that a sequence's draft was drawn from, if its rule compares distributions.
fn compared<'a, R: Runtime>(
    sequence: &VerifyRows<'a, GpuBuffer<R>>,
) -> Option<DraftLogits<'a, GpuBuffer<R>>> {
    let compares =
        !sequence.sampling.is_greedy() && sequence.rule != Rule::Match && !sequence.draft.is_empty();
    sequence.draft_logits.filter(|_| compares)
}

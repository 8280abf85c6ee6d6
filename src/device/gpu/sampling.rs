//! Draws tokens from rows of logits. The host does not wait.

use std::sync::Arc;

use super::buffer::{GpuBuffer, STATS_WORDS};
use super::check::{expect, index};
use super::context::Context;
use super::linear::{GpuLinear, Linears};
use super::memory::GrowableMemory;
use super::products::Products;
use super::report::StepReport;
use super::scratch::{Scratch, error_word};
use super::table_block::TableBlock;
use super::tables::{StagedTables, TableRange};
use crate::acceptance::Rule;
use crate::device::{CalibratorOutput, DeviceError, DraftRows, DraftTables, SlotRows};
use crate::kernels::sampling::{Calibration, LogitRows, RowSampling, RowStats, Sample, workspace_len};
use crate::kernels::selection::{Draft, DraftGroups};
use crate::layout::Prediction;
use crate::random::{Purpose, Stream};
use crate::runtime::{Runtime, View, ViewMut};
use crate::sampling::SamplingParams;

/// Rows of logits to be sampled.
pub(super) struct SampledRowRange<'a> {
    pub(super) vocab: usize,
    pub(super) stride: usize,
    pub(super) logits: LogitRows<'a, f32>,
    /// The row of `logits` that each sampled row names, as in [`Sample`].
    pub(super) logit_index: Option<View<'a, i32>>,
    pub(super) starts: Option<View<'a, i32>>,
    pub(super) calibration: Option<Calibration<'a>>,
}

/// The tables of drafts that are to be selected, among other tables.
#[derive(Clone, Debug, Default)]
pub(super) struct SelectionTables {
    pub(super) drafts: TableRange<Draft>,
    /// The sampling parameters of the drafts' rows.
    pub(super) row_sampling: TableRange<RowSampling>,
}

impl SelectionTables {
    /// Adds the tables of `drafts`, of a verification of `batch` sequences, to `tables`.
    pub(super) fn stage<R: Runtime>(
        tables: &mut StagedTables<R>,
        DraftTables { drafts, rows: slots }: DraftTables<'_>,
        batch: usize,
    ) -> Result<Self, DeviceError> {
        const OPERATION: &str = "select_drafts";
        let (mut table, mut row_sampling) = (Vec::with_capacity(drafts.len()), Vec::new());
        for (place, draft) in (0..).zip(drafts) {
            index(OPERATION, "sequence", draft.sequence, batch)?;
            let groups = DraftGroups {
                sequence: draft.sequence,
                groups: draft.groups,
                first_slot: draft.first_row,
                slots: draft.slots,
                first_draft: row_sampling.len(),
            };
            table.push(match (slots, draft.prediction) {
                (SlotRows::Pass { .. }, Prediction::OwnPosition) => Draft::new(&groups)?,
                (SlotRows::Pass { .. }, Prediction::NextPosition) => Draft::predicting_next(&groups)?,
                (SlotRows::Logits, _) => Draft::in_logits(&groups)?,
            });
            for slot in 1..draft.slots {
                row_sampling.push(slot_sampling(draft, slot)?.relative_to(place));
            }
        }
        Ok(Self { drafts: tables.push(&table), row_sampling: tables.push(&row_sampling) })
    }
}

/// The selected drafts, with the rows, bonus tokens and positions that the verdicts give them. The tables are filled
/// by the device.
#[derive(Debug)]
pub(super) struct Selected<R: Runtime> {
    /// Number of drafts.
    pub(super) drafts: usize,
    /// Number of rows of all drafts.
    pub(super) rows: usize,
    pub(super) slots: SlotRows,
    /// The drafts, and the sampling parameters of their rows, if the step did not announce them.
    pub(super) late: StagedTables<R>,
    /// The tables of the drafts, in `late` or in the step's block.
    pub(super) tables: SelectionTables,
    /// The block with the tables, if the step announced the drafts.
    pub(super) block: Option<Arc<TableBlock<R>>>,
    /// The bonus token of each draft.
    pub(super) bonus: GrowableMemory<R, i32>,
    /// The position from which each draft's random numbers count.
    pub(super) starts: GrowableMemory<R, i32>,
    /// The row of the pass or of the logits that each draft row comes from.
    pub(super) sources: GrowableMemory<R, i32>,
    /// The row of the logits that each draft row is sampled from.
    pub(super) draft_rows: GrowableMemory<R, i32>,
}

impl<R: Runtime> Default for Selected<R> {
    fn default() -> Self {
        Selected {
            drafts: 0,
            rows: 0,
            slots: SlotRows::Logits,
            late: StagedTables::default(),
            tables: SelectionTables::default(),
            block: None,
            bonus: GrowableMemory::default(),
            starts: GrowableMemory::default(),
            sources: GrowableMemory::default(),
            draft_rows: GrowableMemory::default(),
        }
    }
}

/// Returns the memory with the tables of drafts: the step's block, if the step announced them.
pub(super) fn staged<'a, R: Runtime>(
    late: &'a StagedTables<R>,
    block: &'a Option<Arc<TableBlock<R>>>,
) -> &'a StagedTables<R> {
    block.as_ref().map_or(late, |block| &block.tables)
}

/// Returns the sampling parameters of slot `slot` of a draft.
pub(super) fn slot_sampling(draft: &DraftRows<'_>, slot: usize) -> Result<RowSampling, DeviceError> {
    // Positions count from the start of the next step, which the device knows.
    let numbers = match draft.rule {
        Rule::Match => Stream::target_draw(draft.seed, slot),
        Rule::Rejection | Rule::Block => Stream::new(draft.seed, Purpose::DraftDraw, slot, 0),
    };
    row_sampling("select_drafts", draft.sampling, (!draft.sampling.is_greedy()).then_some(numbers))
}

/// Returns the sampling parameters of a row that is drawn with the random numbers `numbers`.
pub(super) fn row_sampling(
    operation: &'static str,
    params: &SamplingParams,
    numbers: Option<Stream>,
) -> Result<RowSampling, DeviceError> {
    RowSampling::new(params, numbers).map_err(|error| DeviceError::Contract {
        operation,
        operand: "sampling",
        expected: "parameters that describe a distribution",
        found: error.to_string(),
    })
}

/// Samples rows into `stats`, one entry of `row_sampling` per row.
pub(super) fn sample<R: Runtime>(
    context: &Context<R>,
    rows: SampledRowRange<'_>,
    row_sampling: View<'_, RowSampling>,
    stats: ViewMut<'_, RowStats>,
) -> Result<(), DeviceError> {
    let mut scratch = context.scratch();
    let Scratch { workspace, error, .. } = &mut *scratch;
    let needed = workspace_len(row_sampling.len(), rows.vocab, rows.calibration.is_some())?;
    let workspace = workspace.reserve(context.queue(), needed)?;
    let args = Sample {
        vocab: rows.vocab,
        stride: rows.stride,
        logits: rows.logits,
        logit_index: rows.logit_index,
        sampling: row_sampling,
        starts: rows.starts,
        draft: None,
        calibration: rows.calibration,
        workspace: context.view_mut(workspace),
        stats,
        error: Some(error_word(context.queue(), error)?),
    };
    Ok(context.kernels.sample(&context.stream, args)?)
}

/// Writes the warped scores of a proposal to the first rows of `out`, and computes the statistics of these rows.
pub(super) fn upload_draft<R: Runtime>(
    context: &Context<R>,
    scores: &[Vec<f32>],
    out: &mut GpuBuffer<R>,
) -> Result<(), DeviceError> {
    const OPERATION: &str = "upload_draft";
    out.forget_draws_from(0);
    out.resize(context.queue(), scores.len())?;
    let (rows, vocab, stride) = (scores.len(), out.cols(), out.stride());
    if rows == 0 || vocab == 0 {
        return Ok(());
    }
    let mut host = vec![0.0; rows * stride];
    for (row, scores) in host.chunks_exact_mut(stride).zip(scores) {
        expect(OPERATION, "a row of scores", vec![vocab], vec![scores.len()])?;
        row[..vocab].copy_from_slice(scores);
    }
    let (runtime, stream) = context.queue();
    let mut tables = StagedTables::<R>::default();
    let samplings = tables.push(&vec![row_sampling(OPERATION, &SamplingParams::WHOLE, None)?; rows]);
    tables.upload(context.queue(), &mut context.scratch().staging)?;
    let (values, draws) = out.logits_and_draws_mut(OPERATION)?;
    runtime.upload(stream, &host, values, 0)?;
    let rows_to_sample = SampledRowRange {
        vocab,
        stride,
        logits: LogitRows::Read(context.input(values, 0..rows * stride)?),
        logit_index: None,
        starts: None,
        calibration: None,
    };
    let overflow = DeviceError::Overflow { operation: OPERATION, operand: "draws" };
    let stats = context.output(draws, 0..rows * STATS_WORDS)?.cast().ok_or(overflow)?;
    sample(context, rows_to_sample, tables.view(context.queue(), &samplings)?, stats)?;
    out.set_drawn(rows, rows);
    Ok(())
}

/// Corrects the selected rows of `logits`, if there is a calibrator, and samples one token from each row.
pub(super) fn draft<P: Products>(
    linears: Linears<'_, P>,
    calibration: Option<CalibratorOutput<'_, GpuBuffer<P::Runtime>, GpuLinear<P>>>,
    logits: &mut GpuBuffer<P::Runtime>,
    selected: &mut Selected<P::Runtime>,
    report: &mut StepReport<P::Runtime>,
) -> Result<(), DeviceError> {
    const OPERATION: &str = "draft";
    let context = linears.context;
    let (rows, vocab, stride) = (selected.rows, logits.cols(), logits.stride());
    let first = report.rows();
    let end = first.saturating_add(rows);
    // The sampled rows are among these rows of the logits.
    let among = match selected.slots {
        SlotRows::Pass { first_logits } => first_logits..first_logits.saturating_add(rows),
        SlotRows::Logits => 0..logits.rows(),
    };
    expect(OPERATION, "logits", vec![among.end, vocab], vec![logits.rows(), vocab])?;
    let drawn = logits.drawn();
    expect(OPERATION, "rows drafted before", vec![first], vec![drawn.count.min(first)])?;
    if rows == 0 || vocab == 0 {
        return Ok(());
    }
    let logit_rows = among.start * stride..among.end * stride;
    let (values, draws) = logits.logits_and_draws_mut(OPERATION)?;
    let (values, calibration) = match calibration {
        None => (LogitRows::Read(context.input(values, logit_rows)?), None),
        Some(CalibratorOutput { hidden, output }) => {
            let rank = output.in_cols;
            hidden.expect_rows(OPERATION, "calibrator's hidden rows", rank, rows)?;
            expect(OPERATION, "calibrator's output", vec![vocab], vec![output.out_cols])?;
            let calibration = Calibration {
                rank,
                hidden: context.input(hidden.activations(OPERATION, "hidden")?, 0..rows * rank)?,
                weight: linears.weight(output),
                bias: output.bias.as_ref().map(|bias| context.view(bias)),
            };
            (LogitRows::Update(context.output(values, logit_rows)?), Some(calibration))
        }
    };
    let Selected { drafts, late, tables, block, starts, draft_rows, .. } = selected;
    let starts = starts.reserve(context.queue(), *drafts)?;
    let draft_rows = draft_rows.reserve(context.queue(), rows)?;
    let rows_to_sample = SampledRowRange {
        vocab,
        stride,
        logits: values,
        logit_index: Some(context.input(draft_rows, 0..rows)?),
        starts: Some(context.input(starts, 0..*drafts)?),
        calibration,
    };
    let row_sampling = staged(late, block).view(context.queue(), &tables.row_sampling)?;
    let overflow = DeviceError::Overflow { operation: OPERATION, operand: "draws" };
    let stats = context.output(draws, first * STATS_WORDS..end * STATS_WORDS)?.cast().ok_or(overflow)?;
    sample(context, rows_to_sample, row_sampling, stats)?;
    report.add(context, draws, rows)?;
    logits.set_drawn(end, drawn.end.max(among.end));
    Ok(())
}

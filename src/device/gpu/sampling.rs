//! Draws tokens from rows of logits. The host does not wait.

use super::buffer::{Draws, GpuBuffer, STATS_WORDS};
use super::chain::{self, CalibratedRows, ChainMemory, ChainedDraws};
use super::check::expect;
use super::context::Context;
use super::linear::{GpuLinear, Linears};
use super::products::Products;
use super::report::StepReport;
use super::scratch::{Scratch, error_word};
use super::selected::{Selected, row_sampling, staged};
use super::tables::StagedTables;
use crate::device::{CalibratorOutput, Corrections, DeviceError, DraftRows, SlotRows};
use crate::kernels::sampling::{
    Calibration, EditTables, Edits, LogitRows, RowSampling, RowStats, Sample, workspace_len,
};
use crate::processors::LogitProcessors;
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

/// The launches of sampling.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum SampleLaunches {
    /// All launches, which draw a token from each row.
    Draw,
    /// The pass over the logits, which leaves its partial results in the shared workspace.
    Partials,
}

/// Samples rows into `stats`, one entry of `row_sampling` per row.
pub(super) fn sample<R: Runtime>(
    context: &Context<R>,
    launches: SampleLaunches,
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
    let launched = match launches {
        SampleLaunches::Draw => context.kernels.sample(&context.stream, args),
        SampleLaunches::Partials => context.kernels.sample_partials(&context.stream, args),
    };
    Ok(launched?)
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
    sample(context, SampleLaunches::Draw, rows_to_sample, tables.view(context.queue(), &samplings)?, stats)?;
    out.set_drawn(Draws { count: rows, end: rows, chosen: 0 });
    Ok(())
}

/// Samples one token from each selected row of `logits`, rows of `vocab` values `stride` elements apart, into `stats`.
fn sample_selected<R: Runtime>(
    context: &Context<R>,
    launches: SampleLaunches,
    selected: &mut Selected<R>,
    (vocab, stride): (usize, usize),
    (logits, calibration): (LogitRows<'_, f32>, Option<Calibration<'_>>),
    stats: ViewMut<'_, RowStats>,
) -> Result<(), DeviceError> {
    let Selected { drafts, rows, late, tables, block, starts, draft_rows, .. } = selected;
    let starts = starts.reserve(context.queue(), *drafts)?;
    let draft_rows = draft_rows.reserve(context.queue(), *rows)?;
    let rows_to_sample = SampledRowRange {
        vocab,
        stride,
        logits,
        logit_index: Some(context.input(draft_rows, 0..*rows)?),
        starts: Some(context.input(starts, 0..*drafts)?),
        calibration,
    };
    let row_sampling = staged(late, block).view(context.queue(), &tables.row_sampling)?;
    sample(context, launches, rows_to_sample, row_sampling, stats)
}

/// Returns the tables of what the requests' bias and masks change in the rows of `drafts`; `None` if they change nothing.
pub(super) fn draft_edits(drafts: &[DraftRows<'_>], vocab: usize) -> Result<Option<EditTables>, DeviceError> {
    let rows = drafts.iter().map(DraftRows::drafted).sum();
    let (mut tables, mut first) = (None, 0);
    for draft in drafts {
        let edits = draft.processors.map(LogitProcessors::draft_edits).filter(|edits| !edits.is_empty());
        if let Some(edits) = edits {
            let tables = tables.get_or_insert_with(|| EditTables::new(rows));
            tables.push(first, draft.drafted(), &edits, vocab)?;
        }
        first += draft.drafted();
    }
    Ok(tables)
}

/// The corrections of drafts on a GPU.
type GpuCorrections<'a, P> = Corrections<'a, GpuBuffer<<P as Products>::Runtime>, GpuLinear<P>>;

/// Corrects the selected rows of `logits`, if there is a calibrator, applies edits, if there are any, and draws one
/// token from each row: from the row alone, or with a chain from its most likely ids, row by row. `owners` has the
/// draft of each row.
pub(super) fn draft<P: Products>(
    linears: Linears<'_, P>,
    (Corrections { calibration, chain }, edits): (GpuCorrections<'_, P>, Option<EditTables>),
    logits: &mut GpuBuffer<P::Runtime>,
    (selected, owners): (&mut Selected<P::Runtime>, &[usize]),
    (report, memory): (&mut StepReport<P::Runtime>, &mut ChainMemory<P::Runtime>),
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
    let chosen = chain.as_ref().map_or(Ok(0), |chain| chain::chosen_count(chain.top_k, vocab))?;
    if first > 0 {
        expect(OPERATION, "chosen ids of rows drafted before", vec![chosen], vec![drawn.chosen])?;
    }
    let logit_rows = among.start * stride..among.end * stride;
    let (values, draws, chosen_ids) = match chosen {
        0 => {
            let (values, draws) = logits.logits_and_draws_mut(OPERATION)?;
            (values, draws, None)
        }
        count => {
            let (values, draws, ids) = logits.chained_draws_mut(OPERATION, context.queue(), count)?;
            (values, draws, Some(ids))
        }
    };
    let launches = if chain.is_some() { SampleLaunches::Partials } else { SampleLaunches::Draw };
    let overflow = DeviceError::Overflow { operation: OPERATION, operand: "draws" };
    let draws_of_rows = first * STATS_WORDS..end * STATS_WORDS;
    let mut calibrated = calibration.is_some();
    if calibrated || edits.is_none() {
        let (to_sample, calibration) = match calibration {
            None => (LogitRows::Read(context.input(values, logit_rows.clone())?), None),
            Some(CalibratorOutput { hidden, output }) => {
                let rank = output.in_cols;
                hidden.expect_rows(OPERATION, "calibrator's hidden rows", rank, rows)?;
                expect(OPERATION, "calibrator's output", vec![vocab], vec![output.out_cols])?;
                let calibration = Calibration {
                    rank,
                    hidden: context.input(hidden.activations(OPERATION, "hidden")?, 0..rows * rank)?.into(),
                    weight: linears.weight(output).into(),
                    bias: output.bias.as_ref().map(|bias| context.view(bias)),
                };
                (LogitRows::Update(context.output(&mut *values, logit_rows.clone())?), Some(calibration))
            }
        };
        let stats = context.output(&mut *draws, draws_of_rows.clone())?.cast().ok_or(overflow.clone())?;
        sample_selected(context, launches, selected, (vocab, stride), (to_sample, calibration), stats)?;
    }
    if let Some(edits) = edits {
        // The kernel that calibrates does not edit, so the calibrated rows are edited and sampled again.
        let mut tables = StagedTables::<P::Runtime>::default();
        let (edited, offsets) = (tables.push(&edits.rows), tables.push(&edits.offsets));
        let (ids, masks) = (tables.push(&edits.edits), tables.push(&edits.masks));
        tables.upload(context.queue(), &mut context.scratch().staging)?;
        let edits = Edits {
            rows: tables.view(context.queue(), &edited)?,
            offsets: tables.view(context.queue(), &offsets)?,
            edits: tables.view(context.queue(), &ids)?,
            masks: tables.view(context.queue(), &masks)?,
        };
        let to_sample = LogitRows::Edit(context.output(&mut *values, logit_rows)?, edits);
        let stats = context.output(&mut *draws, draws_of_rows)?.cast().ok_or(overflow)?;
        sample_selected(context, launches, selected, (vocab, stride), (to_sample, None), stats)?;
        calibrated = false;
    }
    if let (Some(operands), Some(chosen)) = (chain, chosen_ids) {
        let rows = CalibratedRows { logits: &*values, among: among.clone(), vocab, stride, calibrated };
        let draws = ChainedDraws { chosen, stats: &mut *draws, draws: first..end };
        chain::draft(linears, &operands, &rows, (&mut *selected, owners), memory, draws)?;
    }
    report.add(context, draws, rows)?;
    logits.set_drawn(Draws { count: end, end: drawn.end.max(among.end), chosen });
    Ok(())
}

//! Verification and drafting: rows sampled, drafts accepted. Nothing is waited for.

use std::ptr;

use super::checks::{expect, expect_draws, expect_rows};
use super::memory::{GpuBuffer, STATS_WORDS, Values};
use super::products::Products;
use super::results::{GpuResults, GpuSelection};
use super::scratch::{Scratch, error_word};
use super::verification::new_row_sampling;
use super::{Gpu, GpuLinear, Memory};
use crate::acceptance::Rule;
use crate::device::{CalibratorOutput, DeviceError, DraftLogits, DraftRows, SlotRows, VerifyRows};
use crate::kernels::KernelError;
use crate::kernels::acceptance::{
    Accept, MAX_COMMITTED, SampledRows, Verify, VerifySequence, accept_workspace_len,
};
use crate::kernels::sampling::{Calibration, LogitRows, RowSampling, RowStats, Sample, workspace_len};
use crate::layout::GroupSet;
use crate::random::Stream;
use crate::runtime::{Runtime, RuntimeError, View, ViewMut};
use crate::sampling::SamplingParams;

/// Rows of logits to be sampled.
struct SampledRowRange<'a> {
    vocab: usize,
    stride: usize,
    logits: LogitRows<'a, f32>,
    /// As in [`Sample`].
    logit_index: Option<View<'a, i32>>,
    starts: Option<View<'a, i32>>,
    calibration: Option<Calibration<'a>>,
}

impl<P: Products> Gpu<P> {
    /// Samples rows by `row_sampling`, a way a row, into `stats`.
    fn sample(
        &self,
        rows: SampledRowRange<'_>,
        row_sampling: View<'_, RowSampling>,
        stats: ViewMut<'_, RowStats>,
    ) -> Result<(), DeviceError> {
        let (runtime, stream) = (self.runtime(), &self.stream);
        let mut scratch = self.scratch();
        let Scratch { workspace, error, .. } = &mut *scratch;
        let needed = workspace_len(row_sampling.len(), rows.vocab, rows.calibration.is_some())?;
        let workspace = workspace.reserve(runtime, stream, needed)?;
        let args = Sample {
            vocab: rows.vocab,
            stride: rows.stride,
            logits: rows.logits,
            logit_index: rows.logit_index,
            sampling: row_sampling,
            starts: rows.starts,
            draft: None,
            calibration: rows.calibration,
            workspace: runtime.view_mut(stream, workspace),
            stats,
            error: Some(error_word(runtime, stream, error)?),
        };
        Ok(self.kernels.sample(stream, args)?)
    }

    pub(super) fn verify_drafts(
        &self,
        logits: &GpuBuffer<P::Runtime>,
        sequences: &[VerifyRows<'_, GpuBuffer<P::Runtime>>],
        results: &mut GpuResults<P::Runtime>,
    ) -> Result<(), DeviceError> {
        const OPERATION: &str = "verify";
        let (runtime, stream) = (self.runtime(), &self.stream);
        let (batch, vocab, stride) = (sequences.len(), logits.cols, logits.stride());
        results.begin(runtime, stream, batch)?;
        if batch == 0 {
            return Ok(());
        }
        let GpuResults { report, verification, .. } = results;
        // Rows after the last candidate are none of a verification's.
        let rows = sequences.iter().map(|s| s.first_row.saturating_add(s.draft.len() + 1)).max().unwrap_or(0);
        expect_rows(OPERATION, "logits", logits, logits.cols, rows)?;
        let mut row_sampling = vec![new_row_sampling(&SamplingParams::GREEDY, None)?; rows];
        let (mut tokens, mut requests) = (Vec::new(), Vec::new());
        let drafts = Drafts::of(sequences);
        let mut copied = 0;
        for sequence in sequences {
            let drafted = sequence.draft.len();
            let greedy = sequence.sampling.is_greedy();
            let rule = if greedy { Rule::Match } else { sequence.rule };
            let draws = !greedy && (rule == Rule::Match || drafted == 0);
            for (i, way) in row_sampling.iter_mut().skip(sequence.first_row).take(drafted + 1).enumerate() {
                let position = sequence.start.saturating_add(i + 1);
                let numbers = draws.then(|| Stream::target_draw(sequence.seed, position));
                *way = new_row_sampling(sequence.sampling, numbers)?;
            }
            let from = match compared(sequence) {
                None => None,
                Some(draft) => {
                    let end = draft.first_row.saturating_add(drafted);
                    expect_rows(OPERATION, "draft_logits", draft.logits, logits.cols, end)?;
                    expect_draws(OPERATION, draft, drafted)?;
                    Some(match &drafts {
                        Drafts::InPlace(_) => (draft.first_row, draft.first_draw),
                        Drafts::Apart => {
                            copied += drafted;
                            (copied - drafted, copied - drafted)
                        }
                    })
                }
            };
            let request = Verify::new(&VerifySequence {
                rule,
                seed: sequence.seed,
                position: sequence.start,
                drafts: drafted,
                first_target: sequence.first_row,
                first_draft: from.map(|(first_row, _)| first_row),
                first_token: tokens.len(),
                groups: GroupSet::default(),
            })?;
            requests
                .push(from.map_or(Ok(request), |(_, first_draw)| request.with_draft_stats_at(first_draw))?);
            // A token beyond the type is beyond every vocabulary, and never accepted.
            tokens.extend(sequence.draft.iter().map(|&token| i32::try_from(token).unwrap_or(i32::MAX)));
        }
        let tables = &mut verification.tables;
        tables.clear();
        let (row_sampling, device_requests) = (tables.push(&row_sampling), tables.push(&requests));
        let device_tokens = tables.push(&tokens);
        tables.upload(runtime, stream)?;
        let draft_logits = verification.draft_logits.reserve(runtime, stream, copied * stride)?;
        let draws = verification.draws.reserve(runtime, stream, copied * STATS_WORDS)?;
        if copied > 0 {
            self.copy_drafts(sequences, draft_logits, draws)?;
        }
        let target_stats = verification.target_stats.reserve(runtime, stream, rows)?;
        let target = || self.input(logits.logits(OPERATION)?, 0..rows * stride);
        let rows_to_sample = SampledRowRange {
            vocab,
            stride,
            logits: LogitRows::Read(target()?),
            logit_index: None,
            starts: None,
            calibration: None,
        };
        let row_sampling = tables.view(runtime, stream, &row_sampling)?;
        self.sample(rows_to_sample, row_sampling, self.output(target_stats, 0..rows)?)?;
        let draft = match &drafts {
            Drafts::InPlace(buffer) => Some(SampledRows {
                logits: self.input(buffer.logits(OPERATION)?, 0..buffer.drawn().end * stride)?,
                stats: buffer.draws(OPERATION, runtime, stream)?,
            }),
            Drafts::Apart if copied == 0 => None,
            Drafts::Apart => {
                let (wanted, found) = (copied * STATS_WORDS, 0);
                let stats = self.input(draws, 0..wanted)?.cast();
                Some(SampledRows {
                    logits: self.input(draft_logits, 0..copied * stride)?,
                    stats: stats.ok_or(RuntimeError::CopyLength { wanted, found })?,
                })
            }
        };
        let arrived = verification.arrived.reserve(runtime, stream, batch)?;
        let committed = verification.committed.reserve(runtime, stream, batch * MAX_COMMITTED)?;
        let needed = accept_workspace_len(batch, vocab)
            .ok_or(KernelError::Overflow { kernel: "accept", what: "workspace" })?;
        let workspace = verification.workspace.reserve(runtime, stream, needed)?;
        let mut scratch = self.scratch();
        let Scratch { workspace: partials, error, .. } = &mut *scratch;
        // As sampling left them: the same length reserves the same memory.
        let partials_len = workspace_len(rows, vocab, false)?;
        let partials = partials.reserve(runtime, stream, partials_len)?;
        let args = Accept {
            vocab,
            stride,
            sequences: tables.view(runtime, stream, &device_requests)?,
            any_block: sequences
                .iter()
                .any(|s| s.rule == Rule::Block && !s.sampling.is_greedy() && !s.draft.is_empty()),
            tokens: tables.view(runtime, stream, &device_tokens)?,
            target: SampledRows { logits: target()?, stats: self.input(target_stats, 0..rows)? },
            target_partials: Some(self.input(partials, 0..partials_len)?),
            draft,
            workspace: runtime.view_mut(stream, workspace),
            arrived: self.output(arrived, 0..batch)?,
            verdicts: report.verdicts_mut(runtime, stream)?,
            committed: self.output(committed, 0..batch * MAX_COMMITTED)?,
            error: Some(error_word(runtime, stream, error)?),
        };
        Ok(self.kernels.accept(stream, &args)?)
    }

    /// Copies what the sequences' drafts were drawn from, and the statistics of the draws, side by side.
    fn copy_drafts(
        &self,
        sequences: &[VerifyRows<'_, GpuBuffer<P::Runtime>>],
        to: &mut Memory<P, f32>,
        to_draws: &mut Memory<P, u64>,
    ) -> Result<(), DeviceError> {
        const OPERATION: &str = "verify";
        let (runtime, stream) = (self.runtime(), &self.stream);
        let mut first = 0;
        for sequence in sequences {
            let Some(DraftLogits { logits, first_row, first_draw }) = compared(sequence) else { continue };
            let Values::Logits { draws, .. } = &logits.values else { continue };
            let (rows, stride) = (first_row..first_row + sequence.draft.len(), logits.stride());
            let elements = rows.start * stride..rows.end * stride;
            runtime.copy(stream, logits.logits(OPERATION)?, elements, to, first * stride)?;
            let words = first_draw * STATS_WORDS..(first_draw + rows.len()) * STATS_WORDS;
            runtime.copy(stream, draws, words, to_draws, first * STATS_WORDS)?;
            first += rows.len();
        }
        Ok(())
    }
}

impl<P: Products> GpuSelection<'_, P> {
    /// Corrects the selected rows of `logits`, if there is a calibrator, and samples the drafts from them.
    pub(super) fn sample(
        self,
        calibration: Option<CalibratorOutput<'_, GpuBuffer<P::Runtime>, GpuLinear<P>>>,
        logits: &mut GpuBuffer<P::Runtime>,
    ) -> Result<(), DeviceError> {
        const OPERATION: &str = "draft";
        let Self { device, results, drafts } = self;
        let (runtime, stream) = (device.runtime(), &device.stream);
        let (vocab, stride) = (logits.cols, logits.stride());
        let GpuResults { report, selected, .. } = results;
        let rows = selected.rows;
        let first = report.rows();
        let end = first.saturating_add(rows);
        // Rows that the sampled ones are among, by number or by place.
        let among = match selected.slots {
            SlotRows::Pass { first_logits } => first_logits..first_logits.saturating_add(rows),
            SlotRows::Logits => 0..logits.rows,
        };
        expect(OPERATION, "logits", vec![among.end, vocab], vec![logits.rows, vocab])?;
        let drawn = logits.drawn();
        expect(OPERATION, "rows drafted before", vec![first], vec![drawn.draws.min(first)])?;
        results.drafts.extend(drafts.iter().map(DraftRows::drafted));
        if rows == 0 || vocab == 0 {
            return Ok(());
        }
        let logit_rows = among.start * stride..among.end * stride;
        let (values, draws) = logits.logits_and_draws_mut(OPERATION)?;
        let (values, calibration) = match calibration {
            None => (LogitRows::Read(device.input(values, logit_rows)?), None),
            Some(CalibratorOutput { hidden, output }) => {
                let rank = output.in_cols;
                expect_rows(OPERATION, "calibrator's hidden rows", hidden, rank, rows)?;
                expect(OPERATION, "calibrator's output", vec![vocab], vec![output.out_cols])?;
                let calibration = Calibration {
                    rank,
                    hidden: device.input(hidden.activations(OPERATION, "hidden")?, 0..rows * rank)?,
                    weight: runtime.view(stream, device.products.weight(&output.layer)),
                    bias: output.bias.as_ref().map(|bias| runtime.view(stream, bias)),
                };
                (LogitRows::Update(device.output(values, logit_rows)?), Some(calibration))
            }
        };
        let starts = selected.starts.reserve(runtime, stream, drafts.len())?;
        let rows_that_count = selected.draft_rows.reserve(runtime, stream, rows)?;
        let rows_to_sample = SampledRowRange {
            vocab,
            stride,
            logits: values,
            logit_index: Some(device.input(rows_that_count, 0..rows)?),
            starts: Some(device.input(starts, 0..drafts.len())?),
            calibration,
        };
        let row_sampling = selected.tables.view(runtime, stream, &selected.row_sampling)?;
        let words = first * STATS_WORDS..end * STATS_WORDS;
        let wanted = words.end;
        let stats = device.output(draws, words)?.cast();
        let stats = stats.ok_or(RuntimeError::CopyLength { wanted, found: 0 })?;
        device.sample(rows_to_sample, row_sampling, stats)?;
        report.add(runtime, stream, draws, rows)?;
        logits.set_drawn(end, drawn.end.max(among.end));
        Ok(())
    }
}

/// Where the distributions of a verification's drafts are.
enum Drafts<'a, B: Runtime> {
    /// All in this buffer, which the kernels read.
    InPlace(&'a GpuBuffer<B>),
    /// In several, so that they are put together; or there are none.
    Apart,
}

impl<'a, B: Runtime> Drafts<'a, B> {
    fn of(sequences: &[VerifyRows<'a, GpuBuffer<B>>]) -> Self {
        let mut buffers = sequences.iter().filter_map(compared).map(|draft| draft.logits);
        match buffers.next() {
            Some(first) if buffers.all(|other| ptr::eq(first, other)) => Drafts::InPlace(first),
            _ => Drafts::Apart,
        }
    }
}

/// What a sequence's draft was drawn from, where its rule compares distributions.
fn compared<'a, B: Runtime>(
    sequence: &VerifyRows<'a, GpuBuffer<B>>,
) -> Option<DraftLogits<'a, GpuBuffer<B>>> {
    let compares =
        !sequence.sampling.is_greedy() && sequence.rule != Rule::Match && !sequence.draft.is_empty();
    sequence.draft_logits.filter(|_| compares)
}

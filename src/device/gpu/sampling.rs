//! Verification and drafting: rows sampled, drafts accepted. Nothing is waited for.

use std::ptr;

use super::checks::{expect, expect_draws, expect_rows};
use super::memory::{Buffer, Grown, Packed, STATS_WORDS, Values};
use super::products::Products;
use super::results::Results;
use super::scratch::{Scratch, error_word};
use super::{Gpu, Linear, Memory};
use crate::acceptance::Rule;
use crate::backend::{Backend, BackendError, View, ViewMut};
use crate::device::{Calibration, DeviceError, DraftLogits, DraftRows, SlotRows, VerifyRows};
use crate::kernels::KernelError;
use crate::kernels::acceptance::{
    Accept, MAX_COMMITTED, SampledRows, Verify, VerifySequence, accept_workspace_len,
};
use crate::kernels::sampling::{
    Calibration as KernelCalibration, LogitRows, RowSampling, RowStats, Sample, workspace_len,
};
use crate::layout::GroupSet;
use crate::random::{Purpose, Stream};
use crate::sampling::SamplingParams;

/// What a verification works on.
#[derive(Debug)]
pub(super) struct Verification<B: Backend> {
    /// How rows are sampled, the requests, and their tokens.
    tables: Packed<B>,
    target_stats: Grown<B, RowStats>,
    /// Acceptance's own workspace: it reads what sampling left in the scratch.
    workspace: Grown<B, f32>,
    /// The logits of every q, side by side, and the statistics of their draws, where they are not in one buffer.
    draft_logits: Grown<B, f32>,
    draws: Grown<B, u64>,
    /// Zero between launches.
    arrived: Grown<B, u32>,
    committed: Grown<B, i32>,
}

impl<B: Backend> Default for Verification<B> {
    fn default() -> Self {
        Verification {
            tables: Packed::default(),
            target_stats: Grown::default(),
            workspace: Grown::default(),
            draft_logits: Grown::default(),
            draws: Grown::default(),
            arrived: Grown::default(),
            committed: Grown::default(),
        }
    }
}

/// Rows of logits to be sampled.
struct Rows<'a> {
    vocab: usize,
    stride: usize,
    logits: LogitRows<'a, f32>,
    /// As in [`Sample`].
    logit_index: Option<View<'a, i32>>,
    starts: Option<View<'a, i32>>,
    calibration: Option<KernelCalibration<'a>>,
}

/// Parameters that a request's validation should not have let through.
fn invalid(what: &'static str) -> DeviceError {
    DeviceError::OutOfRange { operation: "sample", what, index: 0, limit: 0 }
}

impl<P: Products> Gpu<P> {
    /// Samples rows by `ways`, a way a row, into `stats`.
    fn sample(
        &self,
        rows: Rows<'_>,
        ways: View<'_, RowSampling>,
        stats: ViewMut<'_, RowStats>,
    ) -> Result<(), DeviceError> {
        let (backend, stream) = (self.backend(), &self.stream);
        let mut scratch = self.scratch();
        let Scratch { workspace, error, .. } = &mut *scratch;
        let needed = workspace_len(ways.len(), rows.vocab, rows.calibration.is_some())?;
        let workspace = workspace.reserve(backend, stream, needed)?;
        let args = Sample {
            vocab: rows.vocab,
            stride: rows.stride,
            logits: rows.logits,
            logit_index: rows.logit_index,
            sampling: ways,
            starts: rows.starts,
            draft: None,
            calibration: rows.calibration,
            workspace: backend.view_mut(stream, workspace),
            stats,
            error: Some(error_word(backend, stream, error)?),
        };
        Ok(self.kernels.sample(stream, args)?)
    }

    pub(super) fn draft_tokens(
        &self,
        calibration: Option<Calibration<'_, Buffer<P::Backend>, Linear<P>>>,
        logits: &mut Buffer<P::Backend>,
        drafts: &[DraftRows<'_>],
        results: &mut Results<P::Backend>,
    ) -> Result<(), DeviceError> {
        const OPERATION: &str = "draft";
        let (backend, stream) = (self.backend(), &self.stream);
        let rows = drafts.iter().map(DraftRows::drafted).fold(0, usize::saturating_add);
        let (vocab, stride) = (logits.cols, logits.stride());
        let Results { report, selected, .. } = results;
        let first = report.rows();
        let end = first.saturating_add(rows);
        expect(OPERATION, "selected rows", vec![rows], vec![selected.rows])?;
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
            None => (LogitRows::Read(self.input(values, logit_rows)?), None),
            Some(Calibration { hidden, output }) => {
                let rank = output.in_cols;
                expect_rows(OPERATION, "calibrator's hidden rows", hidden, rank, rows)?;
                expect(OPERATION, "calibrator's output", vec![vocab], vec![output.out_cols])?;
                let calibration = KernelCalibration {
                    rank,
                    hidden: self.input(hidden.activations(OPERATION, "hidden")?, 0..rows * rank)?,
                    weight: backend.view(stream, self.products.weight(&output.layer)),
                    bias: output.bias.as_ref().map(|bias| backend.view(stream, bias)),
                };
                (LogitRows::Update(self.output(values, logit_rows)?), Some(calibration))
            }
        };
        let starts = selected.starts.reserve(backend, stream, drafts.len())?;
        let rows_that_count = selected.draft_rows.reserve(backend, stream, rows)?;
        let rows_to_sample = Rows {
            vocab,
            stride,
            logits: values,
            logit_index: Some(self.input(rows_that_count, 0..rows)?),
            starts: Some(self.input(starts, 0..drafts.len())?),
            calibration,
        };
        let ways = selected.tables.view(backend, stream, &selected.ways)?;
        let words = first * STATS_WORDS..end * STATS_WORDS;
        let wanted = words.end;
        let stats = self.output(draws, words)?.cast();
        let stats = stats.ok_or(BackendError::CopyLength { wanted, found: 0 })?;
        self.sample(rows_to_sample, ways, stats)?;
        report.add(backend, stream, draws, rows)?;
        logits.set_drawn(end, drawn.end.max(among.end));
        Ok(())
    }

    pub(super) fn verify_drafts(
        &self,
        logits: &Buffer<P::Backend>,
        sequences: &[VerifyRows<'_, Buffer<P::Backend>>],
        results: &mut Results<P::Backend>,
    ) -> Result<(), DeviceError> {
        const OPERATION: &str = "verify";
        let (backend, stream) = (self.backend(), &self.stream);
        let (batch, vocab, stride) = (sequences.len(), logits.cols, logits.stride());
        results.begin(backend, stream, batch)?;
        if batch == 0 {
            return Ok(());
        }
        let Results { report, verification, .. } = results;
        // Rows after the last candidate are none of a verification's.
        let rows = sequences.iter().map(|s| s.first_row.saturating_add(s.draft.len() + 1)).max().unwrap_or(0);
        expect_rows(OPERATION, "logits", logits, logits.cols, rows)?;
        let mut ways = vec![row_sampling(&SamplingParams::GREEDY, None)?; rows];
        let (mut tokens, mut requests) = (Vec::new(), Vec::new());
        let drafts = Drafts::of(sequences);
        let mut copied = 0;
        for sequence in sequences {
            let drafted = sequence.draft.len();
            let greedy = sequence.sampling.is_greedy();
            let rule = if greedy { Rule::Match } else { sequence.rule };
            let draws = !greedy && (rule == Rule::Match || drafted == 0);
            for (i, way) in ways.iter_mut().skip(sequence.first_row).take(drafted + 1).enumerate() {
                let position = sequence.start.saturating_add(i + 1);
                let numbers = draws.then(|| Stream::target_draw(sequence.seed, position));
                *way = row_sampling(sequence.sampling, numbers)?;
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
        let (ways, device_requests) = (tables.push(&ways), tables.push(&requests));
        let device_tokens = tables.push(&tokens);
        tables.upload(backend, stream)?;
        let draft_logits = verification.draft_logits.reserve(backend, stream, copied * stride)?;
        let draws = verification.draws.reserve(backend, stream, copied * STATS_WORDS)?;
        if copied > 0 {
            self.copy_drafts(sequences, draft_logits, draws)?;
        }
        let target_stats = verification.target_stats.reserve(backend, stream, rows)?;
        let target = || self.input(logits.logits(OPERATION)?, 0..rows * stride);
        let rows_to_sample = Rows {
            vocab,
            stride,
            logits: LogitRows::Read(target()?),
            logit_index: None,
            starts: None,
            calibration: None,
        };
        let ways = tables.view(backend, stream, &ways)?;
        self.sample(rows_to_sample, ways, self.output(target_stats, 0..rows)?)?;
        let draft = match &drafts {
            Drafts::InPlace(buffer) => Some(SampledRows {
                logits: self.input(buffer.logits(OPERATION)?, 0..buffer.drawn().end * stride)?,
                stats: buffer.draws(OPERATION, backend, stream)?,
            }),
            Drafts::Apart if copied == 0 => None,
            Drafts::Apart => {
                let (wanted, found) = (copied * STATS_WORDS, 0);
                let stats = self.input(draws, 0..wanted)?.cast();
                Some(SampledRows {
                    logits: self.input(draft_logits, 0..copied * stride)?,
                    stats: stats.ok_or(BackendError::CopyLength { wanted, found })?,
                })
            }
        };
        let arrived = verification.arrived.reserve(backend, stream, batch)?;
        let committed = verification.committed.reserve(backend, stream, batch * MAX_COMMITTED)?;
        let needed = accept_workspace_len(batch, vocab)
            .ok_or(KernelError::Overflow { kernel: "accept", what: "workspace" })?;
        let workspace = verification.workspace.reserve(backend, stream, needed)?;
        let mut scratch = self.scratch();
        let Scratch { workspace: partials, error, .. } = &mut *scratch;
        // As sampling left them: the same length reserves the same memory.
        let partials_len = workspace_len(rows, vocab, false)?;
        let partials = partials.reserve(backend, stream, partials_len)?;
        let args = Accept {
            vocab,
            stride,
            sequences: tables.view(backend, stream, &device_requests)?,
            any_block: sequences
                .iter()
                .any(|s| s.rule == Rule::Block && !s.sampling.is_greedy() && !s.draft.is_empty()),
            tokens: tables.view(backend, stream, &device_tokens)?,
            target: SampledRows { logits: target()?, stats: self.input(target_stats, 0..rows)? },
            target_partials: Some(self.input(partials, 0..partials_len)?),
            draft,
            workspace: backend.view_mut(stream, workspace),
            arrived: self.output(arrived, 0..batch)?,
            verdicts: report.verdicts_mut(backend, stream)?,
            committed: self.output(committed, 0..batch * MAX_COMMITTED)?,
            error: Some(error_word(backend, stream, error)?),
        };
        Ok(self.kernels.accept(stream, &args)?)
    }

    /// Copies what the sequences' drafts were drawn from, and the statistics of the draws, side by side.
    fn copy_drafts(
        &self,
        sequences: &[VerifyRows<'_, Buffer<P::Backend>>],
        to: &mut Memory<P, f32>,
        to_draws: &mut Memory<P, u64>,
    ) -> Result<(), DeviceError> {
        const OPERATION: &str = "verify";
        let (backend, stream) = (self.backend(), &self.stream);
        let mut first = 0;
        for sequence in sequences {
            let Some(DraftLogits { logits, first_row, first_draw }) = compared(sequence) else { continue };
            let Values::Logits { draws, .. } = &logits.values else { continue };
            let (rows, stride) = (first_row..first_row + sequence.draft.len(), logits.stride());
            let elements = rows.start * stride..rows.end * stride;
            backend.copy(stream, logits.logits(OPERATION)?, elements, to, first * stride)?;
            let words = first_draw * STATS_WORDS..(first_draw + rows.len()) * STATS_WORDS;
            backend.copy(stream, draws, words, to_draws, first * STATS_WORDS)?;
            first += rows.len();
        }
        Ok(())
    }
}

/// Where the distributions of a verification's drafts are.
enum Drafts<'a, B: Backend> {
    /// All in this buffer, which the kernels read.
    InPlace(&'a Buffer<B>),
    /// In several, so that they are put together; or there are none.
    Apart,
}

impl<'a, B: Backend> Drafts<'a, B> {
    fn of(sequences: &[VerifyRows<'a, Buffer<B>>]) -> Self {
        let mut buffers = sequences.iter().filter_map(compared).map(|draft| draft.logits);
        match buffers.next() {
            Some(first) if buffers.all(|other| ptr::eq(first, other)) => Drafts::InPlace(first),
            _ => Drafts::Apart,
        }
    }
}

/// What a sequence's draft was drawn from, where its rule compares distributions.
fn compared<'a, B: Backend>(sequence: &VerifyRows<'a, Buffer<B>>) -> Option<DraftLogits<'a, Buffer<B>>> {
    let compares =
        !sequence.sampling.is_greedy() && sequence.rule != Rule::Match && !sequence.draft.is_empty();
    sequence.draft_logits.filter(|_| compares)
}

/// How slot `slot` of a draft is sampled.
pub(super) fn slot_sampling(draft: &DraftRows<'_>, slot: usize) -> Result<RowSampling, DeviceError> {
    // Positions count from the start of the next step, which the device knows.
    let numbers = match draft.rule {
        Rule::Match => Stream::target_draw(draft.seed, slot),
        Rule::Rejection | Rule::Block => Stream::new(draft.seed, Purpose::DraftDraw, slot, 0),
    };
    row_sampling(draft.sampling, (!draft.sampling.is_greedy()).then_some(numbers))
}

fn row_sampling(params: &SamplingParams, numbers: Option<Stream>) -> Result<RowSampling, DeviceError> {
    RowSampling::new(params, numbers).map_err(|_| invalid("sampling parameter"))
}

//! Verification and drafting: rows sampled, drafts accepted. Nothing is waited for.

use super::checks::{expect, expect_rows};
use super::memory::{Buffer, Grown, Packed};
use super::products::Products;
use super::results::Results;
use super::scratch::{Scratch, error_word};
use super::{Gpu, Linear};
use crate::acceptance::Rule;
use crate::backend::{Backend, View, ViewMut};
use crate::device::{Calibration, DeviceError, DraftRows, VerifyRows};
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
    /// The logits of every q, side by side, and what is known of them.
    draft_logits: Grown<B, f32>,
    draft_stats: Grown<B, RowStats>,
    /// Zero between launches.
    arrived: Grown<B, u32>,
    committed: Grown<B, i32>,
}

impl<B: Backend> Default for Verification<B> {
    fn default() -> Self {
        Verification {
            tables: Packed::default(),
            target_stats: Grown::default(),
            draft_logits: Grown::default(),
            draft_stats: Grown::default(),
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
        expect(OPERATION, "selected rows", vec![rows], vec![selected.rows])?;
        expect(OPERATION, "logits", vec![rows, vocab], vec![logits.rows, vocab])?;
        results.drafts.extend(drafts.iter().map(DraftRows::drafted));
        if rows == 0 || vocab == 0 {
            return Ok(());
        }
        let logit_rows = 0..rows * stride;
        let (logits, calibration) = match calibration {
            None => (LogitRows::Read(self.input(logits.logits(OPERATION)?, logit_rows)?), None),
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
                let logits = self.output(logits.logits_mut(OPERATION)?, logit_rows)?;
                (LogitRows::Update(logits), Some(calibration))
            }
        };
        let starts = selected.starts.reserve(backend, stream, drafts.len())?;
        let rows_that_count = selected.draft_rows.reserve(backend, stream, rows)?;
        let rows_to_sample = Rows {
            vocab,
            stride,
            logits,
            logit_index: Some(self.input(rows_that_count, 0..rows)?),
            starts: Some(self.input(starts, 0..drafts.len())?),
            calibration,
        };
        let ways = selected.tables.view(backend, stream, &selected.ways)?;
        self.sample(rows_to_sample, ways, report.more_stats_mut(backend, stream, rows)?)
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
        let mut ways = vec![row_sampling(&SamplingParams::GREEDY, None)?; logits.rows];
        let (mut tokens, mut requests, mut draft_ways) = (Vec::new(), Vec::new(), Vec::new());
        let mut sources = Vec::new();
        for sequence in sequences {
            let drafted = sequence.draft.len();
            let end = sequence.first_row.saturating_add(drafted + 1);
            expect_rows(OPERATION, "logits", logits, logits.cols, end)?;
            let greedy = sequence.sampling.is_greedy();
            let rule = if greedy { Rule::Match } else { sequence.rule };
            let draws = !greedy && (rule == Rule::Match || drafted == 0);
            for (i, way) in ways.iter_mut().skip(sequence.first_row).take(drafted + 1).enumerate() {
                let position = sequence.start.saturating_add(i + 1);
                let numbers = draws.then(|| Stream::target_draw(sequence.seed, position));
                *way = row_sampling(sequence.sampling, numbers)?;
            }
            let compares = rule != Rule::Match && drafted > 0;
            let first_draft = match sequence.draft_logits.filter(|_| compares) {
                Some(source) => {
                    expect_rows(OPERATION, "draft_logits", source, logits.cols, drafted)?;
                    let first = draft_ways.len();
                    sources.push((source, drafted));
                    let way = row_sampling(sequence.sampling, None)?;
                    draft_ways.resize(first + drafted, way);
                    Some(first)
                }
                None => None,
            };
            requests.push(Verify::new(&VerifySequence {
                rule,
                seed: sequence.seed,
                position: sequence.start,
                drafts: drafted,
                first_target: sequence.first_row,
                first_draft,
                first_token: tokens.len(),
                groups: GroupSet::default(),
            })?);
            // A token beyond the type is beyond every vocabulary, and never accepted.
            tokens.extend(sequence.draft.iter().map(|&token| i32::try_from(token).unwrap_or(i32::MAX)));
        }
        let (rows, draft_rows) = (ways.len(), draft_ways.len());
        let tables = &mut verification.tables;
        tables.clear();
        let (ways, draft_ways) = (tables.push(&ways), tables.push(&draft_ways));
        let (device_requests, device_tokens) = (tables.push(&requests), tables.push(&tokens));
        tables.upload(backend, stream)?;
        let draft_logits = verification.draft_logits.reserve(backend, stream, draft_rows * stride)?;
        let mut first = 0;
        for (source, rows) in sources {
            let len = rows * stride;
            backend.copy(stream, source.logits(OPERATION)?, 0..len, draft_logits, first)?;
            first += len;
        }
        let plain = |logits| Rows {
            vocab,
            stride,
            logits: LogitRows::Read(logits),
            logit_index: None,
            starts: None,
            calibration: None,
        };
        let target_stats = verification.target_stats.reserve(backend, stream, rows)?;
        let target = || self.input(logits.logits(OPERATION)?, 0..rows * stride);
        let ways = tables.view(backend, stream, &ways)?;
        self.sample(plain(target()?), ways, self.output(target_stats, 0..rows)?)?;
        let draft_stats = verification.draft_stats.reserve(backend, stream, draft_rows)?;
        if draft_rows > 0 {
            let logits = self.input(draft_logits, 0..draft_rows * stride)?;
            let draft_ways = tables.view(backend, stream, &draft_ways)?;
            self.sample(plain(logits), draft_ways, self.output(draft_stats, 0..draft_rows)?)?;
        }
        let arrived = verification.arrived.reserve(backend, stream, batch)?;
        let committed = verification.committed.reserve(backend, stream, batch * MAX_COMMITTED)?;
        let needed = accept_workspace_len(batch, vocab)
            .ok_or(KernelError::Overflow { kernel: "accept", what: "workspace" })?;
        let mut scratch = self.scratch();
        let Scratch { workspace, error, .. } = &mut *scratch;
        let args = Accept {
            vocab,
            stride,
            sequences: tables.view(backend, stream, &device_requests)?,
            any_block: sequences
                .iter()
                .any(|s| s.rule == Rule::Block && !s.sampling.is_greedy() && !s.draft.is_empty()),
            tokens: tables.view(backend, stream, &device_tokens)?,
            target: SampledRows { logits: target()?, stats: self.input(target_stats, 0..rows)? },
            draft: match draft_rows {
                0 => None,
                _ => Some(SampledRows {
                    logits: self.input(draft_logits, 0..draft_rows * stride)?,
                    stats: self.input(draft_stats, 0..draft_rows)?,
                }),
            },
            workspace: backend.view_mut(stream, workspace.reserve(backend, stream, needed)?),
            arrived: self.output(arrived, 0..batch)?,
            verdicts: report.verdicts_mut(backend, stream)?,
            committed: self.output(committed, 0..batch * MAX_COMMITTED)?,
            error: Some(error_word(backend, stream, error)?),
        };
        Ok(self.kernels.accept(stream, &args)?)
    }
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

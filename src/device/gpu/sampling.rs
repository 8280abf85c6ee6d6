//! Drafting and verification: rows sampled, drafts accepted.

use bytemuck::Zeroable;

use super::memory::Buffer;
use super::products::Products;
use super::{Gpu, Linear, Memory, expect, expect_rows, index32};
use crate::acceptance::Rule;
use crate::backend::Backend;
use crate::device::{Calibration, Device, DeviceError, DraftRows, DraftToken, Verdict, VerifyRows};
use crate::kernels::KernelError;
use crate::kernels::acceptance::{
    Accept, MAX_COMMITTED, SampledRows, Verdict as DeviceVerdict, Verify, VerifySequence,
    accept_workspace_len,
};
use crate::kernels::sampling::{
    Calibration as KernelCalibration, LogitRows, RowSampling, RowStats, Sample, workspace_len,
};
use crate::layout::GroupSet;
use crate::random::{Purpose, Stream};
use crate::sampling::SamplingParams;

/// Parameters that a request's validation should not have let through.
fn invalid(what: &'static str) -> DeviceError {
    DeviceError::OutOfRange { operation: "sample", what, index: 0, limit: 0 }
}

impl<P: Products> Gpu<P> {
    /// Statistics of the rows of `logits`, sampled by `ways`, a way a row, after the calibrator's correction.
    fn sample(
        &self,
        logits: LogitRows<'_, f32>,
        (vocab, stride): (usize, usize),
        ways: &[RowSampling],
        calibration: Option<KernelCalibration<'_>>,
    ) -> Result<Memory<P, RowStats>, DeviceError> {
        let (backend, stream) = (self.backend(), &self.stream);
        let mut sampling = backend.allocate(stream, ways.len())?;
        backend.upload(stream, ways, &mut sampling, 0)?;
        let mut stats = backend.allocate(stream, ways.len())?;
        let mut scratch = self.scratch();
        let needed = workspace_len(ways.len(), vocab, calibration.is_some())?;
        let workspace = scratch.workspace.reserve(backend, stream, needed)?;
        let args = Sample {
            vocab,
            stride,
            logits,
            logit_index: None,
            sampling: backend.view(stream, &sampling),
            starts: None,
            draft: None,
            calibration,
            workspace: backend.view_mut(stream, workspace),
            stats: backend.view_mut(stream, &mut stats),
            error: None,
        };
        self.kernels.sample(stream, args)?;
        Ok(stats)
    }

    /// Statistics of every row of `logits` as they are.
    fn sample_rows(
        &self,
        logits: &Buffer<P::Backend>,
        ways: &[RowSampling],
    ) -> Result<Memory<P, RowStats>, DeviceError> {
        let shape = (logits.cols, logits.stride());
        let rows = self.read(logits.logits("sample")?, 0..ways.len() * shape.1)?;
        self.sample(LogitRows::Read(rows), shape, ways, None)
    }

    pub(super) fn draft_tokens(
        &self,
        calibration: Option<Calibration<'_, Buffer<P::Backend>, Linear<P>>>,
        logits: &mut Buffer<P::Backend>,
        drafts: &[DraftRows<'_>],
    ) -> Result<Vec<Vec<DraftToken>>, DeviceError> {
        const OPERATION: &str = "draft";
        let greedy = row_sampling(&SamplingParams::GREEDY, None)?;
        let mut ways = vec![greedy; logits.rows];
        for draft in drafts {
            expect_rows(OPERATION, "logits", logits, logits.cols, draft.rows.end)?;
            for (slot, row) in (1..).zip(draft.rows.clone()) {
                let numbers = match draft.rule {
                    Rule::Match => Stream::target_draw(draft.seed, draft.start.saturating_add(slot)),
                    Rule::Rejection | Rule::Block => {
                        Stream::new(draft.seed, Purpose::DraftDraw, slot, draft.start)
                    }
                };
                let numbers = (!draft.sampling.is_greedy()).then_some(numbers);
                if let Some(way) = ways.get_mut(row) {
                    *way = row_sampling(draft.sampling, numbers)?;
                }
            }
        }
        if ways.is_empty() || logits.cols == 0 {
            return Ok(drafts.iter().map(|_| Vec::new()).collect());
        }
        let stats = match calibration {
            None => self.sample_rows(logits, &ways)?,
            Some(Calibration { hidden, output }) => {
                let rank = output.in_cols;
                expect_rows(OPERATION, "calibrator's hidden rows", hidden, rank, logits.rows)?;
                expect(OPERATION, "calibrator's output", vec![logits.cols], vec![output.out_cols])?;
                let backend = self.backend();
                let calibration = KernelCalibration {
                    rank,
                    hidden: self.read(hidden.activations(OPERATION, "hidden")?, 0..logits.rows * rank)?,
                    weight: backend.view(&self.stream, self.products.weight(&output.layer)),
                    bias: output.bias.as_ref().map(|bias| backend.view(&self.stream, bias)),
                };
                let shape = (logits.cols, logits.stride());
                let rows = self.write(logits.logits_mut(OPERATION)?, 0..ways.len() * shape.1)?;
                self.sample(LogitRows::Update(rows), shape, &ways, Some(calibration))?
            }
        };
        let mut host = vec![RowStats::zeroed(); ways.len()];
        self.backend().download(&self.stream, &stats, 0, &mut host)?;
        let token = |row: usize| {
            let stats = host.get(row).copied().unwrap_or_else(RowStats::zeroed);
            DraftToken { token: stats.token.unsigned_abs(), confidence: stats.confidence }
        };
        Ok(drafts.iter().map(|draft| draft.rows.clone().map(token).collect()).collect())
    }

    pub(super) fn verdicts(
        &self,
        logits: &Buffer<P::Backend>,
        sequences: &[VerifyRows<'_, Buffer<P::Backend>>],
    ) -> Result<Vec<Verdict>, DeviceError> {
        const OPERATION: &str = "verify";
        if sequences.is_empty() {
            return Ok(Vec::new());
        }
        let (backend, stream) = (self.backend(), &self.stream);
        let mut ways = vec![row_sampling(&SamplingParams::GREEDY, None)?; logits.rows];
        let (mut tokens, mut requests, mut draft_ways) = (Vec::new(), Vec::new(), Vec::new());
        // The rows of every q side by side.
        let mut drafts = self.new_logits(logits.cols);
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
        drafts.resize(backend, stream, draft_ways.len())?;
        let mut first = 0;
        for (source, rows) in sources {
            let stride = logits.stride();
            let from = source.logits(OPERATION)?;
            let to = drafts.logits_mut(OPERATION)?;
            self.copy_rows(from, rows, stride, first, to)?;
            first += rows;
        }
        let stats = self.sample_rows(logits, &ways)?;
        let draft_stats = match draft_ways.is_empty() {
            true => None,
            false => Some(self.sample_rows(&drafts, &draft_ways)?),
        };
        let batch = sequences.len();
        let any_block =
            sequences.iter().any(|s| s.rule == Rule::Block && !s.sampling.is_greedy() && !s.draft.is_empty());
        let mut device_requests = backend.allocate(stream, batch)?;
        backend.upload(stream, &requests, &mut device_requests, 0)?;
        let mut device_tokens = backend.allocate(stream, tokens.len())?;
        backend.upload(stream, &tokens, &mut device_tokens, 0)?;
        let mut arrived = backend.allocate(stream, batch)?;
        let mut verdicts = backend.allocate(stream, batch)?;
        let mut committed = backend.allocate(stream, batch * MAX_COMMITTED)?;
        let needed = accept_workspace_len(batch, logits.cols)
            .ok_or(KernelError::Overflow { kernel: "accept", what: "workspace" })?;
        let mut scratch = self.scratch();
        let workspace = scratch.workspace.reserve(backend, stream, needed)?;
        let (rows, stride) = (ways.len(), logits.stride());
        let args = Accept {
            vocab: logits.cols,
            stride,
            sequences: backend.view(stream, &device_requests),
            any_block,
            tokens: backend.view(stream, &device_tokens),
            target: SampledRows {
                logits: self.read(logits.logits(OPERATION)?, 0..rows * stride)?,
                stats: backend.view(stream, &stats),
            },
            draft: match &draft_stats {
                Some(stats) => Some(SampledRows {
                    logits: self.read(drafts.logits(OPERATION)?, 0..draft_ways.len() * stride)?,
                    stats: backend.view(stream, stats),
                }),
                None => None,
            },
            workspace: backend.view_mut(stream, workspace),
            arrived: backend.view_mut(stream, &mut arrived),
            verdicts: backend.view_mut(stream, &mut verdicts),
            committed: backend.view_mut(stream, &mut committed),
            error: None,
        };
        self.kernels.accept(stream, &args)?;
        drop(args);
        let mut host = vec![DeviceVerdict::zeroed(); batch];
        backend.download(stream, &verdicts, 0, &mut host)?;
        host.iter()
            .map(|verdict| match usize::try_from(verdict.accepted) {
                Ok(accepted) => Ok(Verdict { accepted, bonus: verdict.bonus.unsigned_abs() }),
                Err(_) => Err(invalid("row of a verification")),
            })
            .collect()
    }

    /// The first `rows` rows of `from` to the rows of `to` from `first` on.
    fn copy_rows(
        &self,
        from: &Memory<P, f32>,
        rows: usize,
        stride: usize,
        first: usize,
        to: &mut Memory<P, f32>,
    ) -> Result<(), DeviceError> {
        let indices: Vec<i32> =
            (0..rows).map(|row| index32("verify", "row", row)).collect::<Result<_, _>>()?;
        let (backend, stream) = (self.backend(), &self.stream);
        let mut scratch = self.scratch();
        let ids = scratch.ids.reserve(backend, stream, rows)?;
        backend.upload(stream, &indices, ids, 0)?;
        // Elements of f32 as pairs of bf16, which a gather moves as they are.
        let cast = || invalid("row");
        let args = crate::kernels::glue::Gather {
            indices: self.read(ids, 0..rows)?,
            x: self.read(from, 0..rows * stride)?.cast().ok_or_else(cast)?,
            out: self.write(to, first * stride..(first + rows) * stride)?.cast().ok_or_else(cast)?,
            cols: 2 * stride,
        };
        Ok(self.kernels.gather(stream, &args)?)
    }
}

fn row_sampling(params: &SamplingParams, numbers: Option<Stream>) -> Result<RowSampling, DeviceError> {
    RowSampling::new(params, numbers).map_err(|_| invalid("sampling parameter"))
}

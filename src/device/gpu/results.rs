//! Verdicts and drafts: looked up by the device, read by the host in one piece.

use std::ops::Range;

use super::cache::GpuKvCache;
use super::checks::{expect, index32};
use super::memory::{GpuBuffer, GrowableMemory, STATS_WORDS, StagedTables, TableRange};
use super::pass::UploadedPass;
use super::products::Products;
use super::scratch::{Scratch, error_word};
use super::verification::{VerificationMemory, slot_sampling};
use super::{Gpu, GpuLinear};
use crate::device::{Device, DeviceError, DraftRows, DraftToken, SequenceVerdict, SlotRows, StepResults};
use crate::kernels::Faults;
use crate::kernels::acceptance::{MAX_DRAFTS, Verdict};
use crate::kernels::glue::{Embed, Gather};
use crate::kernels::sampling::{RowSampling, RowStats};
use crate::kernels::selection::{Draft, DraftGroups, FollowVerdicts, SelectDrafts};
use crate::layout::Pass;
use crate::runtime::{Runtime, RuntimeError, View, ViewMut};

/// What verification and drafting leave on a device, and the memory that they use.
#[derive(Debug)]
pub struct GpuResults<B: Runtime> {
    pub(super) report: StepReport<B>,
    /// The numbers of tokens of the drafts in the report that have not been read.
    pub(super) drafts: Vec<usize>,
    /// The verdicts, once they have been read.
    known: Option<Vec<SequenceVerdict>>,
    pub(super) selected: Selected<B>,
    pub(super) verification: VerificationMemory<B>,
}

impl<B: Runtime> Default for GpuResults<B> {
    fn default() -> Self {
        GpuResults {
            report: StepReport::default(),
            drafts: Vec::new(),
            known: None,
            selected: Selected::default(),
            verification: VerificationMemory::default(),
        }
    }
}

impl<B: Runtime> GpuResults<B> {
    /// Makes room for the verdicts of `batch` sequences and all their drafts.
    pub(super) fn begin(&mut self, runtime: &B, stream: &B::Stream, batch: usize) -> Result<(), DeviceError> {
        self.known = None;
        self.drafts.clear();
        self.report.begin(runtime, stream, batch)
    }
}

/// A verification on a GPU.
#[derive(Debug)]
pub struct GpuVerification<'a, P: Products> {
    device: &'a Gpu<P>,
    pub(super) results: &'a mut GpuResults<P::Runtime>,
}

/// Drafts on a GPU, and the rows that the verdicts select for them.
#[derive(Debug)]
pub struct GpuSelection<'s, P: Products> {
    pub(super) device: &'s Gpu<P>,
    pub(super) results: &'s mut GpuResults<P::Runtime>,
    pub(super) drafts: &'s [DraftRows<'s>],
}

/// What the host reads of a step: the error word, then the verdicts, then the statistics of draft rows.
#[derive(Debug)]
pub(super) struct StepReport<B: Runtime> {
    words: GrowableMemory<B, u64>,
    batch: usize,
    /// Draft rows since the verification, and how many of them have been read.
    rows: usize,
    read: usize,
}

impl<B: Runtime> Default for StepReport<B> {
    fn default() -> Self {
        StepReport { words: GrowableMemory::default(), batch: 0, rows: 0, read: 0 }
    }
}

/// Words of 8 bytes: of the error word, of a verdict and of the statistics of a row.
const ERROR_WORDS: usize = 1;
const VERDICT_WORDS: usize = size_of::<Verdict>() / 8;

/// Largest number of draft rows per sequence: a group that did not come true, and a drafting pass after it.
const DRAFT_ROWS: usize = 2 * MAX_DRAFTS;

impl<B: Runtime> StepReport<B> {
    fn begin(&mut self, runtime: &B, stream: &B::Stream, batch: usize) -> Result<(), DeviceError> {
        (self.batch, self.rows, self.read) = (0, 0, 0);
        let words = batch.checked_mul(VERDICT_WORDS + DRAFT_ROWS * STATS_WORDS);
        let words = words.and_then(|words| words.checked_add(ERROR_WORDS));
        let words = words.ok_or(DeviceError::OutOfMemory { what: "verdicts", bytes: usize::MAX })?;
        self.words.reserve(runtime, stream, words)?;
        self.batch = batch;
        Ok(())
    }

    /// Draft rows since the verification.
    pub(super) fn rows(&self) -> usize {
        self.rows
    }

    fn verdict_words(&self) -> Range<usize> {
        ERROR_WORDS..ERROR_WORDS + self.batch * VERDICT_WORDS
    }

    /// Words of the statistics of rows 0..`rows`.
    fn stats_words(&self, rows: Range<usize>) -> Range<usize> {
        let first = self.verdict_words().end;
        first + rows.start * STATS_WORDS..first + rows.end * STATS_WORDS
    }

    /// The verdicts, to be read by a kernel.
    fn verdicts<'a>(&'a self, runtime: &B, stream: &'a B::Stream) -> Result<View<'a, Verdict>, DeviceError> {
        let words = self.verdict_words();
        let view = self.words.memory().and_then(|memory| runtime.view(stream, memory).range(words.clone()));
        view.and_then(View::cast).ok_or_else(|| missing(words.end))
    }

    /// The verdicts, to be written.
    pub(super) fn verdicts_mut<'a>(
        &'a mut self,
        runtime: &B,
        stream: &'a B::Stream,
    ) -> Result<ViewMut<'a, Verdict>, DeviceError> {
        let words = self.verdict_words();
        self.part(runtime, stream, words.clone())?.cast().ok_or_else(|| missing(words.end))
    }

    /// Adds `rows` draft rows, with the next of `draws`.
    pub(super) fn add(
        &mut self,
        runtime: &B,
        stream: &B::Stream,
        draws: &B::Memory<u64>,
        rows: usize,
    ) -> Result<(), DeviceError> {
        let (first, end, limit) = (self.rows, self.rows.saturating_add(rows), self.batch * DRAFT_ROWS);
        if end > limit {
            return Err(DeviceError::OutOfRange { operation: "draft", what: "row", index: end, limit });
        }
        let words = self.stats_words(first..end);
        let memory = self.words.reserve(runtime, stream, words.end)?;
        runtime.copy(stream, draws, first * STATS_WORDS..end * STATS_WORDS, memory, words.start)?;
        self.rows = end;
        Ok(())
    }

    fn part<'a>(
        &'a mut self,
        runtime: &B,
        stream: &'a B::Stream,
        words: Range<usize>,
    ) -> Result<ViewMut<'a, u64>, DeviceError> {
        let end = words.end;
        let memory = self.words.reserve(runtime, stream, end)?;
        runtime.view_mut(stream, memory).range(words).ok_or_else(|| missing(end))
    }

    /// Copies it to the host, with the device's error word, and waits for that. Returns that word, the verdicts and
    /// the statistics of the draft rows since the last call.
    fn read(
        &mut self,
        runtime: &B,
        stream: &B::Stream,
        error: &mut GrowableMemory<B, u64>,
    ) -> Result<(u32, Vec<Verdict>, Vec<RowStats>), DeviceError> {
        let (verdicts, stats) = (self.verdict_words(), self.stats_words(self.read..self.rows));
        self.read = self.rows;
        let mut host = vec![0u64; stats.end];
        let word = error.reserve(runtime, stream, 1)?;
        let report = self.words.reserve(runtime, stream, stats.end)?;
        runtime.copy(stream, word, 0..1, report, 0)?;
        runtime.download(stream, report, 0, &mut host)?;
        let [low, _]: [u32; 2] = bytemuck::must_cast(host.first().copied().unwrap_or(0));
        let part = |words: Range<usize>| host.get(words).unwrap_or(&[]);
        let verdicts = bytemuck::pod_collect_to_vec(part(verdicts));
        Ok((low, verdicts, bytemuck::pod_collect_to_vec(part(stats))))
    }
}

/// A part of the report that was not made.
fn missing(wanted: usize) -> DeviceError {
    RuntimeError::CopyLength { wanted, found: 0 }.into()
}

/// What the verdicts decide about the drafts that were selected.
#[derive(Debug)]
pub(super) struct Selected<B: Runtime> {
    drafts: usize,
    pub(super) rows: usize,
    pub(super) slots: SlotRows,
    /// The drafts, and how each of their rows is sampled.
    pub(super) tables: StagedTables<B>,
    pub(super) row_sampling: TableRange<RowSampling>,
    /// Of each draft: its bonus token and the position that its draws count from.
    bonus: GrowableMemory<B, i32>,
    pub(super) starts: GrowableMemory<B, i32>,
    /// Of each draft row: the row of the pass or of the logits that it comes from, and the row of its logits.
    sources: GrowableMemory<B, i32>,
    pub(super) draft_rows: GrowableMemory<B, i32>,
}

impl<B: Runtime> Default for Selected<B> {
    fn default() -> Self {
        Selected {
            drafts: 0,
            rows: 0,
            slots: SlotRows::Logits,
            tables: StagedTables::default(),
            row_sampling: TableRange::default(),
            bonus: GrowableMemory::default(),
            starts: GrowableMemory::default(),
            sources: GrowableMemory::default(),
            draft_rows: GrowableMemory::default(),
        }
    }
}

impl<'a, P: Products> GpuVerification<'a, P> {
    pub(super) fn new(device: &'a Gpu<P>, results: &'a mut GpuResults<P::Runtime>) -> Self {
        Self { device, results }
    }

    /// The verdicts, once they have been read.
    pub(super) fn known(&self) -> Option<&[SequenceVerdict]> {
        self.results.known.as_deref()
    }

    /// Draft rows since the verification.
    pub(super) fn drafted(&self) -> usize {
        self.results.report.rows()
    }

    /// Lays out a drafting pass, with each group at the place that its verdict gives it.
    pub(super) fn begin_pass<'p>(
        &'p self,
        pass: &'p Pass<'p>,
        verdicts: &[usize],
        cache: &GpuKvCache<P::Runtime>,
    ) -> Result<UploadedPass<'p, P::Runtime>, DeviceError> {
        const OPERATION: &str = "begin_drafting";
        let (device, results) = (self.device, &self.results);
        expect(OPERATION, "verdicts", vec![pass.sequences.len()], vec![verdicts.len()])?;
        let mut host = Vec::with_capacity(verdicts.len());
        for (rows, &verdict) in pass.sequences.iter().zip(verdicts) {
            expect(OPERATION, "candidates and groups", vec![0, 1], vec![rows.candidates, rows.groups.len()])?;
            host.push(index32(OPERATION, "verdict", verdict)?);
        }
        let mut pass = device.begin(pass, cache)?;
        if verdicts.is_empty() || results.known.is_some() {
            return Ok(pass);
        }
        let (runtime, stream) = (device.runtime(), &device.stream);
        let mut scratch = device.scratch();
        let Scratch { followed, error, .. } = &mut *scratch;
        let ids = followed.holding(runtime, stream, host)?;
        let args = FollowVerdicts {
            pass: pass.tables_mut(),
            sequences: device.input(ids, 0..verdicts.len())?,
            verdicts: results.report.verdicts(runtime, stream)?,
            error: Some(error_word(runtime, stream, error)?),
        };
        device.kernels.follow_verdicts(stream, args)?;
        drop(scratch);
        Ok(pass)
    }

    /// Finds the rows and bonus tokens of `drafts` on the device.
    pub(super) fn select<'s>(
        &'s mut self,
        drafts: &'s [DraftRows<'s>],
        slots: SlotRows,
    ) -> Result<GpuSelection<'s, P>, DeviceError> {
        const OPERATION: &str = "select_drafts";
        let device = self.device;
        let (runtime, stream) = (device.runtime(), &device.stream);
        let GpuResults { report, known, selected, .. } = &mut *self.results;
        (selected.drafts, selected.rows, selected.slots) = (0, 0, slots);
        let (mut table, mut rows) = (Vec::with_capacity(drafts.len()), 0);
        let mut row_sampling = Vec::new();
        for (place, draft) in (0..).zip(drafts) {
            let (index, limit) = (draft.sequence, report.batch);
            if index >= limit {
                return Err(DeviceError::OutOfRange { operation: OPERATION, what: "sequence", index, limit });
            }
            if let Some(verdict) = known.as_ref().and_then(|known| known.get(index))
                && !draft.groups.contains(verdict.accepted)
            {
                let (what, index) = ("accepted length without a group", verdict.accepted);
                return Err(DeviceError::OutOfRange { operation: OPERATION, what, index, limit: 0 });
            }
            let groups = DraftGroups {
                sequence: draft.sequence,
                groups: draft.groups,
                first_slot: draft.first_row,
                slots: draft.slots,
                first_draft: rows,
            };
            table.push(match slots {
                SlotRows::Pass { .. } => Draft::new(&groups)?,
                SlotRows::Logits => Draft::in_logits(&groups)?,
            });
            rows += draft.drafted();
            for slot in 1..draft.slots {
                row_sampling.push(slot_sampling(draft, slot)?.relative_to(place));
            }
        }
        let count = table.len();
        selected.tables.clear();
        let table = selected.tables.push(&table);
        selected.row_sampling = selected.tables.push(&row_sampling);
        selected.tables.upload(runtime, stream)?;
        let mut scratch = device.scratch();
        let args = SelectDrafts {
            drafts: selected.tables.view(runtime, stream, &table)?,
            verdicts: report.verdicts(runtime, stream)?,
            bonus: device.output(selected.bonus.reserve(runtime, stream, count)?, 0..count)?,
            starts: device.output(selected.starts.reserve(runtime, stream, count)?, 0..count)?,
            sources: device.output(selected.sources.reserve(runtime, stream, rows)?, 0..rows)?,
            draft_rows: device.output(selected.draft_rows.reserve(runtime, stream, rows)?, 0..rows)?,
            error: Some(error_word(runtime, stream, &mut scratch.error)?),
        };
        device.kernels.select_drafts(stream, &args)?;
        drop(args);
        drop(scratch);
        (selected.drafts, selected.rows) = (count, rows);
        Ok(GpuSelection { device, results: self.results, drafts })
    }

    /// Waits for the device, and reads what was not read yet.
    pub(super) fn take(&mut self) -> Result<StepResults, DeviceError> {
        let Self { device, results } = self;
        let (runtime, stream) = (device.runtime(), &device.stream);
        let drafts = std::mem::take(&mut results.drafts);
        let mut scratch = device.scratch();
        let Scratch { error, .. } = &mut *scratch;
        let (word, verdicts, stats) = results.report.read(runtime, stream, error)?;
        if let Some(faults) = Faults::of(word) {
            runtime.upload(stream, &[0], error.reserve(runtime, stream, 1)?, 0)?;
            return Err(DeviceError::Faults(faults));
        }
        let found = verdicts.iter().map(|verdict| host_verdict(verdict).ok_or_else(|| missing(0)));
        let verdicts: Vec<SequenceVerdict> = found.collect::<Result<_, DeviceError>>()?;
        let mut stats = stats.iter();
        let tokens = |len: usize| {
            let token = |stats: &RowStats| DraftToken {
                token: stats.token.unsigned_abs(),
                confidence: stats.confidence,
            };
            stats.by_ref().take(len).map(token).collect()
        };
        results.known = Some(verdicts.clone());
        Ok(StepResults { verdicts, drafts: drafts.into_iter().map(tokens).collect() })
    }
}

impl<P: Products> GpuSelection<'_, P> {
    /// Writes the selected rows of `x` to `out`.
    pub(super) fn gather_rows(
        &self,
        x: &GpuBuffer<P::Runtime>,
        out: &mut GpuBuffer<P::Runtime>,
    ) -> Result<(), DeviceError> {
        const OPERATION: &str = "gather_selected";
        let Self { device, results, .. } = self;
        expect(OPERATION, "out", vec![out.rows, x.cols], vec![out.rows, out.cols])?;
        let (rows, cols) = (results.selected.rows, x.cols);
        device.resize(out, rows)?;
        let Some(sources) = results.selected.sources.memory().filter(|_| rows > 0) else { return Ok(()) };
        let mut scratch = device.scratch();
        let args = Gather {
            indices: device.input(sources, 0..rows)?,
            x: device.input(x.activations(OPERATION, "x")?, 0..x.rows * cols)?,
            out: device.output(out.activations_mut(OPERATION, "out")?, 0..rows * cols)?,
            error: Some(error_word(device.runtime(), &device.stream, &mut scratch.error)?),
            cols,
        };
        Ok(device.kernels.gather(&device.stream, &args)?)
    }

    /// Writes the embeddings of the bonus tokens to `out`.
    pub(super) fn embed_tokens(
        &self,
        table: &GpuLinear<P>,
        out: &mut GpuBuffer<P::Runtime>,
    ) -> Result<(), DeviceError> {
        const OPERATION: &str = "embed_bonus";
        let Self { device, results, .. } = self;
        expect(OPERATION, "out", vec![out.rows, table.in_cols], vec![out.rows, out.cols])?;
        let (drafts, cols) = (results.selected.drafts, table.in_cols);
        device.resize(out, drafts)?;
        let Some(bonus) = results.selected.bonus.memory().filter(|_| drafts > 0) else { return Ok(()) };
        let (runtime, stream) = (device.runtime(), &device.stream);
        let mut scratch = device.scratch();
        let args = Embed {
            ids: device.input(bonus, 0..drafts)?,
            table: runtime.view(stream, device.products.weight(&table.layer)),
            out: device.output(out.activations_mut(OPERATION, "out")?, 0..drafts * cols)?,
            error: Some(error_word(runtime, stream, &mut scratch.error)?),
            cols,
        };
        Ok(device.kernels.embed(stream, &args)?)
    }
}

/// A verdict as the host counts, if there is one.
fn host_verdict(verdict: &Verdict) -> Option<SequenceVerdict> {
    Some(SequenceVerdict {
        accepted: usize::try_from(verdict.accepted).ok()?,
        bonus: u32::try_from(verdict.bonus).ok()?,
        next_start: usize::try_from(verdict.cached_length).ok()?,
    })
}

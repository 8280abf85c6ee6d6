//! Verdicts and drafts: looked up by the device, read by the host in one piece.

use std::ops::Range;

use super::checks::{expect, index32};
use super::memory::{Buffer, Grown, Packed, Part, STATS_WORDS};
use super::pass::LaidOut;
use super::products::Products;
use super::sampling::{Verification, slot_sampling};
use super::scratch::{Scratch, error_word};
use super::{Gpu, Linear};
use crate::backend::{Backend, BackendError, View, ViewMut};
use crate::device::{Device, DeviceError, DraftRows, DraftToken, Found, SlotRows, Verdict};
use crate::kernels::Faults;
use crate::kernels::acceptance::{MAX_DRAFTS, Verdict as DeviceVerdict};
use crate::kernels::glue::{Embed, Gather};
use crate::kernels::sampling::{RowSampling, RowStats};
use crate::kernels::selection::{Draft, DraftGroups, FollowVerdicts, SelectDrafts};

/// What verification and drafting leave on a device, and the memory that they use.
#[derive(Debug)]
pub struct Results<B: Backend> {
    pub(super) report: Report<B>,
    /// The numbers of tokens of the drafts in the report that have not been read.
    pub(super) drafts: Vec<usize>,
    /// The verdicts, once they have been read.
    known: Option<Vec<Verdict>>,
    pub(super) selected: Selected<B>,
    pub(super) verification: Verification<B>,
}

impl<B: Backend> Default for Results<B> {
    fn default() -> Self {
        Results {
            report: Report::default(),
            drafts: Vec::new(),
            known: None,
            selected: Selected::default(),
            verification: Verification::default(),
        }
    }
}

impl<B: Backend> Results<B> {
    /// Makes room for the verdicts of `batch` sequences and all their drafts.
    pub(super) fn begin(&mut self, backend: &B, stream: &B::Stream, batch: usize) -> Result<(), DeviceError> {
        self.known = None;
        self.drafts.clear();
        self.report.begin(backend, stream, batch)
    }

    /// The verdicts, once they have been read.
    pub(super) fn known(&self) -> Option<&[Verdict]> {
        self.known.as_deref()
    }
}

/// What the host reads of a step: the error word, then the verdicts, then the statistics of draft rows.
#[derive(Debug)]
pub(super) struct Report<B: Backend> {
    words: Grown<B, u64>,
    batch: usize,
    /// Draft rows since the verification, and how many of them have been read.
    rows: usize,
    read: usize,
}

impl<B: Backend> Default for Report<B> {
    fn default() -> Self {
        Report { words: Grown::default(), batch: 0, rows: 0, read: 0 }
    }
}

/// Words of 8 bytes: of the error word, of a verdict and of the statistics of a row.
const ERROR_WORDS: usize = 1;
const VERDICT_WORDS: usize = size_of::<DeviceVerdict>() / 8;

/// Draft rows of a sequence at most: those of a group that did not come true, and of a drafting pass after it.
const DRAFT_ROWS: usize = 2 * MAX_DRAFTS;

impl<B: Backend> Report<B> {
    fn begin(&mut self, backend: &B, stream: &B::Stream, batch: usize) -> Result<(), DeviceError> {
        (self.batch, self.rows, self.read) = (0, 0, 0);
        let words = batch.checked_mul(VERDICT_WORDS + DRAFT_ROWS * STATS_WORDS);
        let words = words.and_then(|words| words.checked_add(ERROR_WORDS));
        let words = words.ok_or(DeviceError::OutOfMemory { what: "verdicts", bytes: usize::MAX })?;
        self.words.reserve(backend, stream, words)?;
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
    fn verdicts<'a>(
        &'a self,
        backend: &B,
        stream: &'a B::Stream,
    ) -> Result<View<'a, DeviceVerdict>, DeviceError> {
        let words = self.verdict_words();
        let view = self.words.memory().and_then(|memory| backend.view(stream, memory).range(words.clone()));
        view.and_then(View::cast).ok_or_else(|| missing(words.end))
    }

    /// The verdicts, to be written.
    pub(super) fn verdicts_mut<'a>(
        &'a mut self,
        backend: &B,
        stream: &'a B::Stream,
    ) -> Result<ViewMut<'a, DeviceVerdict>, DeviceError> {
        let words = self.verdict_words();
        self.part(backend, stream, words.clone())?.cast().ok_or_else(|| missing(words.end))
    }

    /// Adds `rows` draft rows, with the next of `draws`.
    pub(super) fn add(
        &mut self,
        backend: &B,
        stream: &B::Stream,
        draws: &B::Memory<u64>,
        rows: usize,
    ) -> Result<(), DeviceError> {
        let (first, end, limit) = (self.rows, self.rows.saturating_add(rows), self.batch * DRAFT_ROWS);
        if end > limit {
            return Err(DeviceError::OutOfRange { operation: "draft", what: "row", index: end, limit });
        }
        let words = self.stats_words(first..end);
        let memory = self.words.reserve(backend, stream, words.end)?;
        backend.copy(stream, draws, first * STATS_WORDS..end * STATS_WORDS, memory, words.start)?;
        self.rows = end;
        Ok(())
    }

    fn part<'a>(
        &'a mut self,
        backend: &B,
        stream: &'a B::Stream,
        words: Range<usize>,
    ) -> Result<ViewMut<'a, u64>, DeviceError> {
        let end = words.end;
        let memory = self.words.reserve(backend, stream, end)?;
        backend.view_mut(stream, memory).range(words).ok_or_else(|| missing(end))
    }

    /// Copies it to the host, with the device's error word, and waits for that. Returns that word, the verdicts and
    /// the statistics of the draft rows since the last call.
    fn read(
        &mut self,
        backend: &B,
        stream: &B::Stream,
        error: &mut Grown<B, u64>,
    ) -> Result<(u32, Vec<DeviceVerdict>, Vec<RowStats>), DeviceError> {
        let (verdicts, stats) = (self.verdict_words(), self.stats_words(self.read..self.rows));
        self.read = self.rows;
        let mut host = vec![0u64; stats.end];
        let word = error.reserve(backend, stream, 1)?;
        let report = self.words.reserve(backend, stream, stats.end)?;
        backend.copy(stream, word, 0..1, report, 0)?;
        backend.download(stream, report, 0, &mut host)?;
        let [low, _]: [u32; 2] = bytemuck::must_cast(host.first().copied().unwrap_or(0));
        let part = |words: Range<usize>| host.get(words).unwrap_or(&[]);
        let verdicts = bytemuck::pod_collect_to_vec(part(verdicts));
        Ok((low, verdicts, bytemuck::pod_collect_to_vec(part(stats))))
    }
}

/// A part of the report that was not made.
fn missing(wanted: usize) -> DeviceError {
    BackendError::CopyLength { wanted, found: 0 }.into()
}

/// What the verdicts decide about the drafts that were selected.
#[derive(Debug)]
pub(super) struct Selected<B: Backend> {
    drafts: usize,
    pub(super) rows: usize,
    pub(super) slots: SlotRows,
    /// The drafts, and how each of their rows is sampled.
    pub(super) tables: Packed<B>,
    pub(super) ways: Part<RowSampling>,
    /// Of each draft: its bonus token and the position that its draws count from.
    bonus: Grown<B, i32>,
    pub(super) starts: Grown<B, i32>,
    /// Of each draft row: the row of the pass or of the logits that it comes from, and the row of its logits.
    sources: Grown<B, i32>,
    pub(super) draft_rows: Grown<B, i32>,
}

impl<B: Backend> Default for Selected<B> {
    fn default() -> Self {
        Selected {
            drafts: 0,
            rows: 0,
            slots: SlotRows::Logits,
            tables: Packed::default(),
            ways: Part::default(),
            bonus: Grown::default(),
            starts: Grown::default(),
            sources: Grown::default(),
            draft_rows: Grown::default(),
        }
    }
}

impl<P: Products> Gpu<P> {
    pub(super) fn follow_verdicts(
        &self,
        pass: &mut LaidOut<'_, P::Backend>,
        verdicts: &[usize],
        results: &Results<P::Backend>,
    ) -> Result<(), DeviceError> {
        const OPERATION: &str = "follow";
        let sequences = &pass.layout.sequences;
        expect(OPERATION, "verdicts", vec![sequences.len()], vec![verdicts.len()])?;
        if verdicts.is_empty() || results.known.is_some() {
            return Ok(());
        }
        let (backend, stream) = (self.backend(), &self.stream);
        let mut host = Vec::with_capacity(verdicts.len());
        for (rows, &verdict) in sequences.iter().zip(verdicts) {
            expect(OPERATION, "candidates and groups", vec![0, 1], vec![rows.candidates, rows.groups.len()])?;
            host.push(index32(OPERATION, "verdict", verdict)?);
        }
        let mut scratch = self.scratch();
        let Scratch { followed, error, .. } = &mut *scratch;
        let ids = followed.holding(backend, stream, host)?;
        let args = FollowVerdicts {
            pass: pass.tables_mut(),
            sequences: self.input(ids, 0..verdicts.len())?,
            verdicts: results.report.verdicts(backend, stream)?,
            error: Some(error_word(backend, stream, error)?),
        };
        Ok(self.kernels.follow_verdicts(stream, args)?)
    }

    pub(super) fn select_drafts(
        &self,
        drafts: &[DraftRows<'_>],
        slots: SlotRows,
        results: &mut Results<P::Backend>,
    ) -> Result<(), DeviceError> {
        const OPERATION: &str = "select";
        let (backend, stream) = (self.backend(), &self.stream);
        let Results { report, known, selected, .. } = results;
        (selected.drafts, selected.rows, selected.slots) = (0, 0, slots);
        let (mut table, mut rows) = (Vec::with_capacity(drafts.len()), 0);
        let mut ways = Vec::new();
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
                ways.push(slot_sampling(draft, slot)?.relative_to(place));
            }
        }
        let count = table.len();
        selected.tables.clear();
        let table = selected.tables.push(&table);
        selected.ways = selected.tables.push(&ways);
        selected.tables.upload(backend, stream)?;
        let mut scratch = self.scratch();
        let args = SelectDrafts {
            drafts: selected.tables.view(backend, stream, &table)?,
            verdicts: report.verdicts(backend, stream)?,
            bonus: self.output(selected.bonus.reserve(backend, stream, count)?, 0..count)?,
            starts: self.output(selected.starts.reserve(backend, stream, count)?, 0..count)?,
            sources: self.output(selected.sources.reserve(backend, stream, rows)?, 0..rows)?,
            draft_rows: self.output(selected.draft_rows.reserve(backend, stream, rows)?, 0..rows)?,
            error: Some(error_word(backend, stream, &mut scratch.error)?),
        };
        self.kernels.select_drafts(stream, &args)?;
        drop(args);
        (selected.drafts, selected.rows) = (count, rows);
        Ok(())
    }

    pub(super) fn gather_slots(
        &self,
        x: &Buffer<P::Backend>,
        results: &Results<P::Backend>,
        out: &mut Buffer<P::Backend>,
    ) -> Result<(), DeviceError> {
        const OPERATION: &str = "gather_selected";
        expect(OPERATION, "out", vec![out.rows, x.cols], vec![out.rows, out.cols])?;
        let (rows, cols) = (results.selected.rows, x.cols);
        self.resize(out, rows)?;
        let Some(sources) = results.selected.sources.memory().filter(|_| rows > 0) else { return Ok(()) };
        let mut scratch = self.scratch();
        let args = Gather {
            indices: self.input(sources, 0..rows)?,
            x: self.input(x.activations(OPERATION, "x")?, 0..x.rows * cols)?,
            out: self.output(out.activations_mut(OPERATION, "out")?, 0..rows * cols)?,
            error: Some(error_word(self.backend(), &self.stream, &mut scratch.error)?),
            cols,
        };
        Ok(self.kernels.gather(&self.stream, &args)?)
    }

    pub(super) fn embed_bonus_tokens(
        &self,
        table: &Linear<P>,
        results: &Results<P::Backend>,
        out: &mut Buffer<P::Backend>,
    ) -> Result<(), DeviceError> {
        const OPERATION: &str = "embed_bonus";
        expect(OPERATION, "out", vec![out.rows, table.in_cols], vec![out.rows, out.cols])?;
        let (drafts, cols) = (results.selected.drafts, table.in_cols);
        self.resize(out, drafts)?;
        let Some(bonus) = results.selected.bonus.memory().filter(|_| drafts > 0) else { return Ok(()) };
        let (backend, stream) = (self.backend(), &self.stream);
        let mut scratch = self.scratch();
        let args = Embed {
            ids: self.input(bonus, 0..drafts)?,
            table: backend.view(stream, self.products.weight(&table.layer)),
            out: self.output(out.activations_mut(OPERATION, "out")?, 0..drafts * cols)?,
            error: Some(error_word(backend, stream, &mut scratch.error)?),
            cols,
        };
        Ok(self.kernels.embed(stream, &args)?)
    }

    pub(super) fn read_results(&self, results: &mut Results<P::Backend>) -> Result<Found, DeviceError> {
        let (backend, stream) = (self.backend(), &self.stream);
        let drafts = std::mem::take(&mut results.drafts);
        let mut scratch = self.scratch();
        let Scratch { error, .. } = &mut *scratch;
        let (word, verdicts, stats) = results.report.read(backend, stream, error)?;
        if let Some(faults) = Faults::of(word) {
            backend.upload(stream, &[0], error.reserve(backend, stream, 1)?, 0)?;
            return Err(DeviceError::Faults(faults));
        }
        let found = verdicts.iter().map(|verdict| host_verdict(verdict).ok_or_else(|| missing(0)));
        let verdicts: Vec<Verdict> = found.collect::<Result<_, DeviceError>>()?;
        let mut stats = stats.iter();
        let tokens = |len: usize| {
            let token = |stats: &RowStats| DraftToken {
                token: stats.token.unsigned_abs(),
                confidence: stats.confidence,
            };
            stats.by_ref().take(len).map(token).collect()
        };
        results.known = Some(verdicts.clone());
        Ok(Found { verdicts, drafts: drafts.into_iter().map(tokens).collect() })
    }
}

/// A verdict as the host counts, if there is one.
fn host_verdict(verdict: &DeviceVerdict) -> Option<Verdict> {
    Some(Verdict {
        accepted: usize::try_from(verdict.accepted).ok()?,
        bonus: u32::try_from(verdict.bonus).ok()?,
        next_start: usize::try_from(verdict.cached_length).ok()?,
    })
}

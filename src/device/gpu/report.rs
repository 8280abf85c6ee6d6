//! The report of a step: all results that the host reads, in one piece of device memory.

use std::ops::Range;

use super::buffer::STATS_WORDS;
use super::context::Context;
use super::memory::GrowableMemory;
use super::scratch::Scratch;
use crate::device::DeviceError;
use crate::kernels::acceptance::{MAX_DRAFTS, Verdict};
use crate::kernels::sampling::RowStats;
use crate::runtime::{Runtime, View, ViewMut};

/// Sizes of the device error word and of a verdict, in words of 8 bytes.
const ERROR_WORDS: usize = 1;
const VERDICT_WORDS: usize = size_of::<Verdict>() / 8;

/// The maximum number of draft rows per sequence: the rows of a mask group that does not match the verdict, and of a
/// drafting pass after it.
const DRAFT_ROWS: usize = 2 * MAX_DRAFTS;

/// Device memory with the report of a step: the device error word, then the verdicts, then the statistics of
/// the draft rows.
#[derive(Debug)]
pub(super) struct StepReport<R: Runtime> {
    words: GrowableMemory<R, u64>,
    batch: usize,
    /// Number of draft rows since the verification.
    rows: usize,
    /// Number of draft rows that the host has read.
    read: usize,
}

/// A report as the host reads it.
#[derive(Debug)]
pub(super) struct HostReport {
    /// The device error word.
    pub(super) error: u32,
    pub(super) verdicts: Vec<Verdict>,
    /// The statistics of the draft rows since the last reading.
    pub(super) stats: Vec<RowStats>,
}

impl<R: Runtime> Default for StepReport<R> {
    fn default() -> Self {
        StepReport { words: GrowableMemory::default(), batch: 0, rows: 0, read: 0 }
    }
}

impl<R: Runtime> StepReport<R> {
    /// Makes room for the verdicts of `batch` sequences and for all their draft rows.
    pub(super) fn begin(&mut self, context: &Context<R>, batch: usize) -> Result<(), DeviceError> {
        (self.batch, self.rows, self.read) = (0, 0, 0);
        let words = batch.checked_mul(VERDICT_WORDS + DRAFT_ROWS * STATS_WORDS);
        let words = words.and_then(|words| words.checked_add(ERROR_WORDS));
        let words = words.ok_or(DeviceError::Overflow { operation: "verify", operand: "verdicts" })?;
        self.words.reserve(context.queue(), words)?;
        self.batch = batch;
        Ok(())
    }

    /// Returns the number of sequences that the step verifies.
    pub(super) fn batch(&self) -> usize {
        self.batch
    }

    /// Returns the number of draft rows since the verification.
    pub(super) fn rows(&self) -> usize {
        self.rows
    }

    /// Returns whether the host has read all draft rows.
    pub(super) fn is_read(&self) -> bool {
        self.read == self.rows
    }

    fn verdict_words(&self) -> Range<usize> {
        ERROR_WORDS..ERROR_WORDS + self.batch * VERDICT_WORDS
    }

    /// Returns the range of words that hold the statistics of draft rows `rows`.
    fn stats_words(&self, rows: Range<usize>) -> Range<usize> {
        let first = self.verdict_words().end;
        first + rows.start * STATS_WORDS..first + rows.end * STATS_WORDS
    }

    /// Views the verdicts, for a kernel that reads them.
    pub(super) fn verdicts<'a>(
        &'a self,
        operation: &'static str,
        context: &'a Context<R>,
    ) -> Result<View<'a, Verdict>, DeviceError> {
        let words = self.verdict_words();
        let memory = self.words.memory().ok_or_else(|| DeviceError::Contract {
            operation,
            operand: "verification",
            expected: "a verification that has run",
            found: "one without memory".into(),
        })?;
        let overflow = DeviceError::Overflow { operation, operand: "verdicts" };
        context.input(memory, words)?.cast().ok_or(overflow)
    }

    /// Views the verdicts, for a kernel that writes them.
    pub(super) fn verdicts_mut<'a>(
        &'a mut self,
        operation: &'static str,
        context: &'a Context<R>,
    ) -> Result<ViewMut<'a, Verdict>, DeviceError> {
        let words = self.verdict_words();
        let memory = self.words.reserve(context.queue(), words.end)?;
        let overflow = DeviceError::Overflow { operation, operand: "verdicts" };
        context.output(memory, words)?.cast().ok_or(overflow)
    }

    /// Adds `rows` draft rows to the report: copies their statistics, the next in `draws`.
    pub(super) fn add(
        &mut self,
        context: &Context<R>,
        draws: &R::Memory<u64>,
        rows: usize,
    ) -> Result<(), DeviceError> {
        let (first, end, limit) = (self.rows, self.rows.saturating_add(rows), self.batch * DRAFT_ROWS);
        if end > limit {
            return Err(DeviceError::OutOfRange { operation: "draft", what: "row", index: end, limit });
        }
        let words = self.stats_words(first..end);
        let memory = self.words.reserve(context.queue(), words.end)?;
        let (runtime, stream) = context.queue();
        runtime.copy(stream, draws, first * STATS_WORDS..end * STATS_WORDS, memory, words.start)?;
        self.rows = end;
        Ok(())
    }

    /// Copies the report and the device's error word to the host, and waits for the copy.
    pub(super) fn read(
        &mut self,
        context: &Context<R>,
        Scratch { error, staging, .. }: &mut Scratch<R>,
    ) -> Result<HostReport, DeviceError> {
        let (verdicts, stats) = (self.verdict_words(), self.stats_words(self.read..self.rows));
        self.read = self.rows;
        let word = error.reserve(context.queue(), 1)?;
        let report = self.words.reserve(context.queue(), stats.end)?;
        let (runtime, stream) = context.queue();
        runtime.copy(stream, word, 0..1, report, 0)?;
        let host = runtime.download_staged(stream, report, stats.end, staging)?;
        let [error, _]: [u32; 2] = bytemuck::must_cast(host.first().copied().unwrap_or(0));
        let part = |words: Range<usize>| host.get(words).unwrap_or(&[]);
        let verdicts = bytemuck::pod_collect_to_vec(part(verdicts));
        Ok(HostReport { error, verdicts, stats: bytemuck::pod_collect_to_vec(part(stats)) })
    }
}

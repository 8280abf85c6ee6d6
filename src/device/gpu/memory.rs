//! Activations, and memory that grows with what is asked of it.

use std::marker::PhantomData;
use std::ops::Range;

use half::bf16;

use crate::device::DeviceError;
use crate::kernels::sampling::RowStats;
use crate::runtime::{Element, Runtime, RuntimeError, View};

/// Words of 8 bytes of the statistics of a row.
pub(super) const STATS_WORDS: usize = size_of::<RowStats>() / 8;

/// Memory for `len` elements, zero at first; where there is not so much, the error says what it was for.
pub(super) fn allocate<B: Runtime, T: Element>(
    runtime: &B,
    stream: &B::Stream,
    len: usize,
    what: &'static str,
) -> Result<B::Memory<T>, DeviceError> {
    runtime.allocate(stream, len).map_err(|error| {
        let error = DeviceError::from(error);
        let bytes = len.saturating_mul(size_of::<T>());
        if error.is_out_of_memory() { DeviceError::OutOfMemory { what, bytes } } else { error }
    })
}

/// Device memory that grows on demand: by a quarter or more, so that a series of slightly larger requests allocates
/// only a few times. What it holds is lost when it grows.
#[derive(Debug)]
pub(super) struct GrowableMemory<B: Runtime, T: Element> {
    memory: Option<B::Memory<T>>,
    len: usize,
}

impl<B: Runtime, T: Element> Default for GrowableMemory<B, T> {
    fn default() -> Self {
        GrowableMemory { memory: None, len: 0 }
    }
}

impl<B: Runtime, T: Element> GrowableMemory<B, T> {
    /// What there is.
    pub(super) fn memory(&self) -> Option<&B::Memory<T>> {
        self.memory.as_ref()
    }

    /// Memory for at least `len` elements: the memory at hand if it suffices.
    pub(super) fn reserve(
        &mut self,
        runtime: &B,
        stream: &B::Stream,
        len: usize,
    ) -> Result<&mut B::Memory<T>, DeviceError> {
        if len > self.len || self.memory.is_none() {
            let len = len.max(self.len.saturating_add(self.len / 4)).max(64);
            // The old memory goes first.
            (self.memory, self.len) = (None, 0);
            self.memory = Some(allocate(runtime, stream, len, "scratch")?);
            self.len = len;
        }
        self.memory.as_mut().ok_or(DeviceError::OutOfMemory { what: "scratch", bytes: len * size_of::<T>() })
    }
}

/// A table of indices on the device, which is copied there when it changes.
#[derive(Debug)]
pub(super) struct CachedTable<B: Runtime> {
    host: Vec<i32>,
    memory: GrowableMemory<B, i32>,
}

impl<B: Runtime> Default for CachedTable<B> {
    fn default() -> Self {
        CachedTable { host: Vec::new(), memory: GrowableMemory::default() }
    }
}

impl<B: Runtime> CachedTable<B> {
    /// Returns the index table in device memory; its first entries are `indices`.
    pub(super) fn holding(
        &mut self,
        runtime: &B,
        stream: &B::Stream,
        indices: Vec<i32>,
    ) -> Result<&B::Memory<i32>, DeviceError> {
        if !self.host.starts_with(&indices) || self.memory.memory().is_none() {
            // Nothing is known of the memory until the copy is on its way.
            self.host.clear();
            let memory = self.memory.reserve(runtime, stream, indices.len())?;
            runtime.upload(stream, &indices, memory, 0)?;
            self.host = indices;
        }
        self.memory.memory().ok_or(DeviceError::OutOfMemory { what: "indices", bytes: 0 })
    }
}

/// Small tables of several types, which one copy puts on the device.
#[derive(Debug)]
pub(super) struct StagedTables<B: Runtime> {
    host: Vec<u64>,
    memory: GrowableMemory<B, u64>,
}

impl<B: Runtime> Default for StagedTables<B> {
    fn default() -> Self {
        StagedTables { host: Vec::new(), memory: GrowableMemory::default() }
    }
}

/// Where a table of a [`StagedTables`] is.
#[derive(Debug)]
pub(super) struct TableRange<T> {
    words: Range<usize>,
    len: usize,
    elements: PhantomData<T>,
}

impl<T> Default for TableRange<T> {
    fn default() -> Self {
        TableRange { words: 0..0, len: 0, elements: PhantomData }
    }
}

impl<B: Runtime> StagedTables<B> {
    /// Forgets the tables.
    pub(super) fn clear(&mut self) {
        self.host.clear();
    }

    /// Adds a table.
    pub(super) fn push<T: Element>(&mut self, table: &[T]) -> TableRange<T> {
        let (first, bytes) = (self.host.len(), bytemuck::cast_slice::<T, u8>(table));
        self.host.resize(first + bytes.len().div_ceil(size_of::<u64>()), 0);
        let words: &mut [u8] = bytemuck::cast_slice_mut(&mut self.host[first..]);
        words[..bytes.len()].copy_from_slice(bytes);
        TableRange { words: first..self.host.len(), len: table.len(), elements: PhantomData }
    }

    /// Copies all of them.
    pub(super) fn upload(&mut self, runtime: &B, stream: &B::Stream) -> Result<(), DeviceError> {
        let memory = self.memory.reserve(runtime, stream, self.host.len())?;
        Ok(runtime.upload(stream, &self.host, memory, 0)?)
    }

    /// A table on the device.
    pub(super) fn view<'a, T: Element>(
        &'a self,
        runtime: &B,
        stream: &'a B::Stream,
        part: &TableRange<T>,
    ) -> Result<View<'a, T>, DeviceError> {
        let memory = self.memory.memory().map(|memory| runtime.view(stream, memory));
        let words = memory.and_then(|view| view.range(part.words.clone()));
        let table = words.and_then(View::cast).and_then(|view| view.range(0..part.len));
        table.ok_or(RuntimeError::CopyLength { wanted: part.words.end, found: self.host.len() }.into())
    }
}

/// Activations `[rows, cols]` in bf16, or logits in f32, row after row; a row of logits ends at a multiple
/// of eight elements.
#[derive(Debug)]
pub struct GpuBuffer<B: Runtime> {
    pub(super) values: Values<B>,
    pub(super) rows: usize,
    pub(super) cols: usize,
    capacity: usize,
    drawn: Drawn,
}

/// What was drawn from the rows of a buffer of logits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Drawn {
    /// How many rows were drawn from: their statistics are there in the order of the draws.
    pub(super) draws: usize,
    /// Those rows are below this one.
    pub(super) end: usize,
}

/// The memory of logits, and that of what is known of rows that were drawn from.
type LogitsAndDraws<'a, B> = (&'a mut <B as Runtime>::Memory<f32>, &'a mut <B as Runtime>::Memory<u64>);

#[derive(Debug)]
pub(super) enum Values<B: Runtime> {
    Activations(B::Memory<bf16>),
    /// Of rows that a draft was drawn from, with the statistics of the draws, draw after draw: what a verification
    /// compares are the distributions that tokens came from, wherever it finds them.
    Logits {
        logits: B::Memory<f32>,
        draws: B::Memory<u64>,
    },
    /// Nothing has been allocated yet.
    NoActivations,
    NoLogits,
}

impl<B: Runtime> GpuBuffer<B> {
    pub(super) fn new(cols: usize, logits: bool) -> Self {
        let values = if logits { Values::NoLogits } else { Values::NoActivations };
        GpuBuffer { values, rows: 0, cols, capacity: 0, drawn: Drawn::default() }
    }

    /// Rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Values in a row.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Elements from a row to the next.
    pub(super) fn stride(&self) -> usize {
        match self.values {
            Values::Activations(_) | Values::NoActivations => self.cols,
            Values::Logits { .. } | Values::NoLogits => self.cols.next_multiple_of(8),
        }
    }

    /// Sets the number of rows; existing rows keep their values.
    pub(super) fn resize(&mut self, runtime: &B, stream: &B::Stream, rows: usize) -> Result<(), DeviceError> {
        let stride = self.stride();
        let needed = rows
            .checked_mul(stride)
            .ok_or(DeviceError::OutOfMemory { what: "activations", bytes: usize::MAX })?;
        let fresh = matches!(self.values, Values::NoActivations | Values::NoLogits);
        if needed > self.capacity || fresh {
            let capacity = needed.max(2 * self.capacity);
            let kept = self.rows.min(rows);
            let draws = capacity.checked_div(stride).unwrap_or(0) * STATS_WORDS;
            self.values = match &self.values {
                Values::Activations(old) => {
                    Values::Activations(moved(runtime, stream, old, kept * stride, capacity)?)
                }
                Values::Logits { logits, draws: old } => Values::Logits {
                    logits: moved(runtime, stream, logits, kept * stride, capacity)?,
                    draws: moved(runtime, stream, old, self.drawn.draws.min(kept) * STATS_WORDS, draws)?,
                },
                Values::NoActivations => {
                    Values::Activations(allocate(runtime, stream, capacity, "activations")?)
                }
                Values::NoLogits => Values::Logits {
                    logits: allocate(runtime, stream, capacity, "logits")?,
                    draws: allocate(runtime, stream, draws, "statistics of logits")?,
                },
            };
            self.capacity = capacity;
        }
        self.rows = rows;
        self.forget_draws_from(rows);
        Ok(())
    }

    /// What was drawn from it.
    pub(super) fn drawn(&self) -> Drawn {
        self.drawn
    }

    /// To be called once the statistics of all `draws` are on their way, which came from rows below `end`.
    pub(super) fn set_drawn(&mut self, draws: usize, end: usize) {
        self.drawn = Drawn { draws, end: end.min(self.rows) };
    }

    /// To be called before rows from `row` on get other values. Draws are forgotten together: which rows they came
    /// from is known on the device only.
    pub(super) fn forget_draws_from(&mut self, row: usize) {
        if row < self.drawn.end {
            self.drawn = Drawn::default();
        }
    }

    /// The activations, for an operation.
    pub(super) fn activations(
        &self,
        operation: &'static str,
        operand: &'static str,
    ) -> Result<&B::Memory<bf16>, DeviceError> {
        match &self.values {
            Values::Activations(memory) => Ok(memory),
            _ => Err(self.not(operation, operand)),
        }
    }

    /// As [`activations`](Self::activations), to be written.
    pub(super) fn activations_mut(
        &mut self,
        operation: &'static str,
        operand: &'static str,
    ) -> Result<&mut B::Memory<bf16>, DeviceError> {
        let error = self.not(operation, operand);
        match &mut self.values {
            Values::Activations(memory) => Ok(memory),
            _ => Err(error),
        }
    }

    /// The logits, for an operation.
    pub(super) fn logits(&self, operation: &'static str) -> Result<&B::Memory<f32>, DeviceError> {
        match &self.values {
            Values::Logits { logits, .. } => Ok(logits),
            _ => Err(self.not(operation, "logits")),
        }
    }

    /// The statistics of the draws.
    pub(super) fn draws<'a>(
        &'a self,
        operation: &'static str,
        runtime: &B,
        stream: &'a B::Stream,
    ) -> Result<View<'a, RowStats>, DeviceError> {
        let Values::Logits { draws, .. } = &self.values else { return Err(self.not(operation, "logits")) };
        let words = runtime.view(stream, draws).range(0..self.drawn.draws * STATS_WORDS);
        words.and_then(View::cast).ok_or_else(|| self.not(operation, "draws"))
    }

    /// The logits and the statistics of their draws, to be written.
    pub(super) fn logits_and_draws_mut(
        &mut self,
        operation: &'static str,
    ) -> Result<LogitsAndDraws<'_, B>, DeviceError> {
        let error = self.not(operation, "logits");
        match &mut self.values {
            Values::Logits { logits, draws } => Ok((logits, draws)),
            _ => Err(error),
        }
    }

    /// As [`logits`](Self::logits), to be written.
    pub(super) fn logits_mut(&mut self, operation: &'static str) -> Result<&mut B::Memory<f32>, DeviceError> {
        let error = self.not(operation, "logits");
        match &mut self.values {
            Values::Logits { logits, .. } => Ok(logits),
            _ => Err(error),
        }
    }

    /// A buffer that was never resized, or that is of the other kind.
    fn not(&self, operation: &'static str, operand: &'static str) -> DeviceError {
        let (expected, found) = (vec![1, self.cols], vec![self.rows, self.cols]);
        DeviceError::Shape { operation, operand, expected, found }
    }
}

fn moved<B: Runtime, T: Element>(
    runtime: &B,
    stream: &B::Stream,
    old: &B::Memory<T>,
    kept: usize,
    capacity: usize,
) -> Result<B::Memory<T>, DeviceError> {
    let mut memory = allocate(runtime, stream, capacity, "activations")?;
    runtime.copy(stream, old, 0..kept, &mut memory, 0)?;
    Ok(memory)
}

#[cfg(all(test, feature = "simt"))]
mod tests {
    use super::*;
    use crate::runtime::{Simt, SimtOptions};

    #[test]
    fn memory_grows_by_a_quarter_or_to_what_is_asked_for() {
        let simt = Simt::new(SimtOptions::default());
        let stream = simt.stream();
        let mut memory = GrowableMemory::<Simt, f32>::default();
        for (asked, expected) in [(1, 64), (1000, 1000), (1001, 1250), (1250, 1250), (10, 1250), (3000, 3000)]
        {
            memory.reserve(&simt, &stream, asked).unwrap();
            assert_eq!(memory.memory().map(|memory| memory.len()), Some(expected), "{asked} elements");
        }
        // An allocation that fails leaves nothing of the old memory, and what fits can be asked for again.
        let error = memory.reserve(&simt, &stream, usize::MAX / 8).unwrap_err();
        assert!(error.to_string().contains("memory"), "{error}");
        assert!(memory.memory().is_none());
        memory.reserve(&simt, &stream, 100).unwrap();
        assert_eq!(memory.memory().map(|memory| memory.len()), Some(100));
    }
}

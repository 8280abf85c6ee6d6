//! What the operations of a step share, and what they reuse from step to step.

use super::memory::{CachedTable, GrowableMemory};
use super::pass_memory::{Frequencies, PassMemory};
use crate::device::DeviceError;
use crate::runtime::{Runtime, RuntimeError, ViewMut};

/// Tables and memory of a device.
#[derive(Debug)]
pub(super) struct Scratch<B: Runtime> {
    /// Token ids of an embedding.
    pub(super) ids: GrowableMemory<B, i32>,
    /// Tables that are the same from step to step while the rows of a step are: of gathers, of the rows that a
    /// vector fills, of calibrated rows, and of the verdicts that groups follow.
    pub(super) gathered: CachedTable<B>,
    pub(super) filled: CachedTable<B>,
    pub(super) owners: CachedTable<B>,
    pub(super) followed: CachedTable<B>,
    /// For attention, sampling and acceptance.
    pub(super) workspace: GrowableMemory<B, f32>,
    /// The device error word, which kernels set and a step's [`read`](crate::device::Device::read) looks at.
    pub(super) error: GrowableMemory<B, u64>,
    /// Of the rotation that was used last.
    pub(super) frequencies: Frequencies<B>,
    /// Memory of passes that were dropped.
    passes: Vec<PassMemory<B>>,
}

impl<B: Runtime> Default for Scratch<B> {
    fn default() -> Self {
        Scratch {
            ids: GrowableMemory::default(),
            gathered: CachedTable::default(),
            filled: CachedTable::default(),
            owners: CachedTable::default(),
            followed: CachedTable::default(),
            workspace: GrowableMemory::default(),
            error: GrowableMemory::default(),
            frequencies: Frequencies::default(),
            passes: Vec::new(),
        }
    }
}

/// The error word as the kernels take it.
pub(super) fn error_word<'a, B: Runtime>(
    runtime: &B,
    stream: &'a B::Stream,
    error: &'a mut GrowableMemory<B, u64>,
) -> Result<ViewMut<'a, u32>, DeviceError> {
    let memory = error.reserve(runtime, stream, 1)?;
    let word = runtime.view_mut(stream, memory).cast().and_then(|words| words.range(0..1));
    word.ok_or(RuntimeError::CopyLength { wanted: 1, found: 0 }.into())
}

impl<B: Runtime> Scratch<B> {
    /// Memory that a pass of up to `batch` sequences of up to `pages` pages may use.
    pub(super) fn take_pass_memory(&mut self, batch: usize, pages: usize) -> Option<PassMemory<B>> {
        let index = self.passes.iter().position(|memory| memory.suits(batch, pages))?;
        Some(self.passes.swap_remove(index))
    }

    /// Keeps the memory of a dropped pass for the next one.
    pub(super) fn keep_pass_memory(&mut self, memory: PassMemory<B>) {
        // What only smaller batches could use is not needed any more.
        self.passes.retain(|kept| !memory.replaces(kept));
        self.passes.push(memory);
    }
}

//! What the operations of a step share, and what they reuse from step to step.

use super::memory::{Grown, Kept};
use super::pass::{Frequencies, PassMemory};
use crate::backend::{Backend, BackendError, ViewMut};
use crate::device::DeviceError;

/// Tables and memory of a device.
#[derive(Debug)]
pub(super) struct Scratch<B: Backend> {
    /// Token ids of an embedding.
    pub(super) ids: Grown<B, i32>,
    /// Tables that are the same from step to step while the rows of a step are: of gathers, of the rows that a
    /// vector fills, of calibrated rows, and of the verdicts that groups follow.
    pub(super) gathered: Kept<B>,
    pub(super) filled: Kept<B>,
    pub(super) owners: Kept<B>,
    pub(super) followed: Kept<B>,
    /// For attention, sampling and acceptance.
    pub(super) workspace: Grown<B, f32>,
    /// The device error word, which kernels set and a step's [`read`](crate::device::Device::read) looks at.
    pub(super) error: Grown<B, u64>,
    /// Of the rotation that was used last.
    pub(super) frequencies: Frequencies<B>,
    /// Memory of passes that were dropped.
    passes: Vec<PassMemory<B>>,
}

impl<B: Backend> Default for Scratch<B> {
    fn default() -> Self {
        Scratch {
            ids: Grown::default(),
            gathered: Kept::default(),
            filled: Kept::default(),
            owners: Kept::default(),
            followed: Kept::default(),
            workspace: Grown::default(),
            error: Grown::default(),
            frequencies: Frequencies::default(),
            passes: Vec::new(),
        }
    }
}

/// The error word as the kernels take it.
pub(super) fn error_word<'a, B: Backend>(
    backend: &B,
    stream: &'a B::Stream,
    error: &'a mut Grown<B, u64>,
) -> Result<ViewMut<'a, u32>, DeviceError> {
    let memory = error.reserve(backend, stream, 1)?;
    let word = backend.view_mut(stream, memory).cast().and_then(|words| words.range(0..1));
    word.ok_or(BackendError::CopyLength { wanted: 1, found: 0 }.into())
}

impl<B: Backend> Scratch<B> {
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

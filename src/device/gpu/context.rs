//! The parts of the GPU device that every operation uses: the kernels, the stream, and memory that operations
//! share.

use std::ops::Range;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::scratch::Scratch;
use crate::device::DeviceError;
use crate::kernels::Kernels;
use crate::runtime::{Element, Runtime, RuntimeError, View, ViewMut};

/// The kernels, the stream that they run on, and memory that operations use one after the other.
#[derive(Debug)]
pub(super) struct Context<R: Runtime> {
    pub(super) kernels: Kernels<R>,
    pub(super) stream: R::Stream,
    scratch: Mutex<Scratch<R>>,
}

impl<R: Runtime> Context<R> {
    /// Makes a context without scratch memory. Operations allocate scratch memory when they first need it.
    pub(super) fn new(kernels: Kernels<R>, stream: R::Stream) -> Self {
        Self { kernels, stream, scratch: Mutex::default() }
    }

    /// Returns the runtime of the kernels.
    pub(super) fn runtime(&self) -> &R {
        self.kernels.runtime()
    }

    /// Returns the runtime and the stream, for copies and allocations.
    pub(super) fn queue(&self) -> (&R, &R::Stream) {
        (self.runtime(), &self.stream)
    }

    /// Locks the scratch memory.
    pub(super) fn scratch(&self) -> MutexGuard<'_, Scratch<R>> {
        self.scratch.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Views all of `memory`, for a kernel that reads it.
    pub(super) fn view<'a, T: Element>(&'a self, memory: &'a R::Memory<T>) -> View<'a, T> {
        self.runtime().view(&self.stream, memory)
    }

    /// Views all of `memory`, for a kernel that writes it.
    pub(super) fn view_mut<'a, T: Element>(&'a self, memory: &'a mut R::Memory<T>) -> ViewMut<'a, T> {
        self.runtime().view_mut(&self.stream, memory)
    }

    /// Views elements `range` of `memory`, for a kernel that reads them.
    pub(super) fn input<'a, T: Element>(
        &'a self,
        memory: &'a R::Memory<T>,
        range: Range<usize>,
    ) -> Result<View<'a, T>, DeviceError> {
        let view = self.view(memory);
        let (wanted, found) = (range.end, view.len());
        view.range(range).ok_or(RuntimeError::CopyLength { wanted, found }.into())
    }

    /// Views elements `range` of `memory`, for a kernel that writes them.
    pub(super) fn output<'a, T: Element>(
        &'a self,
        memory: &'a mut R::Memory<T>,
        range: Range<usize>,
    ) -> Result<ViewMut<'a, T>, DeviceError> {
        let view = self.view_mut(memory);
        let (wanted, found) = (range.end, view.len());
        view.range(range).ok_or(RuntimeError::CopyLength { wanted, found }.into())
    }
}

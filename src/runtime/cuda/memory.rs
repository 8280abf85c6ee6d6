//! Device memory of the CUDA runtime.

use std::ops::Deref;
use std::sync::Arc;

use cudarc::driver::CudaSlice;

use super::graphs::GraphQueue;

/// Device memory that the CUDA runtime allocated. Work that waits to become part of a graph may use the memory, so
/// dropping it puts that work on the stream first.
#[derive(Debug)]
pub struct CudaMemory<T> {
    slice: CudaSlice<T>,
    queue: Option<Arc<GraphQueue>>,
}

impl<T> CudaMemory<T> {
    pub(super) fn new(slice: CudaSlice<T>, queue: Option<Arc<GraphQueue>>) -> Self {
        Self { slice, queue }
    }

    /// Returns the memory to be written. The caller leaves it in its place: only this object may free it.
    pub(crate) fn slice_mut(&mut self) -> &mut CudaSlice<T> {
        &mut self.slice
    }
}

impl<T> Drop for CudaMemory<T> {
    fn drop(&mut self) {
        if let Some(queue) = &self.queue {
            queue.finish_later();
        }
    }
}

impl<T> Deref for CudaMemory<T> {
    type Target = CudaSlice<T>;

    fn deref(&self) -> &CudaSlice<T> {
        &self.slice
    }
}

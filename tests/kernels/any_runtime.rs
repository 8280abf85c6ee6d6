//! A runtime that a test chooses while it runs. It makes each test of the suite one piece of code for the SIMT
//! emulator, for a GPU, and for a GPU whose stream comes from another framework.

use std::ops::Range;
use std::sync::Arc;

use cudarc::driver::CudaStream;
use flexdraft::runtime::{
    Cuda, CudaMemory, Element, Launch, Limits, QueueId, RawCuda, RawMemory, RawStream, Runtime, RuntimeError,
    Simt, SimtStream, View, ViewMut,
};

/// One of the crate's runtimes, with hardware limits that a test may lower.
#[derive(Debug)]
pub struct AnyRuntime {
    pub runtime: Chosen,
    pub limits: Limits,
}

#[derive(Debug)]
pub enum Chosen {
    Emulator(Simt),
    Gpu(Arc<Cuda>),
    RawGpu(RawCuda),
}

#[derive(Debug)]
pub enum AnyStream {
    Emulator(SimtStream),
    Gpu(Arc<CudaStream>),
    /// A stream given by its address, and the object that owns the stream.
    #[allow(dead_code)] // The owner is held, not read.
    RawGpu(RawStream, Arc<CudaStream>),
}

#[derive(Debug)]
pub enum AnyMemory<T> {
    Emulator(Vec<T>),
    Gpu(CudaMemory<T>),
    RawGpu(RawMemory<T>),
}

/// Calls a method of the chosen runtime with the stream and memory types of that runtime.
macro_rules! with_chosen {
    ($this:ident, ($stream:ident $(, $memory:ident)*), $runtime:ident => $call:expr) => {
        match (&$this.runtime, $stream $(, $memory)*) {
            (Chosen::Emulator($runtime), AnyStream::Emulator($stream) $(, AnyMemory::Emulator($memory))*) => $call,
            (Chosen::Gpu($runtime), AnyStream::Gpu($stream) $(, AnyMemory::Gpu($memory))*) => $call,
            (Chosen::RawGpu($runtime), AnyStream::RawGpu($stream, _) $(, AnyMemory::RawGpu($memory))*) => $call,
            _ => panic!("runtime, stream and memory do not belong together"),
        }
    };
}

impl Runtime for AnyRuntime {
    type Stream = AnyStream;
    type Memory<T: Element> = AnyMemory<T>;

    fn limits(&self) -> Limits {
        self.limits
    }

    fn allocate<T: Element>(&self, stream: &AnyStream, len: usize) -> Result<AnyMemory<T>, RuntimeError> {
        match (&self.runtime, stream) {
            (Chosen::Emulator(simt), AnyStream::Emulator(stream)) => {
                simt.allocate(stream, len).map(AnyMemory::Emulator)
            }
            (Chosen::Gpu(cuda), AnyStream::Gpu(stream)) => cuda.allocate(stream, len).map(AnyMemory::Gpu),
            (Chosen::RawGpu(cuda), AnyStream::RawGpu(stream, _)) => {
                cuda.allocate(stream, len).map(AnyMemory::RawGpu)
            }
            _ => panic!("runtime and stream do not belong together"),
        }
    }

    fn upload<T: Element>(
        &self,
        stream: &AnyStream,
        from: &[T],
        to: &mut AnyMemory<T>,
        first: usize,
    ) -> Result<(), RuntimeError> {
        with_chosen!(self, (stream, to), runtime => runtime.upload(stream, from, to, first))
    }

    fn download<T: Element>(
        &self,
        stream: &AnyStream,
        from: &AnyMemory<T>,
        first: usize,
        to: &mut [T],
    ) -> Result<(), RuntimeError> {
        with_chosen!(self, (stream, from), runtime => runtime.download(stream, from, first, to))
    }

    fn copy<T: Element>(
        &self,
        stream: &AnyStream,
        from: &AnyMemory<T>,
        range: Range<usize>,
        to: &mut AnyMemory<T>,
        first: usize,
    ) -> Result<(), RuntimeError> {
        with_chosen!(self, (stream, from, to), runtime => runtime.copy(stream, from, range, to, first))
    }

    fn view<'a, T: Element>(&self, stream: &'a AnyStream, memory: &'a AnyMemory<T>) -> View<'a, T> {
        with_chosen!(self, (stream, memory), runtime => runtime.view(stream, memory))
    }

    fn view_mut<'a, T: Element>(
        &self,
        stream: &'a AnyStream,
        memory: &'a mut AnyMemory<T>,
    ) -> ViewMut<'a, T> {
        with_chosen!(self, (stream, memory), runtime => runtime.view_mut(stream, memory))
    }

    fn queue(&self, stream: &AnyStream) -> QueueId {
        with_chosen!(self, (stream), runtime => runtime.queue(stream))
    }

    unsafe fn launch(&self, stream: &AnyStream, launch: &Launch<'_>) -> Result<(), RuntimeError> {
        // SAFETY: the caller upholds the contract of `Runtime::launch`, which are the same for each runtime.
        with_chosen!(self, (stream), runtime => unsafe { runtime.launch(stream, launch) })
    }
}

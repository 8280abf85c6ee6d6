//! A CUDA runtime for streams and tensors that another framework owns, given by their addresses.
//!
//! cudarc cannot wrap a stream that it did not create. This runtime relies on the owner of the stream instead, so an
//! engine in C++ or Python can run the kernels on its own streams, inside its own captures, over its own memory.

use std::marker::PhantomData;
use std::ops::Range;
use std::sync::Arc;

use cudarc::driver::{CudaContext, result};

use super::cuda::Cuda;
use super::{Element, Launch, Limits, QueueId, Runtime, RuntimeError, View, ViewMut};

/// The kernels of this crate in a CUDA context, for streams that any library made.
///
/// ```no_run
/// use flexdraft::runtime::{Cuda, RawCuda, RawStream, View};
/// use flexdraft::kernels::Kernels;
/// use half::bf16;
///
/// # fn of_the_framework() -> (u64, u64, usize) { (0, 0, 0) }
/// let context = Cuda::context(0)?; // the primary one, as frameworks use it
/// let kernels = Kernels::new(RawCuda::new(&context)?);
/// let (stream, tensor, elements) = of_the_framework(); // a cudaStream_t and a data pointer
/// // SAFETY: the stream is of that context, and outlives its use here.
/// let stream = unsafe { RawStream::new(&context, stream) };
/// // SAFETY: nothing writes or frees the tensor before the kernels that are given this view have run.
/// let tensor: View<'_, bf16> = unsafe { View::from_raw(tensor, elements, stream.queue()) };
/// # Ok::<(), flexdraft::runtime::RuntimeError>(())
/// ```
#[derive(Debug)]
pub struct RawCuda(Cuda);

/// A CUDA stream that another library may own, given by its address.
#[derive(Clone, Debug)]
pub struct RawStream {
    context: Arc<CudaContext>,
    address: u64,
}

/// Device memory that [`RawCuda`] allocated for one stream. Dropping it waits for the work on the device.
#[derive(Debug)]
pub struct RawMemory<T> {
    stream: RawStream,
    address: u64,
    len: usize,
    elements: PhantomData<T>,
}

impl RawCuda {
    /// Loads the kernels of this crate into `context`.
    ///
    /// # Errors
    ///
    /// The errors of [`Cuda::new`].
    pub fn new(context: &Arc<CudaContext>) -> Result<Self, RuntimeError> {
        Cuda::new(context).map(RawCuda)
    }
}

impl RawStream {
    /// Wraps the stream at `address`, a `CUstream` or `cudaStream_t`; 0 is the legacy default stream.
    ///
    /// # Safety
    ///
    /// `address` is a stream of `context`. It is not destroyed before this object, its clones and all memory
    /// that was allocated with them are dropped.
    pub unsafe fn new(context: &Arc<CudaContext>, address: u64) -> Self {
        RawStream { context: context.clone(), address }
    }

    /// Returns the identity of the stream as a queue, which [`View::from_raw`] needs.
    pub fn queue(&self) -> QueueId {
        QueueId { context: self.context.cu_ctx() as u64, stream: self.address }
    }

    fn raw(&self) -> cudarc::driver::sys::CUstream {
        self.address as *mut _
    }

    /// Waits for the work on the stream, or on the whole context if that fails, as the CUDA runtime does after a copy.
    fn finish_copy(&self) -> Result<(), RuntimeError> {
        // SAFETY: the stream is alive, as `new`'s caller guarantees.
        unsafe { result::stream::synchronize(self.raw()) }.map_err(|error| {
            let _ = self.context.synchronize();
            error.into()
        })
    }

    fn bind(&self) -> Result<(), RuntimeError> {
        self.context.bind_to_thread().map_err(RuntimeError::from)
    }
}

impl<T: Element> RawMemory<T> {
    /// Returns the device address of the elements `range`, for copies on `stream`.
    fn part(&self, stream: &RawStream, range: &Range<usize>) -> Result<u64, RuntimeError> {
        if stream.queue() != self.stream.queue() {
            return Err(RuntimeError::Refused("the memory was allocated for another stream"));
        }
        if range.start > range.end || range.end > self.len {
            return Err(RuntimeError::CopyLength { wanted: range.end, found: self.len });
        }
        stream.bind()?;
        Ok(self.address + (range.start * size_of::<T>()) as u64)
    }
}

impl<T> Drop for RawMemory<T> {
    fn drop(&mut self) {
        if self.address == 0 {
            return;
        }
        let context = &self.stream.context;
        context.record_err(context.bind_to_thread());
        // SAFETY: `allocate` allocated the memory, and it is freed once; the driver waits for work that uses
        // it.
        context.record_err(unsafe { result::free_sync(self.address) });
    }
}

fn from(first: usize, len: usize) -> Range<usize> {
    first..first.saturating_add(len)
}

impl Runtime for RawCuda {
    type Stream = RawStream;
    type Memory<T: Element> = RawMemory<T>;

    fn limits(&self) -> Limits {
        self.0.limits()
    }

    fn queue(&self, stream: &RawStream) -> QueueId {
        stream.queue()
    }

    fn allocate<T: Element>(&self, stream: &RawStream, len: usize) -> Result<RawMemory<T>, RuntimeError> {
        let too_long = RuntimeError::OutOfMemory { elements: len, element_bytes: size_of::<T>() };
        let bytes = len.checked_mul(size_of::<T>()).ok_or(too_long)?;
        let mut memory = RawMemory { stream: stream.clone(), address: 0, len, elements: PhantomData };
        if bytes > 0 {
            stream.bind()?;
            // SAFETY: the memory has this size, and is set completely before anything else on the stream
            // reads it.
            unsafe {
                memory.address = result::malloc_sync(bytes)?;
                result::memset_d8_async(memory.address, 0, bytes, stream.raw())?;
            }
        }
        Ok(memory)
    }

    fn upload<T: Element>(
        &self,
        stream: &RawStream,
        source: &[T],
        to: &mut RawMemory<T>,
        first: usize,
    ) -> Result<(), RuntimeError> {
        let to = to.part(stream, &from(first, source.len()))?;
        if source.is_empty() {
            return Ok(());
        }
        // SAFETY: both ranges have this length. Page-locked memory is read when the copy runs, so this waits
        // for the copy. During a capture, waiting is an error, and no graph results that would read the
        // source again.
        unsafe {
            result::memcpy_htod_async(to, source, stream.raw())?;
        }
        stream.finish_copy()
    }

    fn download<T: Element>(
        &self,
        stream: &RawStream,
        source: &RawMemory<T>,
        first: usize,
        to: &mut [T],
    ) -> Result<(), RuntimeError> {
        let source = source.part(stream, &from(first, to.len()))?;
        // SAFETY: both ranges have this length, and the copy has finished when this returns.
        unsafe {
            if !to.is_empty() {
                result::memcpy_dtoh_async(to, source, stream.raw())?;
            }
        }
        stream.finish_copy()
    }

    fn copy<T: Element>(
        &self,
        stream: &RawStream,
        source: &RawMemory<T>,
        range: Range<usize>,
        to: &mut RawMemory<T>,
        first: usize,
    ) -> Result<(), RuntimeError> {
        let bytes = range.len() * size_of::<T>();
        let (source, to) = (source.part(stream, &range)?, to.part(stream, &from(first, range.len()))?);
        if bytes == 0 {
            return Ok(());
        }
        // SAFETY: both ranges have this length, and they belong to different allocations.
        unsafe { result::memcpy_dtod_async(to, source, bytes, stream.raw()) }.map_err(RuntimeError::from)
    }

    fn view<'a, T: Element>(&self, _: &'a RawStream, memory: &'a RawMemory<T>) -> View<'a, T> {
        // SAFETY: the view borrows the memory, whose drop waits for launches. The view belongs to the
        // memory's own stream, so a launch on another stream is refused.
        unsafe { View::from_raw(memory.address, memory.len, memory.stream.queue()) }
    }

    fn view_mut<'a, T: Element>(&self, _: &'a RawStream, memory: &'a mut RawMemory<T>) -> ViewMut<'a, T> {
        // SAFETY: as in `view`.
        unsafe { ViewMut::from_raw(memory.address, memory.len, memory.stream.queue()) }
    }

    unsafe fn launch(&self, stream: &RawStream, launch: &Launch<'_>) -> Result<(), RuntimeError> {
        // SAFETY: the caller guarantees this. `RawStream::new`'s caller guarantees that the stream is
        // alive and belongs to its context.
        unsafe { self.0.launch_on(&stream.context, stream.raw(), launch) }
    }
}

//! A CUDA backend for streams and tensors that another framework owns, given by their addresses.
//!
//! cudarc cannot wrap a stream that it did not create. Here the owner vouches for its stream, so an engine in
//! C++ or Python can run the kernels on its own streams, inside its own captures, over its own memory.

use std::marker::PhantomData;
use std::ops::Range;
use std::sync::Arc;

use cudarc::driver::{CudaContext, result};

use super::cuda::{Cuda, driver};
use super::{Backend, BackendError, Element, Launch, Limits, QueueId, View, ViewMut};

/// The kernels in a CUDA context, for streams of any origin.
///
/// ```no_run
/// use flexdraft::backend::{Cuda, Foreign, ForeignStream, View};
/// use flexdraft::kernels::Kernels;
/// use half::bf16;
///
/// # fn of_the_framework() -> (u64, u64, usize) { (0, 0, 0) }
/// let context = Cuda::context(0)?; // the primary one, as frameworks use it
/// let kernels = Kernels::new(Foreign::new(&context)?);
/// let (stream, tensor, elements) = of_the_framework(); // a cudaStream_t and a data pointer
/// // SAFETY: the stream is of that context, and outlives its use here.
/// let stream = unsafe { ForeignStream::new(&context, stream) };
/// // SAFETY: nothing writes or frees the tensor before the kernels that are given this view have run.
/// let tensor: View<'_, bf16> = unsafe { View::from_raw(tensor, elements, stream.queue()) };
/// # Ok::<(), flexdraft::backend::BackendError>(())
/// ```
#[derive(Debug)]
pub struct Foreign(Cuda);

/// A CUDA stream, given by its address.
#[derive(Clone, Debug)]
pub struct ForeignStream {
    context: Arc<CudaContext>,
    address: u64,
}

/// Device memory that [`Foreign`] allocated for one stream. Dropping it waits for the work on the device.
#[derive(Debug)]
pub struct ForeignMemory<T> {
    stream: ForeignStream,
    address: u64,
    len: usize,
    elements: PhantomData<T>,
}

impl Foreign {
    /// Loads the kernels into `context`.
    ///
    /// # Errors
    ///
    /// The errors of [`Cuda::new`].
    pub fn new(context: &Arc<CudaContext>) -> Result<Self, BackendError> {
        Cuda::new(context).map(Foreign)
    }
}

impl ForeignStream {
    /// Wraps the stream at `address`, a `CUstream` or `cudaStream_t`; 0 is the legacy default stream.
    ///
    /// # Safety
    ///
    /// `address` is a stream of `context`. It is not destroyed before this object, its clones and all memory
    /// that was allocated with them are dropped.
    pub unsafe fn new(context: &Arc<CudaContext>, address: u64) -> Self {
        ForeignStream { context: context.clone(), address }
    }

    /// Returns the stream's queue, which [`View::from_raw`] needs.
    pub fn queue(&self) -> QueueId {
        QueueId { context: self.context.cu_ctx() as u64, stream: self.address }
    }

    fn raw(&self) -> cudarc::driver::sys::CUstream {
        self.address as *mut _
    }

    fn bind(&self) -> Result<(), BackendError> {
        self.context.bind_to_thread().map_err(driver)
    }
}

impl<T: Element> ForeignMemory<T> {
    /// Returns the address of elements `range`, for copies on `stream`.
    fn part(&self, stream: &ForeignStream, range: &Range<usize>) -> Result<u64, BackendError> {
        if stream.queue() != self.stream.queue() {
            return Err(BackendError::Driver("the memory was allocated for another stream".into()));
        }
        if range.start > range.end || range.end > self.len {
            return Err(BackendError::CopyLength { wanted: range.end, found: self.len });
        }
        stream.bind()?;
        Ok(self.address + (range.start * size_of::<T>()) as u64)
    }
}

impl<T> Drop for ForeignMemory<T> {
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

impl Backend for Foreign {
    type Stream = ForeignStream;
    type Memory<T: Element> = ForeignMemory<T>;

    fn limits(&self) -> Limits {
        self.0.limits()
    }

    fn queue(&self, stream: &ForeignStream) -> QueueId {
        stream.queue()
    }

    fn allocate<T: Element>(
        &self,
        stream: &ForeignStream,
        len: usize,
    ) -> Result<ForeignMemory<T>, BackendError> {
        let too_long = || BackendError::Driver(format!("{len} elements are more than there can be"));
        let bytes = len.checked_mul(size_of::<T>()).ok_or_else(too_long)?;
        let mut memory = ForeignMemory { stream: stream.clone(), address: 0, len, elements: PhantomData };
        if bytes > 0 {
            stream.bind()?;
            // SAFETY: the memory has this size, and is set completely before anything else on the stream
            // reads it.
            unsafe {
                memory.address = result::malloc_sync(bytes).map_err(driver)?;
                result::memset_d8_async(memory.address, 0, bytes, stream.raw()).map_err(driver)?;
            }
        }
        Ok(memory)
    }

    fn upload<T: Element>(
        &self,
        stream: &ForeignStream,
        source: &[T],
        to: &mut ForeignMemory<T>,
        first: usize,
    ) -> Result<(), BackendError> {
        let to = to.part(stream, &from(first, source.len()))?;
        if source.is_empty() {
            return Ok(());
        }
        // SAFETY: both ranges have this length. Page-locked memory is read when the copy runs, so this waits
        // for the copy. During a capture, waiting is an error, and no graph results that would read the
        // source again.
        unsafe {
            result::memcpy_htod_async(to, source, stream.raw()).map_err(driver)?;
            result::stream::synchronize(stream.raw()).map_err(driver)
        }
    }

    fn download<T: Element>(
        &self,
        stream: &ForeignStream,
        source: &ForeignMemory<T>,
        first: usize,
        to: &mut [T],
    ) -> Result<(), BackendError> {
        let source = source.part(stream, &from(first, to.len()))?;
        // SAFETY: both ranges have this length, and the copy has finished when this returns.
        unsafe {
            if !to.is_empty() {
                result::memcpy_dtoh_async(to, source, stream.raw()).map_err(driver)?;
            }
            result::stream::synchronize(stream.raw()).map_err(driver)
        }
    }

    fn copy<T: Element>(
        &self,
        stream: &ForeignStream,
        source: &ForeignMemory<T>,
        range: Range<usize>,
        to: &mut ForeignMemory<T>,
        first: usize,
    ) -> Result<(), BackendError> {
        let bytes = range.len() * size_of::<T>();
        let (source, to) = (source.part(stream, &range)?, to.part(stream, &from(first, range.len()))?);
        if bytes == 0 {
            return Ok(());
        }
        // SAFETY: both ranges have this length, and they belong to different allocations.
        unsafe { result::memcpy_dtod_async(to, source, bytes, stream.raw()) }.map_err(driver)
    }

    fn view<'a, T: Element>(&self, _: &'a ForeignStream, memory: &'a ForeignMemory<T>) -> View<'a, T> {
        // SAFETY: the view borrows the memory, whose drop waits for launches. The view belongs to the
        // memory's own stream, so a launch on another stream is refused.
        unsafe { View::from_raw(memory.address, memory.len, memory.stream.queue()) }
    }

    fn view_mut<'a, T: Element>(
        &self,
        _: &'a ForeignStream,
        memory: &'a mut ForeignMemory<T>,
    ) -> ViewMut<'a, T> {
        // SAFETY: as in `view`.
        unsafe { ViewMut::from_raw(memory.address, memory.len, memory.stream.queue()) }
    }

    unsafe fn launch(&self, stream: &ForeignStream, launch: &Launch<'_>) -> Result<(), BackendError> {
        // SAFETY: the caller makes this promise. `ForeignStream::new`'s caller promised that the stream is
        // alive and belongs to its context.
        unsafe { self.0.launch_on(&stream.context, stream.raw(), launch) }
    }
}

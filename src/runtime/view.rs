//! Typed views of device memory: the operands of kernels.

use std::marker::PhantomData;
use std::ops::Range;

use cudarc::driver::{CudaStream, DevicePtr, DevicePtrMut, DeviceRepr, SyncOnDrop, ValidAsZeroBits};
use half::{bf16, f16};

/// A type that device memory can hold: plain data, valid for every bit pattern.
pub trait Element: bytemuck::Pod + std::fmt::Debug + Send + Sync + DeviceRepr + ValidAsZeroBits {}

impl Element for u8 {}
impl Element for i32 {}
impl Element for u32 {}
impl Element for i64 {}
impl Element for u64 {}
impl Element for f32 {}
impl Element for bf16 {}
impl Element for f16 {}

/// Identity of a queue that orders accesses to memory: one launch may use two views if their ids are equal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct QueueId {
    /// The context: the CUDA context of a device, or an emulator.
    pub context: u64,
    /// The stream, by its identity within the context.
    pub stream: u64,
}

/// The kind of access that a kernel makes to a [`Region`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// The kernel reads the region.
    Read,
    /// The kernel reads and writes the region.
    Write,
}

/// A range of device memory that a launch uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Region {
    /// The name of the operand, for error reports.
    pub name: &'static str,
    /// The address of the first byte of the range.
    pub address: u64,
    /// The length of the range in bytes.
    pub bytes: u64,
    /// The kind of access that the kernel makes.
    pub access: Access,
}

/// A range of device memory on a queue: what [`View`] and [`ViewMut`] have in common.
#[derive(Debug)]
struct Span<'a, T> {
    address: u64,
    len: usize,
    queue: QueueId,
    // cudarc's guard of the memory: on CUDA, its drop records that the memory has been used, so the launch comes before
    // the drop.
    _guard: Option<SyncOnDrop<'a>>,
    elements: PhantomData<T>,
}

impl<'a, T: Element> Span<'a, T> {
    fn new(address: u64, len: usize, queue: QueueId, guard: Option<SyncOnDrop<'a>>) -> Self {
        Span { address, len, queue, _guard: guard, elements: PhantomData }
    }

    /// Returns the span of the elements `range`, or `None` if the range exceeds this span.
    fn range(self, range: Range<usize>) -> Option<Self> {
        let len = range.end.checked_sub(range.start).filter(|_| range.end <= self.len)?;
        let address = self.address + (range.start * size_of::<T>()) as u64;
        Some(Span { address, len, ..self })
    }

    /// Returns the span of the same bytes as elements of another type, or `None` if they are not a whole number of
    /// elements.
    fn cast<U: Element>(self) -> Option<Span<'a, U>> {
        let bytes = self.len * size_of::<T>();
        let len = bytes.is_multiple_of(size_of::<U>()).then_some(bytes / size_of::<U>())?;
        Some(Span::new(self.address, len, self.queue, self._guard))
    }
}

/// Device memory that a kernel reads: `len` elements of `T`, on one queue.
#[derive(Debug)]
pub struct View<'a, T> {
    span: Span<'a, T>,
    memory: PhantomData<&'a [T]>,
}

/// Device memory that a kernel writes: `len` elements of `T`, on one queue.
#[derive(Debug)]
pub struct ViewMut<'a, T> {
    span: Span<'a, T>,
    memory: PhantomData<&'a mut [T]>,
}

/// Defines the methods that the read-only and the writable view have in common.
macro_rules! span_methods {
    ($view:ident) => {
        impl<'a, T: Element> $view<'a, T> {
            fn of(span: Span<'a, T>) -> Self {
                $view { span, memory: PhantomData }
            }

            /// Returns a view of the elements `range`, or `None` if the range exceeds this view.
            pub fn range(self, range: Range<usize>) -> Option<Self> {
                self.span.range(range).map(Self::of)
            }

            /// Returns a view of the same bytes as elements of another type, or `None` if they are not a whole
            /// number of elements.
            pub fn cast<U: Element>(self) -> Option<$view<'a, U>> {
                self.span.cast().map($view::of)
            }

            /// Returns the device address of the view's first byte.
            pub fn address(&self) -> u64 {
                self.span.address
            }

            /// Returns the number of elements of the view.
            pub fn len(&self) -> usize {
                self.span.len
            }

            /// Returns whether the view has no elements.
            pub fn is_empty(&self) -> bool {
                self.span.len == 0
            }

            /// Returns the queue that orders accesses to the memory.
            pub fn queue(&self) -> QueueId {
                self.span.queue
            }
        }
    };
}

span_methods!(View);
span_methods!(ViewMut);

impl<T: Element> View<'_, T> {
    /// Makes a view of memory that neither this crate nor cudarc owns, for example another framework's
    /// tensor.
    ///
    /// # Safety
    ///
    /// `address` leads to `len` initialised elements of `T` that are accessible from `queue`, and nothing
    /// frees or writes them during the view's lifetime or before the launches given this view have run.
    pub unsafe fn from_raw(address: u64, len: usize, queue: QueueId) -> Self {
        Self::of(Span::new(address, len, queue, None))
    }
}

impl<T: Element> ViewMut<'_, T> {
    /// Makes a view of memory that neither this crate nor cudarc owns, for example another framework's
    /// tensor.
    ///
    /// # Safety
    ///
    /// `address` leads to `len` elements of `T` that are accessible from `queue`, and nothing else frees,
    /// reads or writes them during the view's lifetime or before the launches given this view have run.
    pub unsafe fn from_raw(address: u64, len: usize, queue: QueueId) -> Self {
        Self::of(Span::new(address, len, queue, None))
    }

    /// Returns a view of the same memory that only reads.
    pub(crate) fn as_view(&self) -> View<'_, T> {
        View::of(Span::new(self.span.address, self.span.len, self.span.queue, None))
    }
}

/// Returns the identity of a CUDA stream as a queue.
pub(super) fn cuda_queue(stream: &CudaStream) -> QueueId {
    QueueId { context: stream.context().cu_ctx() as u64, stream: stream.cu_stream() as u64 }
}

impl<'a, T: Element> View<'a, T> {
    /// Views cudarc's memory for launches on `stream`, which waits for the last write to it. The view borrows
    /// both:
    ///
    /// ```no_run
    /// # use std::sync::Arc;
    /// # use cudarc::driver::{CudaSlice, CudaStream};
    /// fn len(memory: CudaSlice<f32>, stream: Arc<CudaStream>) -> usize {
    ///     let view = flexdraft::runtime::View::cuda(&memory, &stream);
    ///     let len = view.len();
    ///     drop(view);
    ///     drop((memory, stream));
    ///     len
    /// }
    /// ```
    ///
    /// The memory cannot be freed while a view of it exists,
    ///
    /// ```compile_fail,E0505
    /// # use cudarc::driver::{CudaSlice, CudaStream};
    /// fn len(memory: CudaSlice<f32>, stream: &CudaStream) -> usize {
    ///     let view = flexdraft::runtime::View::cuda(&memory, stream);
    ///     drop(memory);
    ///     view.len()
    /// }
    /// ```
    ///
    /// and the stream that will use it cannot be freed either:
    ///
    /// ```compile_fail,E0505
    /// # use std::sync::Arc;
    /// # use cudarc::driver::{CudaSlice, CudaStream};
    /// fn len(memory: &CudaSlice<f32>, stream: Arc<CudaStream>) -> usize {
    ///     let view = flexdraft::runtime::View::cuda(memory, &stream);
    ///     drop(stream);
    ///     view.len()
    /// }
    /// ```
    pub fn cuda<M: DevicePtr<T>>(memory: &'a M, stream: &'a CudaStream) -> Self {
        let len = memory.len();
        let (address, guard) = memory.device_ptr(stream);
        Self::of(Span::new(address, len, cuda_queue(stream), Some(guard)))
    }
}

impl<'a, T: Element> ViewMut<'a, T> {
    /// Views cudarc's memory for launches on `stream`, which waits for the last use of it. While this view
    /// exists, no other view of the memory can:
    ///
    /// ```no_run
    /// # use cudarc::driver::{CudaSlice, CudaStream};
    /// # use flexdraft::runtime::{View, ViewMut};
    /// fn len(memory: &mut CudaSlice<f32>, stream: &CudaStream) -> usize {
    ///     let written = ViewMut::cuda(memory, stream).len();
    ///     View::cuda(memory, stream).len() + written
    /// }
    /// ```
    ///
    /// ```compile_fail,E0502
    /// # use cudarc::driver::{CudaSlice, CudaStream};
    /// # use flexdraft::runtime::{View, ViewMut};
    /// fn len(memory: &mut CudaSlice<f32>, stream: &CudaStream) -> usize {
    ///     let written = ViewMut::cuda(memory, stream);
    ///     View::cuda(memory, stream).len() + written.len()
    /// }
    /// ```
    pub fn cuda<M: DevicePtrMut<T>>(memory: &'a mut M, stream: &'a CudaStream) -> Self {
        let len = memory.len();
        let (address, guard) = memory.device_ptr_mut(stream);
        Self::of(Span::new(address, len, cuda_queue(stream), Some(guard)))
    }
}

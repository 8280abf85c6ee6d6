//! Where kernels run: a GPU, or the SIMT host that executes the same sources on the CPU.
//!
//! A [`Backend`] launches kernels by name with one parameter struct each, like `cuLaunchKernel`, so the
//! code that checks operands, fills the struct and chooses the grid is the same for every backend and is
//! what the tests run. Memory belongs to the caller: operands come as [`View`]s, which remember the queue
//! (context and stream) they are ordered on.

mod cuda;
mod foreign;
#[cfg(feature = "simt")]
pub mod simt;
mod view;

use std::ops::Range;

pub use cuda::Cuda;
pub use foreign::{Foreign, ForeignMemory, ForeignStream};
#[cfg(feature = "simt")]
pub use simt::{Simt, SimtOptions, SimtStream};
pub use view::{Access, Element, QueueId, Region, View, ViewMut};

/// What a kernel may use of the processor it runs on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Streaming multiprocessors: persistent grids take a small multiple of this.
    pub multiprocessors: u32,
    /// Shared memory that a CTA may opt into, in bytes.
    pub shared_bytes_per_cta: u32,
    /// Shared memory of a multiprocessor, in bytes.
    pub shared_bytes_per_multiprocessor: u32,
}

/// One kernel launch.
#[derive(Clone, Copy, Debug)]
pub struct Launch<'a> {
    /// The kernel's name in its source.
    pub kernel: &'static str,
    /// CTAs in x, y and z.
    pub grid: [u32; 3],
    /// Threads of a CTA, in x.
    pub threads: u32,
    /// Dynamic shared memory of a CTA, in bytes.
    pub shared_bytes: u32,
    /// The kernel's parameter struct. A pointer, as it may have padding that no slice could show.
    pub params: *const std::ffi::c_void,
    /// The size of that struct.
    pub params_bytes: usize,
    /// The memory that the struct's pointers lead to. Hardware ignores it; the SIMT host's checked
    /// variant finds any access outside of it and counts the bytes of each.
    pub regions: &'a [Region],
}

/// A launch that did not happen, or that the processor rejected.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BackendError {
    /// No driver, or no such device.
    #[error("no CUDA device: {0}")]
    Unavailable(String),
    /// The crate was built without nvcc, or nvcc failed.
    #[error(
        "flexdraft was built without CUDA device code, because no nvcc was found or it failed (build with \
         FLEXDRAFT_REQUIRE_NVCC=1 to see why); install CUDA 12.8 or newer (or run `cuda/install_nvcc.sh`), \
         point NVCC or CUDA_HOME at it, and build again"
    )]
    NoDeviceCode,
    /// The image holds no such kernel.
    #[error("the device image has no kernel `{0}`")]
    NoKernel(&'static str),
    /// The kernel asks for more than the processor has.
    #[error("kernel `{kernel}` needs {needed} bytes of shared memory a CTA, and the device allows {allowed}")]
    SharedMemory {
        /// The kernel.
        kernel: &'static str,
        /// Bytes that it needs.
        needed: u32,
        /// Bytes that a CTA can have.
        allowed: u32,
    },
    /// The stream belongs to another context than the loaded kernels.
    #[error("kernel `{kernel}`: the stream belongs to another CUDA context than the kernels")]
    Context {
        /// The kernel.
        kernel: &'static str,
    },
    /// The driver, or the SIMT host, reported an error.
    #[error("kernel `{kernel}`: {message}")]
    Failed {
        /// The kernel.
        kernel: &'static str,
        /// What was reported.
        message: String,
    },
    /// A copy or a part that goes beyond the end of the device memory.
    #[error("{wanted} elements were asked for, of device memory with {found}")]
    CopyLength {
        /// Elements to copy.
        wanted: usize,
        /// Elements of the device memory.
        found: usize,
    },
    /// The driver reported an error outside of a launch.
    #[error("{0}")]
    Driver(String),
}

/// A processor that kernels can be launched on.
pub trait Backend: Send + Sync + 'static {
    /// An ordered queue of launches; on CUDA a stream, which is the caller's.
    type Stream: std::fmt::Debug + Send + Sync;

    /// Memory that a backend owns.
    type Memory<T: Element>: std::fmt::Debug + Send + Sync;

    /// What kernels may use.
    fn limits(&self) -> Limits;

    /// Memory for `len` elements, zero at first.
    ///
    /// # Errors
    ///
    /// [`BackendError`] if there is not so much.
    fn allocate<T: Element>(
        &self,
        stream: &Self::Stream,
        len: usize,
    ) -> Result<Self::Memory<T>, BackendError>;

    /// Replaces the elements of `to` from `first` on by `from`, once what was put on `stream` before has run. `from`
    /// has been read when this returns; where it is page-locked that means waiting for the stream.
    ///
    /// # Errors
    ///
    /// [`BackendError::CopyLength`] if `to` ends before, an error of the driver, or a capture of `stream`, as a
    /// graph would read `from` again.
    fn upload<T: Element>(
        &self,
        stream: &Self::Stream,
        from: &[T],
        to: &mut Self::Memory<T>,
        first: usize,
    ) -> Result<(), BackendError>;

    /// Copies the elements of `from` from `first` on to `to`, and waits until what was put on `stream` before
    /// has run and the copy is done.
    ///
    /// # Errors
    ///
    /// [`BackendError::CopyLength`] if `from` ends before, or an error of the driver.
    fn download<T: Element>(
        &self,
        stream: &Self::Stream,
        from: &Self::Memory<T>,
        first: usize,
        to: &mut [T],
    ) -> Result<(), BackendError>;

    /// Copies the elements `range` of `from` to those of `to` from `first` on.
    ///
    /// # Errors
    ///
    /// [`BackendError::CopyLength`] if one of them is shorter, or an error of the driver.
    fn copy<T: Element>(
        &self,
        stream: &Self::Stream,
        from: &Self::Memory<T>,
        range: Range<usize>,
        to: &mut Self::Memory<T>,
        first: usize,
    ) -> Result<(), BackendError>;

    /// Owned memory as an operand that a kernel on `stream` reads. It outlives neither:
    ///
    /// ```no_run
    /// # use flexdraft::backend::{Backend, View};
    /// fn view<'a, B: Backend>(backend: &B, stream: &'a B::Stream, memory: &'a B::Memory<f32>) -> View<'a, f32> {
    ///     backend.view(stream, memory)
    /// }
    /// ```
    ///
    /// ```compile_fail,E0515
    /// # use flexdraft::backend::{Backend, View};
    /// fn view<'a, B: Backend>(backend: &B, stream: &'a B::Stream, memory: B::Memory<f32>) -> View<'a, f32> {
    ///     backend.view(stream, &memory)
    /// }
    /// ```
    ///
    /// ```compile_fail,E0515
    /// # use flexdraft::backend::{Backend, View};
    /// fn view<'a, B: Backend>(backend: &B, stream: B::Stream, memory: &'a B::Memory<f32>) -> View<'a, f32> {
    ///     backend.view(&stream, memory)
    /// }
    /// ```
    fn view<'a, T: Element>(&self, stream: &'a Self::Stream, memory: &'a Self::Memory<T>) -> View<'a, T>;

    /// Owned memory as an operand that a kernel on `stream` writes.
    fn view_mut<'a, T: Element>(
        &self,
        stream: &'a Self::Stream,
        memory: &'a mut Self::Memory<T>,
    ) -> ViewMut<'a, T>;

    /// The identity of `stream`, which every operand of a launch on it has to share.
    fn queue(&self, stream: &Self::Stream) -> QueueId;

    /// Appends a launch to `stream` and returns without waiting for it.
    ///
    /// # Safety
    ///
    /// `launch.params` points to a valid parameter struct of `launch.kernel`: its pointers lead to memory that
    /// stays allocated, and that nothing else writes or (for outputs) reads, until the launch has run, and
    /// the shapes in it do not exceed that memory.
    ///
    /// # Errors
    ///
    /// [`BackendError`]; nothing was launched then, except that the SIMT host runs a launch at once and
    /// reports here what it found in it.
    unsafe fn launch(&self, stream: &Self::Stream, launch: &Launch<'_>) -> Result<(), BackendError>;
}

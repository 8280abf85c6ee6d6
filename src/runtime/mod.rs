//! The runtimes that run kernels: a GPU, or the SIMT emulator that executes the same sources on the CPU.
//!
//! A [`Runtime`] launches kernels by name, each with one parameter struct, like `cuLaunchKernel`. The code
//! that checks operands, fills the struct and chooses the grid is therefore the same for every runtime, and
//! the tests run it. Memory belongs to the caller: operands are [`View`]s, which record the queue (context
//! and stream) that orders accesses to them.

mod cuda;
mod raw_cuda;
#[cfg(feature = "simt")]
pub mod simt;
mod staging;
mod view;

use std::ops::Range;

use cudarc::driver::DriverError;
use cudarc::driver::sys::CUresult;

#[cfg(feature = "runner")]
pub(crate) use cuda::StreamCall;
pub use cuda::{Cuda, CudaMemory};
pub use raw_cuda::{RawCuda, RawMemory, RawStream};
#[cfg(feature = "simt")]
pub use simt::{Simt, SimtOptions, SimtStream};
pub use staging::Staging;
pub use view::{Access, Element, QueueId, Region, View, ViewMut};

/// The resources that a processor offers to a kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Number of streaming multiprocessors. Persistent grids have a small multiple of this many CTAs.
    pub multiprocessors: u32,
    /// The largest shared memory that a CTA may opt into, in bytes.
    pub shared_bytes_per_cta: u32,
    /// The shared memory of a multiprocessor, in bytes.
    pub shared_bytes_per_multiprocessor: u32,
}

/// One kernel launch.
#[derive(Clone, Copy, Debug)]
pub struct Launch<'a> {
    /// The kernel's name in the CUDA source.
    pub kernel: &'static str,
    /// The number of CTAs in x, y and z.
    pub grid: [u32; 3],
    /// The number of threads per CTA, in x.
    pub threads: u32,
    /// Dynamic shared memory per CTA, in bytes.
    pub shared_bytes: u32,
    /// The kernel's parameter struct, which has no padding.
    pub params: *const std::ffi::c_void,
    /// The size of the parameter struct, in bytes.
    pub params_bytes: usize,
    /// The memory ranges to which the pointers in the parameter struct lead. Hardware ignores this list. The checked
    /// SIMT emulator reports any access outside of it and counts the bytes accessed per region.
    pub regions: &'a [Region],
}

/// An error of a runtime: a launch that did not happen or failed, or another failed request.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RuntimeError {
    /// The machine has no CUDA driver, or no such device.
    #[error("no CUDA device: {0}")]
    Unavailable(String),
    /// The crate was built without nvcc, or nvcc failed.
    #[error(
        "flexdraft was built without CUDA device code, because no nvcc was found or it failed (build with \
         FLEXDRAFT_REQUIRE_NVCC=1 to see why); install CUDA 12.8 or newer (or run `cuda/install_nvcc.sh`), \
         point NVCC or CUDA_HOME at it, and build again"
    )]
    NoDeviceCode,
    /// The compiled kernels lack a kernel that was to be loaded.
    #[error("the device image has no kernel `{0}`")]
    NoKernel(&'static str),
    /// The kernel needs more shared memory than the processor has.
    #[error(
        "kernel `{kernel}` needs {needed} bytes of shared memory per CTA, and the device allows {allowed}"
    )]
    SharedMemory {
        /// The kernel's name.
        kernel: &'static str,
        /// The shared memory that the kernel needs per CTA, in bytes.
        needed: u32,
        /// The largest shared memory that a CTA can have, in bytes.
        allowed: u32,
    },
    /// The stream belongs to another CUDA context than the loaded kernels do.
    #[error("kernel `{kernel}`: the stream belongs to another CUDA context than the kernels")]
    Context {
        /// The kernel's name.
        kernel: &'static str,
    },
    /// The driver refused a launch.
    #[error("kernel `{kernel}`: {error}")]
    Launch {
        /// The kernel's name.
        kernel: &'static str,
        /// The error that the driver returned.
        error: DriverFailure,
    },
    /// A launch failed for another reason: the SIMT emulator found faults.
    #[error("kernel `{kernel}`: {message}")]
    Failed {
        /// The kernel's name.
        kernel: &'static str,
        /// The text of the error.
        message: String,
    },
    /// A copy exceeds the device memory, or a range of device memory does.
    #[error("{wanted} elements were requested, but the device memory has {found}")]
    CopyLength {
        /// The number of elements that were requested.
        wanted: usize,
        /// The number of elements in the device memory.
        found: usize,
    },
    /// An allocation on the SIMT emulator failed, or its size is larger than any memory.
    #[error("out of memory: {elements} elements of {element_bytes} bytes")]
    OutOfMemory {
        /// The number of elements that were requested.
        elements: usize,
        /// Size of an element in bytes.
        element_bytes: usize,
    },
    /// The driver cannot load the kernels.
    #[error(
        "the kernels cannot be loaded (the driver has to be as new as the CUDA whose nvcc built them): {0}"
    )]
    Unloadable(DriverFailure),
    /// The driver reported an error outside a launch.
    #[error(transparent)]
    Driver(#[from] DriverFailure),
    /// Another library, such as cuBLASLt, reported an error.
    #[error("{library}: {message}")]
    Library {
        /// The library's name.
        library: &'static str,
        /// The text of the error.
        message: String,
    },
    /// The runtime does not allow the call, for the reason that the text gives.
    #[error("{0}")]
    Refused(&'static str),
}

impl RuntimeError {
    /// Returns true for out-of-memory errors. A smaller request may succeed.
    pub fn is_out_of_memory(&self) -> bool {
        match self {
            Self::OutOfMemory { .. } => true,
            Self::Driver(error) | Self::Unloadable(error) | Self::Launch { error, .. } => {
                error.code == CUresult::CUDA_ERROR_OUT_OF_MEMORY
            }
            _ => false,
        }
    }
}

impl From<DriverError> for RuntimeError {
    fn from(error: DriverError) -> Self {
        Self::Driver(error.into())
    }
}

/// An error that the CUDA driver reported.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct DriverFailure {
    /// The driver's error code.
    pub code: CUresult,
    /// The driver's name and description of the code.
    pub message: String,
}

impl From<DriverError> for DriverFailure {
    fn from(error: DriverError) -> Self {
        Self { code: error.0, message: error.to_string() }
    }
}

/// A processor that runs kernels.
pub trait Runtime: Send + Sync + 'static {
    /// An ordered queue of kernel launches and copies. On CUDA this is a stream, which the caller owns.
    type Stream: std::fmt::Debug + Send + Sync;

    /// Memory that the runtime owns.
    type Memory<T: Element>: std::fmt::Debug + Send + Sync;

    /// Returns the resources that kernels may use.
    fn limits(&self) -> Limits;

    /// Allocates memory for `len` elements, which are zero at first.
    ///
    /// # Errors
    ///
    /// [`RuntimeError`] if memory runs out.
    fn allocate<T: Element>(
        &self,
        stream: &Self::Stream,
        len: usize,
    ) -> Result<Self::Memory<T>, RuntimeError>;

    /// Copies `from` from the host to the elements of `to` from `first` on, after all earlier work on `stream`. `from`
    /// has been read when this returns: if it is page-locked, this waits for the stream.
    ///
    /// # Errors
    ///
    /// [`RuntimeError::CopyLength`] if `to` is too short, or an error of the driver. Also an error while
    /// `stream` is captured, because a graph would read `from` again.
    fn upload<T: Element>(
        &self,
        stream: &Self::Stream,
        from: &[T],
        to: &mut Self::Memory<T>,
        first: usize,
    ) -> Result<(), RuntimeError>;

    /// Copies the elements of device memory `from`, from `first` on, to `to` on the host. Waits until all earlier work
    /// on `stream` has run and the copy is done.
    ///
    /// # Errors
    ///
    /// [`RuntimeError::CopyLength`] if `from` is too short, or an error of the driver.
    fn download<T: Element>(
        &self,
        stream: &Self::Stream,
        from: &Self::Memory<T>,
        first: usize,
        to: &mut [T],
    ) -> Result<(), RuntimeError>;

    /// Copies `words` to the first words of `to`, after all earlier work on `stream`. `words` have been read when this
    /// returns, which does not wait for the stream.
    ///
    /// # Errors
    ///
    /// The errors of [`upload`](Self::upload).
    fn upload_staged(
        &self,
        stream: &Self::Stream,
        words: &[u64],
        to: &mut Self::Memory<u64>,
        staging: &mut Staging,
    ) -> Result<(), RuntimeError> {
        let _ = staging;
        self.upload(stream, words, to, 0)
    }

    /// Like [`upload_staged`](Self::upload_staged), for memory that no [gathered](Self::gather_launches) launch uses: the
    /// copy need not come after the gathered launches, and does not end the gathering.
    ///
    /// # Errors
    ///
    /// The errors of [`upload`](Self::upload).
    fn upload_ahead(
        &self,
        stream: &Self::Stream,
        words: &[u64],
        to: &mut Self::Memory<u64>,
        staging: &mut Staging,
    ) -> Result<(), RuntimeError> {
        self.upload_staged(stream, words, to, staging)
    }

    /// Returns the first `len` words of `from`. Waits until all earlier work on `stream` has run.
    ///
    /// # Errors
    ///
    /// The errors of [`download`](Self::download).
    fn download_staged<'s>(
        &self,
        stream: &Self::Stream,
        from: &Self::Memory<u64>,
        len: usize,
        staging: &'s mut Staging,
    ) -> Result<&'s [u64], RuntimeError> {
        let words = &mut staging.pageable;
        words.resize(len, 0);
        self.download(stream, from, 0, words)?;
        Ok(words)
    }

    /// Copies the elements `range` of device memory `from` to device memory `to`, where they start at element `first`.
    ///
    /// # Errors
    ///
    /// [`RuntimeError::CopyLength`] if `from` or `to` is too short, or an error of the driver.
    fn copy<T: Element>(
        &self,
        stream: &Self::Stream,
        from: &Self::Memory<T>,
        range: Range<usize>,
        to: &mut Self::Memory<T>,
        first: usize,
    ) -> Result<(), RuntimeError>;

    /// Views owned memory as an operand that a kernel on `stream` reads. The view can outlive neither memory
    /// nor stream:
    ///
    /// ```no_run
    /// # use flexdraft::runtime::{Runtime, View};
    /// fn view<'a, R: Runtime>(runtime: &R, stream: &'a R::Stream, memory: &'a R::Memory<f32>) -> View<'a, f32> {
    ///     runtime.view(stream, memory)
    /// }
    /// ```
    ///
    /// ```compile_fail,E0515
    /// # use flexdraft::runtime::{Runtime, View};
    /// fn view<'a, R: Runtime>(runtime: &R, stream: &'a R::Stream, memory: R::Memory<f32>) -> View<'a, f32> {
    ///     runtime.view(stream, &memory)
    /// }
    /// ```
    ///
    /// ```compile_fail,E0515
    /// # use flexdraft::runtime::{Runtime, View};
    /// fn view<'a, R: Runtime>(runtime: &R, stream: R::Stream, memory: &'a R::Memory<f32>) -> View<'a, f32> {
    ///     runtime.view(&stream, memory)
    /// }
    /// ```
    fn view<'a, T: Element>(&self, stream: &'a Self::Stream, memory: &'a Self::Memory<T>) -> View<'a, T>;

    /// Views owned memory as an operand that a kernel on `stream` writes.
    fn view_mut<'a, T: Element>(
        &self,
        stream: &'a Self::Stream,
        memory: &'a mut Self::Memory<T>,
    ) -> ViewMut<'a, T>;

    /// Returns the identity of `stream` as a queue of launches. Every operand of a launch on the stream must have the
    /// same identity.
    fn queue(&self, stream: &Self::Stream) -> QueueId;

    /// Returns whether the runtime repeats equal lists of launches on `stream` with fewer calls of the driver.
    fn repeats_launches(&self, stream: &Self::Stream) -> bool {
        let _ = stream;
        false
    }

    /// Lets a runtime that can run launches as a graph gather the launches on `stream` from here on. The next copy to or
    /// from the host, or [`finish_launches`](Self::finish_launches), ends this. Results do not depend on it.
    ///
    /// # Errors
    ///
    /// An error of work that was gathered before.
    fn gather_launches(&self, stream: &Self::Stream) -> Result<(), RuntimeError> {
        let _ = stream;
        Ok(())
    }

    /// Puts all gathered launches on `stream`. A later call returns their error.
    fn finish_launches(&self, stream: &Self::Stream) {
        let _ = stream;
    }

    /// Appends a kernel launch to `stream` and returns without waiting for it.
    ///
    /// # Safety
    ///
    /// `launch.params` points to a valid parameter struct of `launch.kernel`, without padding. The struct's pointers lead to
    /// memory that stays allocated until the launch has run, and until then nothing else writes that memory
    /// or (for outputs) reads it. The shapes in the struct do not exceed that memory.
    ///
    /// # Errors
    ///
    /// [`RuntimeError`]; nothing was launched then. The SIMT emulator is an exception: it runs a launch at once
    /// and reports here the errors that it found during the run.
    unsafe fn launch(&self, stream: &Self::Stream, launch: &Launch<'_>) -> Result<(), RuntimeError>;
}

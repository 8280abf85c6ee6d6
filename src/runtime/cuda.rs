//! The CUDA runtime: runs kernels on a GPU through the CUDA driver.

mod graphs;
mod launching;
mod memory;
mod page_locked;

use std::collections::HashMap;
use std::ffi::c_void;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use cudarc::driver::sys::{
    CUdevice_attribute as DeviceAttribute, CUdeviceptr, CUfunction_attribute as FunctionAttribute,
    CUpointer_attribute as PointerAttribute, CUresult, CUstream, CUstreamCaptureStatus as CaptureStatus,
    cuPointerGetAttributes,
};
use cudarc::driver::{CudaContext, CudaFunction, CudaStream, DevicePtr, DevicePtrMut, DriverError};
use cudarc::nvrtc::Ptx;

use self::graphs::GraphQueue;
use self::launching::LaunchShape;
use super::view::cuda_queue;
use super::{Element, Launch, Limits, QueueId, Runtime, RuntimeError, Staging, View, ViewMut};

pub(crate) use graphs::StreamCall;
pub use memory::CudaMemory;
pub(super) use page_locked::PageLocked;

/// One compiled kernel source: machine code for sm_80 and sm_90a, and PTX for later architectures. In a build
/// without nvcc, an image is text that lists the kernels. A driver refuses the text; the stand-in for the driver
/// (`cuda/stand_in`) loads it.
#[derive(Debug)]
struct Image {
    kernels: &'static [&'static str],
    fatbin: &'static [u8],
}

impl Image {
    /// The magic number of a fatbin, from CUDA's header fatbinary.h.
    const MAGIC: u32 = 0xba55_ed50;

    /// Returns whether the image has device code, or only a list of kernels.
    fn has_code(&self) -> bool {
        self.fatbin.starts_with(&Self::MAGIC.to_le_bytes())
    }
}

// The compiled kernel sources that build/nvcc.rs listed.
static IMAGES: &[Image] = include!(concat!(env!("OUT_DIR"), "/images.rs"));

/// The kernels of this crate, loaded into one CUDA context. Streams and memory belong to the caller and to the same
/// context. Dropping this waits for the context's work and unloads the kernels. A CUDA graph captured from launches
/// must therefore not be replayed afterwards.
#[derive(Debug)]
pub struct Cuda {
    context: Arc<CudaContext>,
    kernels: HashMap<&'static str, LoadedKernel>,
    limits: Limits,
    /// The queue that turns launches into graphs, if graphs are enabled.
    queue: Option<Arc<GraphQueue>>,
    /// Whether launches may begin before earlier launches have ended; `None` if no launch ever may.
    dependent: Option<AtomicBool>,
}

#[derive(Debug)]
struct LoadedKernel {
    function: CudaFunction,
    /// The largest dynamic shared memory that one of the kernel's CTAs may have, in bytes.
    shared_bytes: u32,
    /// Whether the loaded code waits for earlier launches.
    waits: bool,
}

impl Cuda {
    /// Returns the primary context of CUDA device number `ordinal`, which other libraries use too.
    ///
    /// # Errors
    ///
    /// [`RuntimeError::Unavailable`] if there is no CUDA driver or no such device.
    pub fn context(ordinal: usize) -> Result<Arc<CudaContext>, RuntimeError> {
        if !driver_is_present() {
            return Err(RuntimeError::Unavailable("the CUDA driver is not installed".into()));
        }
        CudaContext::new(ordinal).map_err(|error| RuntimeError::Unavailable(error.to_string()))
    }

    /// Returns the names of the kernels that this build contains as device code: none without nvcc.
    pub fn kernel_names() -> impl Iterator<Item = &'static str> {
        IMAGES.iter().filter(|image| image.has_code()).flat_map(|image| image.kernels).copied()
    }

    /// Loads the kernels of this crate into `context`.
    ///
    /// # Errors
    ///
    /// [`RuntimeError::NoDeviceCode`] if the crate was built without nvcc, [`RuntimeError::Unavailable`] for
    /// a device below compute capability 8.0, [`RuntimeError::NoKernel`] for an image that lacks a kernel,
    /// otherwise [`RuntimeError::Driver`].
    pub fn new(context: &Arc<CudaContext>) -> Result<Self, RuntimeError> {
        let images = device_code(IMAGES)?;
        let (major, minor) = context.compute_capability()?;
        if major < 8 {
            let found = format!("compute capability {major}.{minor}; the kernels need 8.0");
            return Err(RuntimeError::Unavailable(found));
        }
        let attribute = |attribute| -> Result<u32, RuntimeError> {
            Ok(u32::try_from(context.attribute(attribute)?).unwrap_or_default())
        };
        let mut limits = Limits {
            multiprocessors: attribute(DeviceAttribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?,
            shared_bytes_per_cta: attribute(
                DeviceAttribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN,
            )?,
            shared_bytes_per_multiprocessor: attribute(
                DeviceAttribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_MULTIPROCESSOR,
            )?,
        };
        let opt_in = limits.shared_bytes_per_cta;
        let mut kernels = HashMap::new();
        for image in images {
            let module = context.load_module(Ptx::from_binary(image.fatbin.to_vec())).map_err(|error| {
                // No driver can load an image without code.
                if image.has_code() { unloadable(error) } else { RuntimeError::NoDeviceCode }
            })?;
            for &name in image.kernels {
                let function = module.load_function(name).map_err(|error| match error.0 {
                    CUresult::CUDA_ERROR_NOT_FOUND => RuntimeError::NoKernel(name),
                    _ => error.into(),
                })?;
                let shared_bytes = allow_shared_memory(&function, opt_in)?;
                limits.shared_bytes_per_cta = limits.shared_bytes_per_cta.min(shared_bytes);
                let waits = launching::waits_for_earlier_launches(&function)?;
                kernels.insert(name, LoadedKernel { function, shared_bytes, waits });
            }
        }
        Ok(Cuda { context: context.clone(), kernels, limits, queue: None, dependent: None })
    }

    /// Returns the kernel of a launch on a stream of `context`, if it can be launched there.
    fn checked(&self, context: &CudaContext, launch: &Launch<'_>) -> Result<&LoadedKernel, RuntimeError> {
        let name = launch.kernel;
        let kernel = self.kernels.get(name).ok_or(RuntimeError::NoKernel(name))?;
        if context.cu_ctx() != self.context.cu_ctx() {
            return Err(RuntimeError::Context { kernel: name });
        }
        if launch.shared_bytes > kernel.shared_bytes {
            let (needed, allowed) = (launch.shared_bytes, kernel.shared_bytes);
            return Err(RuntimeError::SharedMemory { kernel: name, needed, allowed });
        }
        Ok(kernel)
    }

    /// Returns the shape of a launch of `kernel`.
    fn shape(&self, kernel: &LoadedKernel, launch: &Launch<'_>) -> LaunchShape {
        let &Launch { grid, threads, shared_bytes, .. } = launch;
        let dependent = self.dependent.as_ref().is_some_and(|on| on.load(Ordering::Relaxed));
        LaunchShape { grid, threads, shared_bytes, dependent: dependent && kernel.waits }
    }

    /// Launches a kernel on a stream of `context`.
    ///
    /// # Safety
    ///
    /// The contract of [`Runtime::launch`]; and `stream` is alive and belongs to `context`.
    pub(super) unsafe fn launch_on(
        &self,
        context: &CudaContext,
        stream: CUstream,
        launch: &Launch<'_>,
    ) -> Result<(), RuntimeError> {
        let name = launch.kernel;
        let kernel = self.checked(context, launch)?;
        let failed = |error: DriverError| RuntimeError::Launch { kernel: name, error: error.into() };
        self.context.bind_to_thread().map_err(failed)?;
        let (function, shape) = (kernel.function.cu_function(), self.shape(kernel, launch));
        // SAFETY: the function and its module live in `self`, in the context just bound, which is the
        // stream's context. The caller guarantees that the stream is alive, that the struct belongs to the
        // kernel, and that its pointers stay valid.
        unsafe { launching::launch(function, stream, shape, launch.params.cast_mut()) }.map_err(failed)
    }
}

impl Cuda {
    /// Returns the same kernels, with graphs of the launches on `stream` that repeat from step to step.
    ///
    /// # Safety
    ///
    /// Between [`gather_launches`](Runtime::gather_launches) and the next copy to or from the host, the operands of
    /// launches on `stream` are memory of this runtime, and nothing else puts work on `stream` or uses that memory.
    #[cfg_attr(not(feature = "runner"), allow(dead_code))] // Only the runner's GPU device uses it.
    pub(crate) unsafe fn with_graphs(mut self, stream: &Arc<CudaStream>) -> Self {
        self.queue = Some(Arc::new(GraphQueue::new(stream)));
        self
    }

    /// Returns the same kernels, whose launches may begin before earlier launches have ended, on GPUs that can do this
    /// (compute capability 9.0). Each kernel waits for earlier launches before it reads what they write.
    ///
    /// # Safety
    ///
    /// No kernel writes an operand that kernels read before they wait: the weights of norms, the frequencies of rotary
    /// embeddings, and the calibrator's last layer. Copies may write these operands. The tables of a pass are private to
    /// [`PassTables`](crate::kernels::PassTables), which notes when a kernel writes them.
    #[cfg_attr(not(feature = "runner"), allow(dead_code))] // Only the runner's GPU device uses it.
    pub(crate) unsafe fn with_dependent_launches(mut self) -> Self {
        self.dependent = Some(AtomicBool::new(true));
        self
    }

    /// Chooses whether later launches are gathered into graphs and may begin early, as far as this runtime was made for
    /// it.
    #[cfg_attr(not(feature = "runner"), allow(dead_code))] // Only the runner's GPU device uses it.
    pub(crate) fn choose_launches(&self, graphs: bool, dependent: bool) {
        if let Some(queue) = &self.queue {
            queue.turn(graphs);
        }
        if let Some(on) = &self.dependent {
            on.store(dependent, Ordering::Relaxed);
        }
    }

    /// Returns the queue of graphs, if `stream` has one.
    fn queue_of(&self, stream: &Arc<CudaStream>) -> Option<&GraphQueue> {
        self.queue.as_deref().filter(|queue| queue.is_of(stream))
    }

    /// Puts everything that was gathered on `stream`, so that the caller's next call comes after it.
    fn finish(&self, stream: &Arc<CudaStream>) -> Result<(), RuntimeError> {
        self.queue_of(stream).map_or(Ok(()), GraphQueue::finish)
    }

    /// Makes a library's call, which puts work on `stream`. `numbers` determine the work; they include the address of an
    /// object that `call` keeps alive.
    #[cfg_attr(not(feature = "runner"), allow(dead_code))] // Only the runner's GPU device uses it.
    pub(crate) fn call(
        &self,
        stream: &Arc<CudaStream>,
        numbers: [u64; 8],
        call: impl StreamCall + Clone + 'static,
    ) -> Result<(), RuntimeError> {
        if let Some(queue) = self.queue_of(stream)
            && queue.call(numbers, call.clone())?
        {
            return Ok(());
        }
        call.run(stream)
    }
}

impl Drop for Cuda {
    fn drop(&mut self) {
        if let Some(queue) = &self.queue {
            queue.close();
        }
        // Unloading a module whose kernels still run is undefined behaviour.
        self.context.record_err(self.context.synchronize());
    }
}

/// Returns the images of kernels, or an error if there are none.
fn device_code(images: &'static [Image]) -> Result<&'static [Image], RuntimeError> {
    if images.is_empty() { Err(RuntimeError::NoDeviceCode) } else { Ok(images) }
}

/// Allows the CTAs of `function` all the dynamic shared memory that its static shared memory leaves of
/// `opt_in` bytes, and returns that size.
fn allow_shared_memory(function: &CudaFunction, opt_in: u32) -> Result<u32, DriverError> {
    let reserved = function.get_attribute(FunctionAttribute::CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES)?;
    let bytes = opt_in.saturating_sub(u32::try_from(reserved).unwrap_or_default());
    let attribute = FunctionAttribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
    function.set_attribute(attribute, i32::try_from(bytes).unwrap_or(i32::MAX))?;
    Ok(bytes)
}

/// Returns whether `memory` is ordinary memory of the host: neither page-locked nor managed by CUDA. The driver refuses
/// a copy of mixed kinds, so the kind of the first byte decides.
fn is_pageable<T>(memory: &[T]) -> bool {
    let mut attribute = PointerAttribute::CU_POINTER_ATTRIBUTE_MEMORY_TYPE;
    let mut kind = 0u32;
    let mut data = (&raw mut kind).cast::<c_void>();
    // SAFETY: one attribute, whose value has the size of `kind`. The driver looks the address up and does not
    // dereference it.
    let found = unsafe {
        cuPointerGetAttributes(1, &raw mut attribute, &raw mut data, memory.as_ptr() as CUdeviceptr)
    };
    // A memory type of 0 means memory that the driver does not know.
    memory.is_empty() || (found == CUresult::CUDA_SUCCESS && kind == 0)
}

/// Waits for a stream whose last copy uses memory of the host that the caller may free afterwards. If the wait fails,
/// this waits for the whole context: either the copy ends now, or nothing in the context runs any more.
fn finish_copy(stream: &CudaStream) -> Result<(), RuntimeError> {
    stream.synchronize().map_err(|error| {
        let _ = stream.context().synchronize();
        error.into()
    })
}

fn unloadable(error: DriverError) -> RuntimeError {
    RuntimeError::Unloadable(error.into())
}

/// Returns true, for builds in which cudarc does not load libcuda itself and has no function of this name. If another
/// crate of the build makes cudarc link libcuda, a running process always has it.
#[allow(dead_code)]
unsafe fn is_culib_present() -> bool {
    true
}

/// Returns whether libcuda can be loaded; if it cannot, calls into cudarc would panic.
fn driver_is_present() -> bool {
    // If cudarc loads libcuda itself, this import hides the function above.
    #[allow(unused_imports)]
    use cudarc::driver::sys::*;
    // SAFETY: loads the CUDA driver's library, whose initialisers have no preconditions.
    unsafe { is_culib_present() }
}

impl Runtime for Cuda {
    type Stream = Arc<CudaStream>;
    type Memory<T: Element> = CudaMemory<T>;

    fn limits(&self) -> Limits {
        self.limits
    }

    fn queue(&self, stream: &Self::Stream) -> QueueId {
        cuda_queue(stream)
    }

    fn allocate<T: Element>(&self, stream: &Self::Stream, len: usize) -> Result<CudaMemory<T>, RuntimeError> {
        self.finish(stream)?;
        Ok(CudaMemory::new(stream.alloc_zeros(len)?, self.queue.clone()))
    }

    fn upload<T: Element>(
        &self,
        stream: &Self::Stream,
        from: &[T],
        to: &mut CudaMemory<T>,
        first: usize,
    ) -> Result<(), RuntimeError> {
        self.finish(stream)?;
        let (wanted, found) = (from.len(), to.len());
        let range = first..first.saturating_add(wanted);
        let mut to = to.slice_mut().try_slice_mut(range).ok_or(RuntimeError::CopyLength { wanted, found })?;
        // A graph would read the host's memory again when it runs.
        if stream.capture_status()? != CaptureStatus::CU_STREAM_CAPTURE_STATUS_NONE {
            return Err(RuntimeError::Refused("memory of the host cannot be uploaded in a capture"));
        }
        stream.memcpy_htod(from, &mut to)?;
        // When the copy call returns, the driver has read pageable memory. It reads other memory when the copy runs.
        if is_pageable(from) { Ok(()) } else { finish_copy(stream) }
    }

    fn download<T: Element>(
        &self,
        stream: &Self::Stream,
        from: &CudaMemory<T>,
        first: usize,
        to: &mut [T],
    ) -> Result<(), RuntimeError> {
        self.finish(stream)?;
        let (wanted, found) = (to.len(), from.len());
        let range = first..first.saturating_add(wanted);
        let from = from.try_slice(range).ok_or(RuntimeError::CopyLength { wanted, found })?;
        stream.memcpy_dtoh(&from, to)?;
        finish_copy(stream)
    }

    fn upload_staged(
        &self,
        stream: &Self::Stream,
        words: &[u64],
        to: &mut CudaMemory<u64>,
        staging: &mut Staging,
    ) -> Result<(), RuntimeError> {
        self.finish(stream)?;
        self.upload_ahead(stream, words, to, staging)
    }

    fn upload_ahead(
        &self,
        stream: &Self::Stream,
        words: &[u64],
        to: &mut CudaMemory<u64>,
        staging: &mut Staging,
    ) -> Result<(), RuntimeError> {
        let (wanted, found) = (words.len(), to.len());
        if wanted > found {
            return Err(RuntimeError::CopyLength { wanted, found });
        }
        let free = |kept: &&mut Option<PageLocked>| !kept.as_ref().is_some_and(PageLocked::is_being_read);
        let Some(kept) = staging.locked.iter_mut().find(free) else {
            return self.upload(stream, words, to, 0);
        };
        let locked = PageLocked::of(kept, stream, words.len())?;
        locked.upload(words, &mut self.view_mut(stream, to), self.queue_of(stream).is_some())
    }

    fn download_staged<'s>(
        &self,
        stream: &Self::Stream,
        from: &CudaMemory<u64>,
        len: usize,
        staging: &'s mut Staging,
    ) -> Result<&'s [u64], RuntimeError> {
        self.finish(stream)?;
        if len > from.len() {
            return Err(RuntimeError::CopyLength { wanted: len, found: from.len() });
        }
        let [locked, other] = &mut staging.locked;
        let words = PageLocked::of(locked, stream, len)?.download(&self.view(stream, from), len)?;
        if let Some(other) = other {
            other.finished_on(stream);
        }
        Ok(words)
    }

    fn copy<T: Element>(
        &self,
        stream: &Self::Stream,
        from: &CudaMemory<T>,
        range: Range<usize>,
        to: &mut CudaMemory<T>,
        first: usize,
    ) -> Result<(), RuntimeError> {
        let short = |wanted, found| RuntimeError::CopyLength { wanted, found };
        let (end, len) = (range.end, range.len());
        let from = from.try_slice(range).ok_or(short(end, from.len()))?;
        let (end, found) = (first.saturating_add(len), to.len());
        let mut to = to.slice_mut().try_slice_mut(first..end).ok_or(short(end, found))?;
        if let Some(queue) = self.queue_of(stream) {
            let (from, _) = from.device_ptr(stream);
            let (to, _) = to.device_ptr_mut(stream);
            if queue.copy(from, to, len * size_of::<T>())? {
                return Ok(());
            }
        }
        stream.memcpy_dtod(&from, &mut to).map_err(RuntimeError::from)
    }

    fn view<'a, T: Element>(&self, stream: &'a Self::Stream, memory: &'a CudaMemory<T>) -> View<'a, T> {
        View::cuda(&**memory, stream)
    }

    fn view_mut<'a, T: Element>(
        &self,
        stream: &'a Self::Stream,
        memory: &'a mut CudaMemory<T>,
    ) -> ViewMut<'a, T> {
        ViewMut::cuda(memory.slice_mut(), stream)
    }

    fn repeats_launches(&self, stream: &Self::Stream) -> bool {
        self.queue_of(stream).is_some_and(GraphQueue::is_on)
    }

    fn gather_launches(&self, stream: &Self::Stream) -> Result<(), RuntimeError> {
        self.queue_of(stream).map_or(Ok(()), GraphQueue::gather)
    }

    fn finish_launches(&self, stream: &Self::Stream) {
        if let Some(queue) = self.queue_of(stream) {
            queue.finish_later();
        }
    }

    unsafe fn launch(&self, stream: &Self::Stream, launch: &Launch<'_>) -> Result<(), RuntimeError> {
        if let Some(queue) = self.queue_of(stream) {
            let kernel = self.checked(stream.context(), launch)?;
            let (function, shape) = (kernel.function.cu_function(), self.shape(kernel, launch));
            // SAFETY: the caller upholds the contract about the launch; parameter structs have no padding. `with_graphs`'s
            // caller guarantees that the operands are memory of this runtime, whose drop finishes gathered work.
            if unsafe { queue.launch(function, shape, launch) }? {
                return Ok(());
            }
        }
        // SAFETY: the caller guarantees this; the stream is alive and belongs to its context.
        unsafe { self.launch_on(stream.context(), stream.cu_stream(), launch) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_build_without_device_code_says_so() {
        assert_eq!(device_code(&[]).map(<[Image]>::len), Err(RuntimeError::NoDeviceCode));
        let message = RuntimeError::NoDeviceCode.to_string();
        assert!(message.contains("NVCC") && message.contains("cuda/install_nvcc.sh"), "{message}");
    }

    #[test]
    fn device_code_is_fatbins_with_distinct_kernels() {
        let mut names: Vec<_> = Cuda::kernel_names().collect();
        names.sort_unstable();
        assert!(names.windows(2).all(|pair| pair[0] != pair[1]), "{names:?}");
        // Either all kernel sources are compiled, or none.
        assert!(IMAGES.iter().all(|image| image.has_code() != names.is_empty()));
    }

    #[test]
    fn images_without_code_list_their_kernels() {
        for image in IMAGES.iter().filter(|image| !image.has_code()) {
            let text = std::str::from_utf8(image.fatbin).unwrap();
            let (text, rest) = text.split_once('\0').unwrap();
            assert_eq!(rest, "");
            let listed: Vec<&str> = text.lines().skip(1).map(|line| line.trim_start_matches("// ")).collect();
            assert_eq!(listed, image.kernels);
        }
    }

    #[test]
    fn a_missing_driver_is_an_error() {
        // The result is an error or a context, depending on the machine, but never cudarc's panic.
        match Cuda::context(usize::from(u16::MAX)) {
            Err(RuntimeError::Unavailable(message)) => assert!(!message.is_empty()),
            other => panic!("{other:?}"),
        }
    }
}

//! Access to cuBLASLt in one CUDA context: the handle, the scratch memory, and single calls.

use std::ffi::c_void;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use cudarc::cublaslt::{result, sys};
use cudarc::driver::{CudaContext, CudaSlice, CudaStream};

use super::descriptors::Problem;
use super::product::{Pointers, WORKSPACE_BYTES, driver, failed};
use crate::device::DeviceError;
use crate::runtime::{RuntimeError, ViewMut};

/// The cuBLASLt library in a context.
#[derive(Debug)]
pub(super) struct Library {
    pub(super) context: Arc<CudaContext>,
    pub(super) handle: Handle,
    pub(super) workspace: Mutex<CudaSlice<u8>>,
    /// The time at which the last trial of algorithms ended: the GPU's clocks stay up for some time after its work
    /// ends.
    pub(super) last_trial: Mutex<Option<Instant>>,
}

#[derive(Debug)]
pub(super) struct Handle(pub(super) sys::cublasLtHandle_t);

// SAFETY: any thread may use a cuBLASLt handle, and several threads may use it at once.
unsafe impl Send for Handle {}
// SAFETY: as above.
unsafe impl Sync for Handle {}

impl Drop for Handle {
    fn drop(&mut self) {
        // SAFETY: created by `Library::new` and destroyed once. Drop cannot report an error, so it is ignored.
        let _ = unsafe { result::destroy_handle(self.0) };
    }
}

/// The fallback of [`cublas_is_present`]. If another crate of the build makes cudarc link its libraries, a
/// running process always has them.
#[allow(dead_code)]
unsafe fn is_culib_present() -> bool {
    true
}

/// Returns whether cuBLASLt can be loaded; if it cannot, cudarc panics.
pub fn cublas_is_present() -> bool {
    // If cudarc loads the library itself, this import hides the function above.
    #[allow(unused_imports)]
    use cudarc::cublaslt::sys::*;
    // SAFETY: loads a library whose initialisers have no preconditions.
    unsafe { is_culib_present() }
}

impl Library {
    /// Opens the library in `context`, with scratch memory on `stream`.
    pub(super) fn new(context: &Arc<CudaContext>, stream: &Arc<CudaStream>) -> Result<Self, DeviceError> {
        let unavailable = |reason: String| DeviceError::Unavailable {
            requested: format!("cuda:{}", context.ordinal()),
            reason,
        };
        if !cublas_is_present() {
            return Err(unavailable("cuBLASLt (libcublasLt.so) cannot be found".into()));
        }
        context.bind_to_thread().map_err(|error| unavailable(error.to_string()))?;
        let handle = Handle(result::create_handle().map_err(|error| unavailable(error.to_string()))?);
        let workspace =
            stream.alloc_zeros(WORKSPACE_BYTES).map_err(|error| unavailable(error.to_string()))?;
        let (context, workspace) = (context.clone(), Mutex::new(workspace));
        Ok(Library { context, handle, workspace, last_trial: Mutex::default() })
    }

    /// Refuses objects of another context than the library's: cuBLASLt takes bare addresses and cannot tell.
    pub(super) fn check_context(&self, context: &Arc<CudaContext>) -> Result<(), DeviceError> {
        if context.cu_ctx() == self.context.cu_ctx() {
            return Ok(());
        }
        Err(RuntimeError::Context { kernel: "matrix product" }.into())
    }

    /// Copies `bytes` bytes of device memory on the stream. The caller has checked the addresses.
    pub(super) fn copy(
        &self,
        stream: &Arc<CudaStream>,
        from: u64,
        to: u64,
        bytes: usize,
    ) -> Result<(), DeviceError> {
        self.context.bind_to_thread().map_err(driver)?;
        // SAFETY: one side is the padding, which has more rows and is held by a view. The other side is rows
        // of a product's operand, which `multiply` checked and holds views of. They do not overlap.
        unsafe { cudarc::driver::result::memcpy_dtod_async(to, from, bytes, stream.cu_stream()) }
            .map_err(driver)
    }

    /// Enqueues one product of `rows` rows on the stream.
    pub(super) fn launch(
        &self,
        stream: &Arc<CudaStream>,
        problem: &mut Problem,
        algorithm: &sys::cublasLtMatmulAlgo_t,
        rows: usize,
        pointers: Pointers,
    ) -> Result<(), DeviceError> {
        self.context.bind_to_thread().map_err(driver)?;
        problem.set(rows, pointers.bias)?;
        let mut workspace = self.workspace.lock().unwrap_or_else(PoisonError::into_inner);
        let workspace = ViewMut::cuda(&mut *workspace, stream);
        // SAFETY: the descriptors were just set to this product, whose memory the caller checked. The
        // workspace is locked, and its view orders the product after the workspace's last use.
        unsafe { self.enqueue(stream, problem, algorithm, pointers, workspace.address()) }
    }

    /// Calls cuBLASLt, with the context bound to the current thread.
    ///
    /// # Safety
    ///
    /// `problem` describes memory at `pointers` that stays valid until the product has run; `workspace` is
    /// the address of [`WORKSPACE_BYTES`] bytes that nothing else uses meanwhile.
    pub(super) unsafe fn enqueue(
        &self,
        stream: &Arc<CudaStream>,
        problem: &Problem,
        algorithm: &sys::cublasLtMatmulAlgo_t,
        pointers: Pointers,
        workspace: u64,
    ) -> Result<(), DeviceError> {
        let (one, zero) = (1.0f32, 0.0f32);
        // SAFETY: the descriptors are alive, and no other thread uses them (cuBLASLt reads them before it
        // returns). The scalars have the type that the description names, and are read before the call
        // returns. The workspace is an allocation, so it begins at a multiple of 256 bytes, as required. The
        // caller guarantees the rest.
        unsafe {
            result::matmul(
                self.handle.0,
                problem.description.0,
                (&raw const one).cast(),
                (&raw const zero).cast(),
                pointers.weight as *const c_void,
                problem.weight.0,
                pointers.x as *const c_void,
                problem.x.0,
                pointers.out as *const c_void,
                problem.out.0,
                pointers.out as *mut c_void,
                problem.out.0,
                algorithm,
                workspace as *mut c_void,
                WORKSPACE_BYTES,
                stream.cu_stream().cast(),
            )
        }
        .map_err(failed)
    }
}

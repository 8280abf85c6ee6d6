//! The device on a GPU.

use std::sync::Arc;

use cudarc::driver::{CudaContext, CudaStream};

use super::Gpu;
use super::cublas::{CublasLt, ProductAlgorithms};
use crate::device::DeviceError;
use crate::kernels::Kernels;
use crate::runtime::{Cuda, RuntimeError};

impl Gpu<CublasLt> {
    /// CUDA device `ordinal`, on a stream of its own.
    ///
    /// # Errors
    ///
    /// [`DeviceError::Unavailable`] where there is no driver, no such device, no cuBLASLt, or no device code in
    /// this build.
    pub fn cuda(ordinal: usize) -> Result<Self, DeviceError> {
        Self::cuda_with(ordinal, ProductAlgorithms::RowInvariant)
    }

    /// CUDA device `ordinal`, on a stream of its own, with a choice of the algorithms that multiply matrices.
    ///
    /// # Errors
    ///
    /// As [`cuda`](Self::cuda).
    pub fn cuda_with(ordinal: usize, algorithms: ProductAlgorithms) -> Result<Self, DeviceError> {
        let context = Cuda::context(ordinal).map_err(|error| missing(ordinal, error))?;
        // SAFETY: with this, memory that is made in `context` neither records nor waits for events, so that what
        // uses it has to be in order by itself. `context` is an object of this device alone, made above and given
        // to no caller (others of the same GPU share the driver's context, but each has a flag of its own and memory
        // of its own): its only user is the device below, which allocates, uses and frees all its memory on the
        // one stream, in the stream's order, and whose copies to the host wait for that stream. What lets memory
        // out of it would have to be checked against this.
        unsafe { context.disable_event_tracking() };
        let stream = context
            .new_stream()
            .map_err(|error| missing(ordinal, RuntimeError::Unavailable(error.to_string())))?;
        Self::new_on(&context, &stream, algorithms)
    }

    /// A device that puts all its work on `stream`, of `context`, which are the caller's: the same context object
    /// and stream may have other uses, and cudarc keeps memory of the device in order with them by events, unless
    /// the caller has [turned that off](CudaContext::disable_event_tracking), which spares some of the host's time
    /// at every launch, and which a capture in a CUDA graph needs.
    ///
    /// # Errors
    ///
    /// As [`cuda`](Self::cuda).
    pub fn on(context: &Arc<CudaContext>, stream: &Arc<CudaStream>) -> Result<Self, DeviceError> {
        Self::new_on(context, stream, ProductAlgorithms::RowInvariant)
    }

    fn new_on(
        context: &Arc<CudaContext>,
        stream: &Arc<CudaStream>,
        algorithms: ProductAlgorithms,
    ) -> Result<Self, DeviceError> {
        let kernels = Kernels::load(context).map_err(|error| missing(context.ordinal(), error))?;
        let products = CublasLt::new(context, stream)?.with_algorithms(algorithms);
        Ok(Gpu::new(kernels, stream.clone(), products))
    }
}

/// Why CUDA device `ordinal` cannot be used.
pub(super) fn missing(ordinal: usize, error: RuntimeError) -> DeviceError {
    let reason = match error {
        RuntimeError::Unavailable(reason) => reason,
        other => other.to_string(),
    };
    DeviceError::Unavailable { requested: format!("cuda:{ordinal}"), reason }
}

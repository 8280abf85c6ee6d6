//! The GPU device on CUDA, with products by cuBLASLt.

use std::sync::Arc;

use cudarc::driver::{CudaContext, CudaStream};

use super::Gpu;
use super::cublas::{CublasLt, ProductAlgorithms};
use crate::device::DeviceError;
use crate::kernels::Kernels;
use crate::runtime::{Cuda, RuntimeError};

/// Options of a device on CUDA.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CudaOptions {
    /// The algorithms that multiply matrices.
    pub algorithms: ProductAlgorithms,
    /// Whether launches that repeat from step to step run as CUDA graphs. Results do not depend on this option.
    pub graphs: bool,
    /// Whether a kernel may begin before the previous kernel has ended (programmatic dependent launch, on GPUs of
    /// compute capability 9.0). Results do not depend on it.
    pub dependent_launches: bool,
}

impl Default for CudaOptions {
    fn default() -> Self {
        Self { algorithms: ProductAlgorithms::default(), graphs: true, dependent_launches: true }
    }
}

impl Gpu<CublasLt> {
    /// Opens CUDA device `ordinal`, on a new stream.
    ///
    /// # Errors
    ///
    /// [`DeviceError::Unavailable`] if there is no driver, no such device, no cuBLASLt, or no device code in this
    /// build.
    pub fn cuda(ordinal: usize) -> Result<Self, DeviceError> {
        Self::cuda_with(ordinal, CudaOptions::default())
    }

    /// Opens CUDA device `ordinal`, on a new stream, with other options than the defaults.
    ///
    /// # Errors
    ///
    /// The errors of [`cuda`](Self::cuda).
    pub fn cuda_with(ordinal: usize, options: CudaOptions) -> Result<Self, DeviceError> {
        let context = Cuda::context(ordinal).map_err(|error| missing(ordinal, error))?;
        // SAFETY: without event tracking, memory of `context` neither records nor waits for events, so its users
        // must be in order by themselves. This context object was made above and no caller has it. (Other context
        // objects of the same GPU share the driver's context, but each has its own flag and its own memory.) Its
        // only user is the device below. That device allocates, uses and frees all its memory on one stream, in the
        // stream's order, and its copies to the host wait for that stream. A function that hands memory out of the
        // device would have to be checked against this.
        unsafe { context.disable_event_tracking() };
        let stream = context
            .new_stream()
            .map_err(|error| missing(ordinal, RuntimeError::Unavailable(error.to_string())))?;
        Self::new_on(&context, &stream, options)
    }

    /// Selects how kernels are launched from now on, for comparisons: as graphs, and with programmatic dependent
    /// launch. A feature that was off when the device was opened stays off. Results do not depend on it.
    pub fn choose_launches(&self, graphs: bool, dependent_launches: bool) {
        self.context.runtime().choose_launches(graphs, dependent_launches);
    }

    /// Makes a device that puts all its work on the caller's `stream`, a stream of `context`. Both may have other
    /// uses. cudarc keeps the device's memory in order with them by events, unless the caller has
    /// [turned events off](CudaContext::disable_event_tracking). Without events, launches take less host time, and
    /// a CUDA graph can capture them.
    ///
    /// # Errors
    ///
    /// The errors of [`cuda`](Self::cuda).
    pub fn on(context: &Arc<CudaContext>, stream: &Arc<CudaStream>) -> Result<Self, DeviceError> {
        let options = CudaOptions { graphs: false, dependent_launches: false, ..CudaOptions::default() };
        Self::new_on(context, stream, options)
    }

    fn new_on(
        context: &Arc<CudaContext>,
        stream: &Arc<CudaStream>,
        CudaOptions { algorithms, graphs, dependent_launches }: CudaOptions,
    ) -> Result<Self, DeviceError> {
        let cuda = Cuda::new(context).map_err(|error| missing(context.ordinal(), error))?;
        // SAFETY: graphs are on for a stream that `cuda_with` made, and that no function hands out. All its operands are
        // memory of the runtime, and products go through the runtime too.
        let cuda = if graphs { unsafe { cuda.with_graphs(stream) } } else { cuda };
        // SAFETY: the device's weights, which kernels read before they wait, are written by uploads only.
        let cuda = if dependent_launches { unsafe { cuda.with_dependent_launches() } } else { cuda };
        let products = CublasLt::new(context, stream)?.with_algorithms(algorithms);
        Ok(Gpu::new(Kernels::new(cuda), stream.clone(), products))
    }
}

/// Returns the error of CUDA device `ordinal`, which cannot be used.
pub(super) fn missing(ordinal: usize, error: RuntimeError) -> DeviceError {
    let reason = match error {
        RuntimeError::Unavailable(reason) => reason,
        other => other.to_string(),
    };
    DeviceError::Unavailable { requested: format!("cuda:{ordinal}"), reason }
}

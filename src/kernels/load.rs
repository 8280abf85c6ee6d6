//! Loads the kernels on a GPU.

use std::sync::Arc;

use cudarc::driver::CudaContext;

use super::Kernels;
use crate::runtime::{Cuda, RuntimeError};

impl Kernels<Cuda> {
    /// Loads the kernels of this crate into a CUDA context, which [`Cuda::context`] makes.
    ///
    /// # Errors
    ///
    /// The errors of [`Cuda::new`]: above all [`RuntimeError::NoDeviceCode`] in a build without nvcc.
    pub fn load(context: &Arc<CudaContext>) -> Result<Self, RuntimeError> {
        Ok(Kernels::new(Cuda::new(context)?))
    }
}

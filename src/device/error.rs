//! Why a device did not do what it was asked to.

use crate::backend::BackendError;
use crate::kernels::{Faults, KernelError};

/// What can go wrong on a device.
#[derive(Clone, Debug, thiserror::Error, PartialEq)]
#[non_exhaustive]
pub enum DeviceError {
    /// The device asked for does not exist on this machine or in this build.
    #[error("device `{requested}` is not available: {reason}")]
    Unavailable {
        /// The device as the user named it.
        requested: String,
        /// Why it cannot be used.
        reason: String,
    },
    /// An operand's shape does not fit the operation.
    #[error("{operation}: {operand} has shape {found:?}, expected {expected:?}")]
    Shape {
        /// The operation.
        operation: &'static str,
        /// The operand.
        operand: &'static str,
        /// The shape that would fit.
        expected: Vec<usize>,
        /// The shape it has.
        found: Vec<usize>,
    },
    /// An index (token id, page id, row, layer) outside its range.
    #[error("{operation}: {what} {index} is out of range, the limit is {limit}")]
    OutOfRange {
        /// The operation.
        operation: &'static str,
        /// What kind of index.
        what: &'static str,
        /// The index.
        index: usize,
        /// The first index that is out of range.
        limit: usize,
    },
    /// A kernel that could not be launched, or a driver's error.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// Kernels that ran met what they should not have; nothing that they left is to be relied on.
    #[error("the kernels of a step found {0}")]
    Faults(Faults),
    /// Memory that could not be had.
    #[error("out of memory: {what} needs {bytes} bytes")]
    OutOfMemory {
        /// What it was for.
        what: &'static str,
        /// How many bytes.
        bytes: usize,
    },
}

impl DeviceError {
    /// Whether memory was asked for that there is not: with less of it, the device goes on.
    pub fn is_out_of_memory(&self) -> bool {
        match self {
            Self::OutOfMemory { .. } => true,
            // The driver's errors come as text, which begins with the name of its code.
            Self::Kernel(KernelError::Backend(
                BackendError::Driver(message) | BackendError::Failed { message, .. },
            )) => message.contains("CUDA_ERROR_OUT_OF_MEMORY"),
            _ => false,
        }
    }
}

impl From<BackendError> for DeviceError {
    fn from(error: BackendError) -> Self {
        KernelError::from(error).into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn which_errors_are_of_memory() {
        let driver = |message: &str| DeviceError::from(BackendError::Driver(message.into()));
        assert!(driver(r#"DriverError(CUDA_ERROR_OUT_OF_MEMORY, "out of memory")"#).is_out_of_memory());
        assert!(!driver(r#"DriverError(CUDA_ERROR_ILLEGAL_ADDRESS, "…")"#).is_out_of_memory());
        assert!(DeviceError::OutOfMemory { what: "activations", bytes: 1 }.is_out_of_memory());
        let unavailable = DeviceError::Unavailable { requested: "cuda:0".into(), reason: "none".into() };
        assert!(!unavailable.is_out_of_memory());
    }
}

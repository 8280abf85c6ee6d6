//! Errors of devices.

use crate::kernels::{ExceededLimit, Faults, KernelError};
use crate::runtime::RuntimeError;

/// An error of a device or of one of its operations.
#[derive(Clone, Debug, thiserror::Error, PartialEq)]
#[non_exhaustive]
pub enum DeviceError {
    /// The requested device does not exist on this machine or in this build.
    #[error("device `{requested}` is not available: {reason}")]
    Unavailable {
        /// The device, as the user named it.
        requested: String,
        /// The reason why it cannot be used.
        reason: String,
    },
    /// An operand's shape does not fit the operation.
    #[error("{operation}: {operand} has shape {found:?}, expected {expected:?}")]
    Shape {
        /// The operation's name.
        operation: &'static str,
        /// The operand's name.
        operand: &'static str,
        /// The shape that would fit.
        expected: Vec<usize>,
        /// The operand's shape.
        found: Vec<usize>,
    },
    /// An index (token id, page id, row, layer) is outside its range.
    #[error("{operation}: {what} {index} is out of range, the limit is {limit}")]
    OutOfRange {
        /// The operation's name.
        operation: &'static str,
        /// The kind of index, such as `page id`.
        what: &'static str,
        /// The index that was found.
        index: usize,
        /// The first index that is out of range.
        limit: usize,
    },
    /// An operand is not what the operation requires, apart from its shape and range.
    #[error("{operation}: {operand} is {found}, expected {expected}")]
    Contract {
        /// The operation's name.
        operation: &'static str,
        /// The operand's name.
        operand: &'static str,
        /// A description of the operands that the operation takes.
        expected: &'static str,
        /// A description of the operand that was found.
        found: String,
    },
    /// The size of an operand exceeds every memory.
    #[error("{operation}: the size of {operand} overflows")]
    Overflow {
        /// The operation's name.
        operation: &'static str,
        /// The operand's name.
        operand: &'static str,
    },
    /// The device cannot run a model of these shapes.
    #[error("the model's {0}")]
    UnsupportedModel(ExceededLimit),
    /// A kernel could not be launched, or the driver reported an error.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// Kernels reported faults; their results must not be used.
    #[error("the kernels of a step found {0}")]
    Faults(Faults),
    /// An allocation failed.
    #[error("out of memory: {what} needs {bytes} bytes")]
    OutOfMemory {
        /// The purpose of the memory.
        what: &'static str,
        /// The number of bytes requested.
        bytes: usize,
    },
}

impl DeviceError {
    /// Returns the error of a draft whose verdict accepted a length that the pass has no mask group for.
    pub(super) fn without_group(operation: &'static str, accepted: usize) -> Self {
        Self::Contract {
            operation,
            operand: "accepted length",
            expected: "a length with a mask group",
            found: accepted.to_string(),
        }
    }

    /// Returns true for out-of-memory errors, and for requests that exceed every memory. The device stays usable;
    /// a smaller request may succeed.
    pub fn is_out_of_memory(&self) -> bool {
        match self {
            Self::OutOfMemory { .. } | Self::Overflow { .. } => true,
            Self::Kernel(KernelError::Runtime(error)) => error.is_out_of_memory(),
            _ => false,
        }
    }
}

impl From<RuntimeError> for DeviceError {
    fn from(error: RuntimeError) -> Self {
        KernelError::from(error).into()
    }
}

#[cfg(test)]
mod tests {
    use cudarc::driver::sys::CUresult;

    use super::*;
    use crate::runtime::DriverFailure;

    #[test]
    fn which_errors_are_of_memory() {
        let failure = |code| DriverFailure { code, message: "CUDA_ERROR_OUT_OF_MEMORY".into() };
        let launch = |code| RuntimeError::Launch { kernel: "embed", error: failure(code) };
        let (memory, other) = (CUresult::CUDA_ERROR_OUT_OF_MEMORY, CUresult::CUDA_ERROR_ILLEGAL_ADDRESS);
        for (code, expected) in [(memory, true), (other, false)] {
            assert_eq!(DeviceError::from(RuntimeError::Driver(failure(code))).is_out_of_memory(), expected);
            assert_eq!(DeviceError::from(launch(code)).is_out_of_memory(), expected);
        }
        assert!(DeviceError::OutOfMemory { what: "activations", bytes: 1 }.is_out_of_memory());
        assert!(DeviceError::Overflow { operation: "resize", operand: "logits" }.is_out_of_memory());
        let unavailable = DeviceError::Unavailable { requested: "cuda:0".into(), reason: "none".into() };
        assert!(!unavailable.is_out_of_memory());
    }

    #[test]
    fn a_broken_contract_names_operation_and_operand() {
        let message = DeviceError::without_group("select_drafts", 3).to_string();
        assert_eq!(message, "select_drafts: accepted length is 3, expected a length with a mask group");
    }
}

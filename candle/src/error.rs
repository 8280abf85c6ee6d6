//! The errors of this crate, as candle's errors.

use std::fmt;

use candle_core::{DType, DeviceLocation};
use flexdraft::kernels::KernelError;

/// A tensor that a kernel cannot take, or an error of the launch. After such an error, nothing was launched.
///
/// Functions return it inside a [`candle_core::Error`]; [`Error::of`] finds it there.
#[derive(Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The elements of a tensor have the wrong type.
    #[error("{kernel}: operand `{operand}` has elements of {found:?}, expected {expected}")]
    Dtype {
        /// The kernel's name.
        kernel: &'static str,
        /// The operand's name.
        operand: &'static str,
        /// The types that the kernel takes, in words.
        expected: String,
        /// The type of the tensor's elements.
        found: DType,
    },
    /// A tensor has the wrong shape.
    #[error("{kernel}: operand `{operand}` has the shape {found:?}, expected {expected}")]
    Shape {
        /// The kernel's name.
        kernel: &'static str,
        /// The operand's name.
        operand: &'static str,
        /// The expected shape, in words.
        expected: String,
        /// The shape of the tensor.
        found: Vec<usize>,
    },
    /// A tensor has strides that the kernel does not support. The tensor's `contiguous` method makes a copy that the
    /// kernel takes.
    #[error("{kernel}: operand `{operand}` has the strides {found:?}, expected {expected}")]
    Strides {
        /// The kernel's name.
        kernel: &'static str,
        /// The operand's name.
        operand: &'static str,
        /// The expected strides, in words.
        expected: &'static str,
        /// The strides of the tensor, in elements.
        found: Vec<usize>,
    },
    /// A tensor or the tables of a pass are on another device than the kernels.
    #[error("{kernel}: operand `{operand}` is on {found:?}, and the kernels are on {expected:?}")]
    Device {
        /// The kernel's name.
        kernel: &'static str,
        /// The operand's name.
        operand: &'static str,
        /// The device of the kernels.
        expected: DeviceLocation,
        /// The device of the tensor. It may be equal to `expected`, because candle can open a device twice.
        found: DeviceLocation,
    },
    /// Two tensors share memory that the kernel would write.
    #[error("{kernel}: operands `{operand}` and `{other}` share memory that the kernel writes")]
    Shared {
        /// The kernel's name.
        kernel: &'static str,
        /// The operand's name.
        operand: &'static str,
        /// The name of the other operand.
        other: &'static str,
    },
    /// A tensor's layout reaches beyond its storage.
    #[error("{kernel}: operand `{operand}` ends at element {end} of a storage with {len} elements")]
    Storage {
        /// The kernel's name.
        kernel: &'static str,
        /// The operand's name.
        operand: &'static str,
        /// One more than the index of the tensor's last element in its storage.
        end: usize,
        /// The number of elements of the storage.
        len: usize,
    },
    /// The kernels cannot run on this kind of device.
    #[error(
        "flexdraft's kernels do not run on {0}, expected the CPU, or a CUDA device and the feature `cuda`"
    )]
    Unavailable(&'static str),
    /// An error of the kernel's own checks, or of its launch.
    #[error(transparent)]
    Kernel(#[from] KernelError),
}

impl Error {
    /// Returns the error of this crate inside an error of candle, if there is one.
    ///
    /// ```
    /// use candle_core::{DType, Device, Tensor};
    /// use flexdraft_candle::{Error, Kernels};
    ///
    /// let kernels = Kernels::new(&Device::Cpu)?;
    /// let x = Tensor::zeros((2, 16), DType::F32, &Device::Cpu)?;
    /// let refused = kernels.silu_mul(&x).unwrap_err();
    /// assert!(matches!(Error::of(&refused), Some(Error::Dtype { operand: "x", found: DType::F32, .. })));
    /// # Ok::<(), candle_core::Error>(())
    /// ```
    pub fn of(error: &candle_core::Error) -> Option<&Self> {
        use candle_core::Error as Candle;
        match error {
            Candle::WrappedContext { wrapped, .. } => wrapped.downcast_ref(),
            Candle::Context { inner, .. }
            | Candle::WithPath { inner, .. }
            | Candle::WithBacktrace { inner, .. } => Self::of(inner),
            _ => None,
        }
    }
}

/// Candle prints a wrapped error by its `Debug`, so this is the error's text.
impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl From<Error> for candle_core::Error {
    fn from(error: Error) -> Self {
        Self::WrappedContext { wrapped: Box::new(error), context: "flexdraft".into() }.bt()
    }
}

/// Returns an error of the kernels as an error of candle.
pub(crate) fn refused(error: KernelError) -> candle_core::Error {
    Error::Kernel(error).into()
}

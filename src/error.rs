//! The crate's error type: one enum over the errors of all layers.

/// A [`Result`](std::result::Result) with this crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Any error that this crate returns. Each layer has its own error type.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The sampling parameters do not describe a distribution.
    #[error(transparent)]
    Sampling(#[from] crate::sampling::SamplingError),
    /// A kernel was not launched: its operands do not fit, or there is no GPU.
    #[error(transparent)]
    Kernel(#[from] crate::kernels::KernelError),
    /// A device is missing, or the operands of an operation do not fit each other.
    #[cfg(feature = "runner")]
    #[error(transparent)]
    Device(#[from] crate::device::DeviceError),
    /// A model, drafter or tokenizer could not be loaded.
    #[cfg(feature = "runner")]
    #[error(transparent)]
    Load(#[from] crate::model::LoadError),
    /// A request or an engine configuration is invalid, or decoding failed.
    #[cfg(feature = "runner")]
    #[error(transparent)]
    Decode(#[from] crate::decode::DecodeError),
}

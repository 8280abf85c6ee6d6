//! The crate's error: one enum over the errors of its layers.

/// A [`Result`](std::result::Result) with this crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Anything that can go wrong in this crate. Each layer has an enum of its own.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Sampling parameters that no distribution corresponds to.
    #[error(transparent)]
    Sampling(#[from] crate::sampling::SamplingError),
    /// A kernel that could not be launched: operands that do not fit, or no GPU.
    #[error(transparent)]
    Kernel(#[from] crate::kernels::KernelError),
    /// A device that is missing, or an operation whose operands do not fit each other.
    #[cfg(feature = "runner")]
    #[error(transparent)]
    Device(#[from] crate::device::DeviceError),
    /// A model, drafter or tokenizer that could not be loaded.
    #[cfg(feature = "runner")]
    #[error(transparent)]
    Load(#[from] crate::model::LoadError),
    /// A request or an engine that cannot be.
    #[cfg(feature = "runner")]
    #[error(transparent)]
    Decode(#[from] crate::decode::DecodeError),
}

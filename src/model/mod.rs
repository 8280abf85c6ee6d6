//! Models: configurations, weights on the host, tokenizers, and the forward pass over a device.

pub mod config;
pub mod forward;
mod load_error;
pub mod weights;

pub use load_error::LoadError;

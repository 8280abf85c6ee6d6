//! Models: configurations, weights on the host, tokenizers, and the forward pass over a device.

pub mod checkpoint;
mod collector;
pub mod config;
mod drafter;
pub mod forward;
mod json;
mod load_error;
pub mod rope;
mod target;
pub mod weights;

pub use forward::Model;
pub use load_error::LoadError;
pub use weights::{DrafterWeights, TargetWeights};

//! Models: configurations, weights on the host, tokenizers, and the forward pass over a device.

mod chat;
pub mod checkpoint;
mod collector;
pub mod config;
mod drafter;
pub mod forward;
mod json;
mod load_error;
mod random;
pub mod rope;
mod source;
mod strftime;
mod target;
mod template_json;
mod text_stream;
mod tokenizer;
pub mod weights;

pub use chat::{ChatMessage, ChatTemplate};
pub use checkpoint::Checkpoint;
pub use config::{Architecture, DrafterConfig, ModelConfig};
pub use load_error::LoadError;
pub use text_stream::TextStream;
pub use tokenizer::Tokenizer;
pub use weights::{DrafterWeights, TargetWeights};

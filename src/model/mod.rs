//! Models: configurations, weights on the host, tokenizers, and the forward pass over a device.
//!
//! A model is a GGUF file ([`gguf`]), or a directory as Hugging Face lays it out. What is read from a
//! directory:
//!
//! | file | for | type |
//! |---|---|---|
//! | `config.json`, `generation_config.json` | shape, rotary embedding, end-of-sequence ids | [`ModelConfig`] |
//! | `model.safetensors`, or shards with `model.safetensors.index.json` | tensors | [`Checkpoint`], [`TargetWeights`], [`DrafterWeights`] |
//! | `tokenizer.json` | text to ids and back | [`Tokenizer`], [`TextStream`] |
//! | `chat_template.jinja`, `tokenizer_config.json` | messages to a prompt | [`ChatTemplate`] |
//!
//! Supported are `LlamaForCausalLM` and dense `Qwen3ForCausalLM`, stored as f32, f16 or bf16
//! or in the quantised formats that [`gguf`] lists, with the
//! rope types default, linear, llama3 and yarn. Everything else is a [`LoadError`] that names the key
//! and its value: a file that loads is a model that computes what transformers computes.
//!
//! Weights come in two ways: `read` copies files into memory, the `unsafe` `map` maps them, which is
//! sound only while nobody changes the files. [`inspect`] reports on a directory instead of loading it.

mod chat;
pub mod checkpoint;
mod collector;
pub mod config;
mod drafter;
pub mod forward;
pub mod gguf;
pub mod inspect;
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
pub use forward::Model;
pub use gguf::Gguf;
pub use load_error::LoadError;
pub use text_stream::TextStream;
pub use tokenizer::Tokenizer;
pub use weights::{DrafterWeights, TargetWeights};

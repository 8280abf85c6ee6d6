//! Models: configurations, weights on the host, tokenizers, and the forward pass over a device.
//!
//! A model is a GGUF file ([`gguf`]) or a directory in the layout of Hugging Face. From a directory, these
//! files are read:
//!
//! | file | purpose | type |
//! |---|---|---|
//! | `config.json`, `generation_config.json` | shape, rotary embedding, end-of-sequence ids | [`ModelConfig`] |
//! | `model.safetensors`, or shards with `model.safetensors.index.json` | tensors | [`Checkpoint`], [`TargetWeights`], [`DrafterWeights`], [`ModelWeights`] |
//! | `tokenizer.json`; tokens of `tokenizer_config.json`, `special_tokens_map.json`, `added_tokens.json` | text to ids and back | [`Tokenizer`], [`TextStream`] |
//! | `chat_template.jinja`, `tokenizer_config.json` | messages to a prompt | [`ChatTemplate`] |
//!
//! Supported models are dense `LlamaForCausalLM`, `MistralForCausalLM`, `Qwen2ForCausalLM`, `Qwen3ForCausalLM` and
//! `SmolLM3ForCausalLM`, and `OrthrusLM`, which is a Qwen3 with a drafter in one directory. They are stored as f32, f16
//! or bf16 or in the quantised formats that [`gguf`] lists, with the rope types default, linear, llama3 and yarn. Any other
//! model gives a [`LoadError`] that names the key and its value: a file that loads gives the same results as
//! transformers. Files that contradict themselves, and keys that are not read, give a [`LoadWarning`].
//!
//! `read` copies files into memory. The `unsafe` `map` maps them, which is sound only while no process
//! changes the files. [`inspect`] reports on a model instead of loading it.
//!
//! The modules build on one another in this order: [`mod@format`] (bytes of a file, JSON, safetensors, GGUF),
//! [`config`], [`weights`] and text, then the module that opens a target's files, then [`inspect`] and
//! [`forward`].

mod card;
pub mod config;
pub mod format;
pub mod forward;
pub mod inspect;
mod layers;
mod load;
mod load_error;
mod load_warning;
mod text;
pub mod weights;

pub use card::DrafterCard;
pub use config::{Architecture, DrafterConfig, DrafterKind, ModelConfig, rope};
pub use format::gguf::{self, Gguf, QuantizedWeights};
pub use format::safetensors::Checkpoint;
pub use forward::Model;
pub use load_error::LoadError;
pub use load_warning::LoadWarning;
pub use text::chat::{ChatMessage, ChatTemplate, TemplateVariables, ToolCall};
pub use text::stop_strings::StopStrings;
pub use text::text_stream::TextStream;
pub use text::tokenizer::Tokenizer;
pub use weights::{DrafterWeights, ModelWeights, TargetWeights};

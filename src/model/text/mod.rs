//! The text side of a model: tokenizers, chat templates, and decoding a stream of tokens.

pub(in crate::model) mod chat;
pub(in crate::model) mod gguf;
mod guarded;
mod jinja;
mod local_time;
mod sentencepiece;
mod special_tokens;
pub(in crate::model) mod stop_strings;
mod strftime;
pub(in crate::model) mod text_stream;
pub(in crate::model) mod tokenizer;

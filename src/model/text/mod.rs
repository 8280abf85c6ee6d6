//! Text: tokenizers, chat templates, and the text of tokens that arrive a few at a time.

pub(in crate::model) mod chat;
pub(in crate::model) mod gguf;
mod strftime;
mod template_json;
pub(in crate::model) mod text_stream;
pub(in crate::model) mod tokenizer;

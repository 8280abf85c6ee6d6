//! File formats: bytes of a file, JSON, safetensors, GGUF. Nothing here knows what a model is.

pub(in crate::model) mod files;
pub mod gguf;
pub(in crate::model) mod json;
pub mod safetensors;

//! The file formats of models: files in memory, JSON, safetensors, GGUF. This layer does not depend on the structure of
//! models.

pub(in crate::model) mod files;
pub mod gguf;
pub(in crate::model) mod json;
pub mod safetensors;

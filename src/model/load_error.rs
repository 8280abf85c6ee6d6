//! The error type for loading models, drafters and tokenizers.

use std::path::PathBuf;

/// An error in loading a model, drafter or tokenizer. Every variant names the file, the key or the tensor.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LoadError {
    /// A file could not be read.
    #[error("cannot read {path}: {source}")]
    Io {
        /// Path of the file.
        path: PathBuf,
        /// The system's error.
        source: std::io::Error,
    },
    /// A path is a directory, a pipe or a device instead of a file.
    #[error("{path} is not a regular file")]
    NotAFile {
        /// The path.
        path: PathBuf,
    },
    /// A JSON file or template exceeds the size limit.
    #[error("{path} has {bytes} bytes, more than the {limit} that are read of such a file")]
    FileTooLarge {
        /// Path of the file.
        path: PathBuf,
        /// Size of the file in bytes.
        bytes: u64,
        /// The largest allowed size in bytes.
        limit: u64,
    },
    /// A file is not the expected JSON.
    #[error("{path} is not valid JSON: {source}")]
    Json {
        /// Path of the file.
        path: PathBuf,
        /// The parser's error, with line and column.
        source: serde_json::Error,
    },
    /// A required key is missing in a JSON file or in the metadata of a GGUF file.
    #[error("{path}: key `{key}` is missing")]
    MissingKey {
        /// Path of the file.
        path: PathBuf,
        /// The key; keys of inner objects are joined by dots.
        key: String,
    },
    /// A key has an invalid value.
    #[error("{path}: `{key}` is {value}, expected {expected}")]
    InvalidKey {
        /// Path of the file.
        path: PathBuf,
        /// The key; keys of inner objects are joined by dots.
        key: String,
        /// The value, as JSON, shortened.
        value: String,
        /// The accepted values, in words.
        expected: String,
    },
    /// A value is valid but requests a feature that this crate does not support.
    #[error("{path}: `{key}` is {value}, which is not supported; supported: {supported}")]
    UnsupportedKey {
        /// Path of the file.
        path: PathBuf,
        /// The key; keys of inner objects are joined by dots.
        key: String,
        /// The value, as JSON, shortened.
        value: String,
        /// The supported values, in words.
        supported: String,
    },
    /// A configuration made in code is invalid for every model.
    #[error("model configuration: `{field}` is {value}, expected {expected}")]
    InvalidConfig {
        /// Name of the field.
        field: &'static str,
        /// Value of the field.
        value: String,
        /// The accepted values, in words.
        expected: String,
    },
    /// A directory has no readable weights.
    #[error("{dir} has neither model.safetensors nor model.safetensors.index.json")]
    NoCheckpoint {
        /// Path of the directory.
        dir: PathBuf,
    },
    /// The header of a safetensors file does not describe its contents.
    #[error("{path} is not a valid safetensors file: {reason}")]
    Header {
        /// Path of the file.
        path: PathBuf,
        /// Description of the problem.
        reason: String,
    },
    /// A file is damaged, or is not a GGUF file.
    #[error("{path} is not a valid GGUF file: {reason}")]
    Gguf {
        /// Path of the file.
        path: PathBuf,
        /// Description of the problem.
        reason: String,
    },
    /// A tensor of a GGUF file has an unsupported storage type.
    #[error(
        "{path}: tensor `{tensor}` has type {found}; supported: F32, F16, BF16, Q8_0, Q4_0, Q4_1, Q4_K, Q6_K"
    )]
    UnsupportedQuantization {
        /// Path of the file.
        path: PathBuf,
        /// Name of the tensor.
        tensor: String,
        /// The tensor's type, as named by ggml.
        found: String,
    },
    /// A GGUF file has a tensor that its architecture does not have: the model does not match its metadata.
    #[error("{path}: tensor `{tensor}` is not part of a {architecture} model")]
    UnexpectedTensor {
        /// Path of the file.
        path: PathBuf,
        /// Name of the tensor.
        tensor: String,
        /// The architecture that the metadata name.
        architecture: &'static str,
    },
    /// An index names a file outside the model's directory.
    #[error("{path}: `{entry}` is not a path within the model's directory")]
    OutsideDirectory {
        /// Path of the index.
        path: PathBuf,
        /// The file name in the index.
        entry: String,
    },
    /// A checkpoint contains a tensor twice.
    #[error("{path}: tensor `{tensor}` occurs more than once")]
    DuplicateTensor {
        /// Path of the file with the second copy.
        path: PathBuf,
        /// Name of the tensor.
        tensor: String,
    },
    /// A tensor that the configuration requires is missing.
    #[error("{path}: tensor `{tensor}` is missing")]
    MissingTensor {
        /// Path of the checkpoint: its directory, or the shard in which the index places the tensor.
        path: PathBuf,
        /// Name of the tensor.
        tensor: String,
    },
    /// A tensor has an element type that is not supported for weights.
    #[error("{path}: tensor `{tensor}` has element type {dtype}; supported: F32, F16, BF16")]
    UnsupportedDType {
        /// Path of the file.
        path: PathBuf,
        /// Name of the tensor.
        tensor: String,
        /// The element type, as named by the file.
        dtype: String,
    },
    /// A tensor's shape does not match the configuration.
    #[error("{path}: tensor `{tensor}` has shape {found:?}, expected {expected:?}")]
    Shape {
        /// Path of the file.
        path: PathBuf,
        /// Name of the tensor.
        tensor: String,
        /// The expected shape.
        expected: Vec<usize>,
        /// The tensor's shape.
        found: Vec<usize>,
    },
    /// A drafter was trained for a target with other dimensions.
    #[error("{path}: this drafter is for another target: its {what} is {drafter}, the target's {target}")]
    WrongTarget {
        /// Path of the drafter's config.
        path: PathBuf,
        /// Name of the value that differs.
        what: &'static str,
        /// The drafter's value.
        drafter: String,
        /// The target's value.
        target: String,
    },
    /// The weights exceed this machine's memory.
    #[error("out of memory: `{tensor}` of shape {shape:?}")]
    OutOfMemory {
        /// Name of the tensor.
        tensor: String,
        /// Shape of the tensor.
        shape: Vec<usize>,
    },
    /// A tokenizer cannot be read, or cannot handle a text.
    #[error("tokenizer {path}: {reason}")]
    Tokenizer {
        /// Path of the file.
        path: PathBuf,
        /// The tokenizer's error.
        reason: String,
    },
    /// A tokenizer gave an id for which the model has no embedding.
    #[error("tokenizer {path}: token `{token}` has id {id}, and the model's vocabulary has {vocab_size} ids")]
    TokenOutOfVocabulary {
        /// Path of the tokenizer's file.
        path: PathBuf,
        /// The token's text.
        token: String,
        /// The token's id.
        id: u32,
        /// V: the model's vocabulary size.
        vocab_size: usize,
    },
    /// The model has no chat template.
    #[error("{path} has no chat template ({looked_for})")]
    NoChatTemplate {
        /// Path of the directory or file.
        path: PathBuf,
        /// The places that were searched.
        looked_for: &'static str,
    },
    /// A chat template cannot be parsed, or fails on the given messages.
    #[error("chat template {path}: {reason}")]
    ChatTemplate {
        /// Path of the file.
        path: PathBuf,
        /// The error of the template engine, or of the template itself.
        reason: String,
    },
}

/// The most characters of a value that an error message shows.
const SHOWN_CHARS: usize = 80;

/// Returns the beginning of a text, for an error message.
pub(super) fn shorten(text: &str) -> String {
    match text.char_indices().nth(SHOWN_CHARS) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

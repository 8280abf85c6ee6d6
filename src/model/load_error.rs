//! Why a model, drafter or tokenizer could not be loaded.

use std::path::PathBuf;

/// Why a model, drafter or tokenizer could not be loaded. Every variant names the file, the key or
/// the tensor.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LoadError {
    /// A file that could not be read.
    #[error("cannot read {path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A path that is a directory, a pipe or a device where a file belongs.
    #[error("{path} is not a regular file")]
    NotAFile {
        /// The path.
        path: PathBuf,
    },
    /// A JSON file or template larger than any honest one.
    #[error("{path} has {bytes} bytes, more than the {limit} that are read of such a file")]
    FileTooLarge {
        /// The file.
        path: PathBuf,
        /// Its size.
        bytes: u64,
        /// The largest size that is read.
        limit: u64,
    },
    /// A file that is not the JSON it should be.
    #[error("{path} is not valid JSON: {source}")]
    Json {
        /// The file.
        path: PathBuf,
        /// What the parser said, with line and column.
        source: serde_json::Error,
    },
    /// A key that a JSON file, or the metadata of a GGUF file, must have.
    #[error("{path}: key `{key}` is missing")]
    MissingKey {
        /// The file.
        path: PathBuf,
        /// The key; keys of inner objects are joined by dots.
        key: String,
    },
    /// A value that a key cannot have.
    #[error("{path}: `{key}` is {value}, expected {expected}")]
    InvalidKey {
        /// The file.
        path: PathBuf,
        /// The key; keys of inner objects are joined by dots.
        key: String,
        /// The value, as JSON, shortened.
        value: String,
        /// What would be accepted.
        expected: String,
    },
    /// A value that is legal and asks for something that this crate does not do.
    #[error("{path}: `{key}` is {value}, which is not supported; supported: {supported}")]
    UnsupportedKey {
        /// The file.
        path: PathBuf,
        /// The key; keys of inner objects are joined by dots.
        key: String,
        /// The value, as JSON, shortened.
        value: String,
        /// What is supported.
        supported: String,
    },
    /// A configuration made in code that no model can have.
    #[error("model configuration: `{field}` is {value}, expected {expected}")]
    InvalidConfig {
        /// The field.
        field: &'static str,
        /// Its value.
        value: String,
        /// What would be accepted.
        expected: String,
    },
    /// A directory without weights that can be read.
    #[error("{dir} has neither model.safetensors nor model.safetensors.index.json")]
    NoCheckpoint {
        /// The directory.
        dir: PathBuf,
    },
    /// A safetensors file whose header does not describe its contents.
    #[error("{path} is not a valid safetensors file: {reason}")]
    Header {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A GGUF file that is damaged, or not one.
    #[error("{path} is not a valid GGUF file: {reason}")]
    Gguf {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A tensor of a GGUF file that is stored in a way that cannot be read.
    #[error(
        "{path}: tensor `{tensor}` has type {found}; supported: F32, F16, BF16, Q8_0, Q4_0, Q4_1, Q4_K, Q6_K"
    )]
    UnsupportedQuantization {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// Its type, as ggml names it.
        found: String,
    },
    /// A tensor of a GGUF file that the architecture does not have: the model is not what its
    /// metadata say.
    #[error("{path}: tensor `{tensor}` is not part of a {architecture} model")]
    UnexpectedTensor {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// The architecture as the metadata name it.
        architecture: &'static str,
    },
    /// An index whose files lie outside the model's directory.
    #[error("{path}: `{entry}` is not a path within the model's directory")]
    OutsideDirectory {
        /// The index.
        path: PathBuf,
        /// The file it names.
        entry: String,
    },
    /// A tensor that a checkpoint holds twice.
    #[error("{path}: tensor `{tensor}` occurs more than once")]
    DuplicateTensor {
        /// The file with the second one.
        path: PathBuf,
        /// The tensor.
        tensor: String,
    },
    /// A tensor that the configuration asks for.
    #[error("{path}: tensor `{tensor}` is missing")]
    MissingTensor {
        /// The checkpoint: its directory, or a shard where the index places the tensor.
        path: PathBuf,
        /// The tensor.
        tensor: String,
    },
    /// A tensor whose elements are of a type that weights are not stored in.
    #[error("{path}: tensor `{tensor}` has element type {dtype}; supported: F32, F16, BF16")]
    UnsupportedDType {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// The type as the file names it.
        dtype: String,
    },
    /// A tensor that does not fit the configuration.
    #[error("{path}: tensor `{tensor}` has shape {found:?}, expected {expected:?}")]
    Shape {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// The shape that would fit.
        expected: Vec<usize>,
        /// The shape it has.
        found: Vec<usize>,
    },
    /// A drafter that was trained for a target with other dimensions.
    #[error("{path}: this drafter is for another target: its {what} is {drafter}, the target's {target}")]
    WrongTarget {
        /// The drafter's config.
        path: PathBuf,
        /// What differs.
        what: &'static str,
        /// The drafter's value.
        drafter: String,
        /// The target's value.
        target: String,
    },
    /// Weights too large for this machine.
    #[error("out of memory: `{tensor}` of shape {shape:?}")]
    OutOfMemory {
        /// The tensor.
        tensor: String,
        /// Its shape.
        shape: Vec<usize>,
    },
    /// A tokenizer that cannot be read, or a text that it cannot handle.
    #[error("tokenizer {path}: {reason}")]
    Tokenizer {
        /// The file.
        path: PathBuf,
        /// What the tokenizer said.
        reason: String,
    },
    /// A tokenizer that yields ids for which the model has no embedding.
    #[error("tokenizer {path}: token `{token}` has id {id}, and the model's vocabulary has {vocab_size} ids")]
    TokenOutOfVocabulary {
        /// The tokenizer's file.
        path: PathBuf,
        /// The token's text.
        token: String,
        /// Its id.
        id: u32,
        /// V of the model.
        vocab_size: usize,
    },
    /// A model without a chat template.
    #[error("{path} has no chat template ({looked_for})")]
    NoChatTemplate {
        /// The directory or file.
        path: PathBuf,
        /// Where there could have been one.
        looked_for: &'static str,
    },
    /// A chat template that cannot be parsed, or that fails on these messages.
    #[error("chat template {path}: {reason}")]
    ChatTemplate {
        /// The file.
        path: PathBuf,
        /// What the template engine, or the template itself, said.
        reason: String,
    },
}

/// Characters of a value that an error message repeats.
const SHOWN_CHARS: usize = 80;

/// The beginning of a text, for an error message.
pub(super) fn shorten(text: &str) -> String {
    match text.char_indices().nth(SHOWN_CHARS) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

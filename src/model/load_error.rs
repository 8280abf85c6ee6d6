//! The error type for loading models, drafters and tokenizers.

use std::path::PathBuf;

/// An error in loading a model, drafter or tokenizer. Every variant names the file, the key or the tensor.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LoadError {
    /// A file could not be read.
    #[error("cannot read {path}: {source}")]
    Io {
        /// Path of the file that could not be read.
        path: PathBuf,
        /// The operating system's error.
        source: std::io::Error,
    },
    /// A path is a directory, a pipe or a device instead of a file.
    #[error("expected a regular file at {path}, found a directory, pipe or device")]
    NotAFile {
        /// Path that was opened.
        path: PathBuf,
    },
    /// Git LFS left a pointer in place of a file.
    #[error("{path} is a Git LFS pointer instead of the file itself; `git lfs pull` fetches the file")]
    LfsPointer {
        /// Path of the file that is only a pointer.
        path: PathBuf,
    },
    /// A JSON file or template exceeds the size limit.
    #[error("{path} has {bytes} bytes, expected at most {limit}")]
    FileTooLarge {
        /// Path of the file that is too large.
        path: PathBuf,
        /// Size of the file in bytes.
        bytes: u64,
        /// The largest size that is accepted, in bytes.
        limit: u64,
    },
    /// A file is not the expected JSON.
    #[error("{path} is not valid JSON: {source}")]
    Json {
        /// Path of the JSON file.
        path: PathBuf,
        /// The parser's error, with line and column.
        source: serde_json::Error,
    },
    /// A required key is missing in a JSON file or in the metadata of a GGUF file.
    #[error("{path}: key `{key}` is missing")]
    MissingKey {
        /// Path of the file that lacks the key.
        path: PathBuf,
        /// Name of the key; keys of inner objects are joined by dots.
        key: String,
    },
    /// A key has an invalid value.
    #[error("{path}: `{key}` is {value}, expected {expected}")]
    InvalidKey {
        /// Path of the file with the key.
        path: PathBuf,
        /// Name of the key; keys of inner objects are joined by dots.
        key: String,
        /// Value of the key, as JSON, shortened.
        value: String,
        /// The accepted values, in words.
        expected: String,
    },
    /// A value is valid but requests a feature that this crate does not support.
    #[error("{path}: `{key}` is {value}, which is not supported; supported: {supported}")]
    UnsupportedKey {
        /// Path of the file with the key.
        path: PathBuf,
        /// Name of the key; keys of inner objects are joined by dots.
        key: String,
        /// Value of the key, as JSON, shortened.
        value: String,
        /// The supported values, in words.
        supported: String,
    },
    /// A configuration made in code is invalid for every model.
    #[error("model configuration: `{field}` is {value}, expected {expected}")]
    InvalidConfig {
        /// Name of the configuration's field.
        field: &'static str,
        /// Value of the configuration's field.
        value: String,
        /// The accepted values, in words.
        expected: String,
    },
    /// A directory has no readable weights.
    #[error("{dir} has no weights: expected model.safetensors or model.safetensors.index.json")]
    NoCheckpoint {
        /// Path of the model's directory.
        dir: PathBuf,
    },
    /// The header of a safetensors file does not describe its contents.
    #[error("{path} is not a valid safetensors file: {reason}")]
    Header {
        /// Path of the safetensors file.
        path: PathBuf,
        /// Description of the problem in the header.
        reason: String,
    },
    /// A file is damaged, or is not a GGUF file.
    #[error("{path} is not a valid GGUF file: {reason}")]
    Gguf {
        /// Path of the GGUF file.
        path: PathBuf,
        /// Description of the damage.
        reason: String,
    },
    /// A GGUF file is one part of a split model, and other parts are missing.
    #[error("{path} is one of the {count} files of a split model; missing: {}", paths(.missing))]
    MissingParts {
        /// Path of the file that was opened.
        path: PathBuf,
        /// Number of files of the model.
        count: usize,
        /// Paths of the missing files.
        missing: Vec<PathBuf>,
    },
    /// A tensor of a GGUF file has an unsupported storage type.
    #[error(
        "{path}: tensor `{tensor}` has type {found}; supported: F32, F16, BF16, Q8_0, Q4_0, Q4_1, \
         Q5_0, Q5_1, Q2_K, Q3_K, Q4_K, Q5_K, Q6_K, IQ4_NL, IQ4_XS"
    )]
    UnsupportedQuantization {
        /// Path of the GGUF file.
        path: PathBuf,
        /// Name of the tensor with the unsupported type.
        tensor: String,
        /// Storage type of the tensor, as named by ggml.
        found: String,
    },
    /// A GGUF file has a tensor that its architecture does not have: the model does not match its metadata.
    #[error("{path}: tensor `{tensor}` is not part of a {architecture} model, which the metadata declares")]
    UnexpectedTensor {
        /// Path of the GGUF file.
        path: PathBuf,
        /// Name of the unexpected tensor.
        tensor: String,
        /// The architecture that the file's metadata name.
        architecture: &'static str,
    },
    /// An index names a file outside the model's directory.
    #[error("{path}: expected a path within the model's directory, found `{entry}`")]
    OutsideDirectory {
        /// Path of the index of shards.
        path: PathBuf,
        /// Path of the file outside the directory, as the index gives it.
        entry: String,
    },
    /// A checkpoint contains a tensor twice.
    #[error("{path}: tensor `{tensor}` occurs more than once")]
    DuplicateTensor {
        /// Path of the file with the second copy.
        path: PathBuf,
        /// Name of the tensor that occurs twice.
        tensor: String,
    },
    /// A tensor that the configuration requires is missing.
    #[error("{path}: tensor `{tensor}` is missing")]
    MissingTensor {
        /// Path of the checkpoint: its directory, or the shard in which the index places the tensor.
        path: PathBuf,
        /// Name of the missing tensor.
        tensor: String,
    },
    /// A tensor has an element type that is not supported for weights.
    #[error("{path}: tensor `{tensor}` has element type {dtype}; supported: F32, F16, BF16")]
    UnsupportedDType {
        /// Path of the file with the tensor.
        path: PathBuf,
        /// Name of the tensor with the unsupported element type.
        tensor: String,
        /// Element type of the tensor, as named by the file.
        dtype: String,
    },
    /// A tensor's shape does not match the configuration.
    #[error("{path}: tensor `{tensor}` has shape {found:?}, expected {expected:?}")]
    Shape {
        /// Path of the file with the tensor.
        path: PathBuf,
        /// Name of the tensor with the wrong shape.
        tensor: String,
        /// Shape that the configuration requires.
        expected: Vec<usize>,
        /// Shape of the stored tensor.
        found: Vec<usize>,
    },
    /// A drafter's checkpoint has a tensor of a chain that its config does not name.
    #[error(
        "{path}: tensor `{tensor}` belongs to a chain of another kind than the config's; `chain_kind` is {}",
        .kind.unwrap_or("missing")
    )]
    UnexpectedChain {
        /// Path of the file with the tensor.
        path: PathBuf,
        /// Name of the tensor.
        tensor: String,
        /// The kind of chain that the drafter's config names, if it names a chain.
        kind: Option<&'static str>,
    },
    /// A drafter was trained for a target with other dimensions.
    #[error("{path}: this drafter is for another target: its {what} is {drafter}, the target's {target}")]
    WrongTarget {
        /// Path of the drafter's config.
        path: PathBuf,
        /// Name of the value that differs.
        what: &'static str,
        /// The value in the drafter's config.
        drafter: String,
        /// The value of the target.
        target: String,
    },
    /// The weights exceed this machine's memory.
    #[error("out of memory: no room for tensor `{tensor}` of shape {shape:?}")]
    OutOfMemory {
        /// Name of the tensor that does not fit in memory.
        tensor: String,
        /// Shape of the tensor that does not fit in memory.
        shape: Vec<usize>,
    },
    /// A tokenizer cannot be read, or cannot encode or decode a text.
    #[error("tokenizer {path}: {reason}")]
    Tokenizer {
        /// Path of the tokenizer's file.
        path: PathBuf,
        /// Error message of the tokenizer.
        reason: String,
    },
    /// A tokenizer gave an id for which the model has no embedding.
    #[error(
        "tokenizer {path}: token `{token}` has id {id}, expected ids below {vocab_size}, the model's vocabulary size"
    )]
    TokenOutOfVocabulary {
        /// Path of the tokenizer's file.
        path: PathBuf,
        /// Text of the token, as the tokenizer spells it.
        token: String,
        /// Id that the tokenizer gave the token.
        id: u32,
        /// Vocabulary size of the model.
        vocab_size: usize,
    },
    /// The model has no chat template.
    #[error("{path} has no chat template ({looked_for})")]
    NoChatTemplate {
        /// Path of the model's directory or GGUF file.
        path: PathBuf,
        /// The places that were searched for a template.
        looked_for: &'static str,
    },
    /// The variables for a chat template are not a JSON object.
    #[error("variables of a chat template: {reason}")]
    ChatVariables {
        /// Description of the problem.
        reason: String,
    },
    /// A stop string has no characters.
    #[error("a stop string is empty, expected at least one character")]
    EmptyStopString,
    /// A chat template cannot be parsed, or fails on the given messages.
    #[error("chat template {path}: {reason}")]
    ChatTemplate {
        /// Path of the template's file.
        path: PathBuf,
        /// The error message of the template engine, or of the template itself.
        reason: String,
    },
}

/// Formats a list of paths, shortened to the first ones.
fn paths(paths: &[PathBuf]) -> String {
    let mut text: Vec<String> =
        paths.iter().take(SHOWN_PATHS).map(|path| path.display().to_string()).collect();
    if paths.len() > SHOWN_PATHS {
        text.push(format!("{} more", paths.len() - SHOWN_PATHS));
    }
    text.join(", ")
}

/// The maximum number of paths that an error message lists.
const SHOWN_PATHS: usize = 8;

/// The maximum number of characters of a value that an error message shows.
const SHOWN_CHARS: usize = 80;

/// Returns the beginning of a text, for an error message.
pub(super) fn shorten(text: &str) -> String {
    match text.char_indices().nth(SHOWN_CHARS) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

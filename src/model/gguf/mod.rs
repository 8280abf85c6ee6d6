//! GGUF files: a whole model in one file, its weights often quantised.
//!
//! The format is ggml's (<https://github.com/ggml-org/ggml/blob/master/docs/gguf.md>), versions 2 and
//! 3, little-endian:
//!
//! | part | contents |
//! |---|---|
//! | header | `GGUF`, version, number of tensors, number of key-value pairs |
//! | metadata | key, type, value: the configuration, the tokenizer, the chat template |
//! | tensor infos | name, dimensions (innermost first), type, offset within the data |
//! | data | from the next multiple of `general.alignment` (32 if absent) |
//!
//! F32, F16 and BF16 tensors are used where they lie; Q8_0, Q4_0, Q4_1, Q4_K and Q6_K become bf16 when
//! they are loaded. Supported are the architectures `llama` and `qwen3` (dense), and byte-level BPE with
//! the splits (`tokenizer.ggml.pre`) smollm, gpt-2, llama-bpe and qwen2.
//!
//! Nothing in a file is believed: counts, lengths and offsets are checked against its size before
//! anything is read or allocated, and no two tensors may share bytes.

mod config;
mod header;
mod metadata;
mod quantization;
mod reader;
mod target;
mod tokenizer;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::checkpoint::{Access, Bytes, load};
use super::collector::Collected;
use super::inspect::{Inventory, Item};
use super::{ChatTemplate, LoadError, ModelConfig, TargetWeights, Tokenizer};
use header::Header;

/// A GGUF file: the model that it holds, with everything that belongs to it.
pub struct Gguf {
    header: Header,
    bytes: Bytes,
}

impl Gguf {
    /// Reads a file into memory.
    ///
    /// # Errors
    /// [`LoadError::Io`] or [`LoadError::NotAFile`]; [`LoadError::Gguf`] if it is not a GGUF file, is
    /// truncated or damaged; [`LoadError::DuplicateTensor`].
    pub fn read(path: &Path) -> Result<Self, LoadError> {
        // SAFETY: nothing is mapped.
        unsafe { Self::open(path, Access::Read) }
    }

    /// As [`read`](Self::read), but maps the file instead of copying it.
    ///
    /// # Safety
    /// As long as this or a tensor taken from it lives, the file may not be changed or truncated, by
    /// this process or another.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub unsafe fn map(path: &Path) -> Result<Self, LoadError> {
        // SAFETY: the caller promises that the file does not change.
        unsafe { Self::open(path, Access::Map) }
    }

    /// The contents of a file that is in memory already; `path` is its name in errors.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub fn from_bytes(path: &Path, bytes: Vec<u8>) -> Result<Self, LoadError> {
        Self::new(path, Arc::new(bytes))
    }

    /// # Safety
    /// With [`Access::Map`], as [`map`](Self::map).
    pub(super) unsafe fn open(path: &Path, access: Access) -> Result<Self, LoadError> {
        // SAFETY: passed on to the caller.
        let bytes = unsafe { load(path, access)? };
        Self::new(path, bytes)
    }

    fn new(path: &Path, bytes: Bytes) -> Result<Self, LoadError> {
        let header = Header::parse(path, bytes.clone())?;
        Ok(Self { header, bytes })
    }

    /// The file.
    pub fn path(&self) -> &Path {
        self.header.path()
    }

    /// Every tensor's name, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.header.tensors().map(|(name, _)| name)
    }

    /// The configuration that the metadata and the tensors' shapes describe.
    ///
    /// # Errors
    /// [`LoadError`] naming a key or tensor that is missing, makes no sense, or asks for something that
    /// is not supported.
    pub fn config(&self) -> Result<ModelConfig, LoadError> {
        config::read(&self.header, |name| self.tensor(name).map(|tensor| tensor.to_f32()))
    }

    /// The tokenizer in the metadata.
    ///
    /// # Errors
    /// [`LoadError`] naming the key that is missing or not supported; [`LoadError::Tokenizer`] for
    /// tokens and merges that do not make a tokenizer.
    pub fn tokenizer(&self) -> Result<Tokenizer, LoadError> {
        tokenizer::read(&self.header, config::vocab_size(&self.header)?)
    }

    /// The chat template in the metadata.
    ///
    /// # Errors
    /// [`LoadError::NoChatTemplate`], or [`LoadError::ChatTemplate`] if it cannot be parsed.
    pub fn chat_template(&self) -> Result<ChatTemplate, LoadError> {
        tokenizer::chat_template(&self.header)
    }

    /// The weights, quantised ones as bf16.
    ///
    /// # Errors
    /// As [`config`](Self::config); also a tensor that is missing, has the wrong shape, or is stored in
    /// a way that is not supported ([`LoadError::UnsupportedQuantization`]), and one that the
    /// architecture does not have ([`LoadError::UnexpectedTensor`]).
    pub fn target(&self) -> Result<TargetWeights, LoadError> {
        target::collect(self)
    }
}

impl Inventory for Gguf {
    fn path(&self) -> &Path {
        self.path()
    }

    fn files(&self) -> Vec<PathBuf> {
        vec![self.path().into()]
    }

    fn names(&self) -> Vec<&str> {
        self.names().collect()
    }

    fn item(&self, name: &str) -> Option<Item> {
        let stored = self.header.stored(name).ok()?;
        let tensor = self.tensor(name).ok()?;
        Some(Item { kind: stored.kind.to_string(), bytes: stored.bytes.len(), tensor })
    }
}

impl Gguf {
    /// The weights of a configuration, or everything that is wrong with them.
    pub(super) fn collect(&self, config: ModelConfig) -> Collected<TargetWeights> {
        target::take(self, config, target::Problems::All)
    }
}

impl std::fmt::Debug for Gguf {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Gguf({}: {} tensors)", self.path().display(), self.header.tensors().count())
    }
}

/// Whether a path is a file rather than a directory; then it is read as GGUF.
pub(super) fn is_file(path: &Path) -> bool {
    path.is_file()
}

/// [`Gguf::config`] without reading the weights.
pub(super) fn read_config(path: &Path) -> Result<ModelConfig, LoadError> {
    let header = Header::read(path)?;
    config::read(&header, |name| target::read_alone(&header, name))
}

/// [`Gguf::tokenizer`] without reading the weights.
pub(super) fn read_tokenizer(path: &Path, vocab_size: usize) -> Result<Tokenizer, LoadError> {
    tokenizer::read(&Header::read(path)?, vocab_size)
}

/// [`Gguf::chat_template`] without reading the weights.
pub(super) fn read_chat_template(path: &Path) -> Result<ChatTemplate, LoadError> {
    tokenizer::chat_template(&Header::read(path)?)
}

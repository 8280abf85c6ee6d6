//! GGUF files: a whole model in one file, often with quantised weights.
//!
//! ggml defines the format (<https://github.com/ggml-org/ggml/blob/master/docs/gguf.md>); this module reads
//! versions 2 and 3, little-endian:
//!
//! | part | contents |
//! |---|---|
//! | header | `GGUF`, version, number of tensors, number of key-value pairs |
//! | metadata | key, type, value: the configuration, the tokenizer, the chat template |
//! | tensor infos | name, dimensions (innermost first), type, offset within the data |
//! | data | from the next multiple of `general.alignment` (32 if absent) |
//!
//! F32, F16 and BF16 tensors are used in place; Q8_0, Q4_0, Q4_1, Q4_K and Q6_K are converted to bf16 when
//! they are loaded. Supported are the architectures `llama` and `qwen3` (dense), and byte-level BPE with the
//! splits (`tokenizer.ggml.pre`) smollm, gpt-2, llama-bpe and qwen2.
//!
//! The file is not trusted: counts, lengths and offsets are checked against its size before anything is read
//! or allocated, and no two tensors may share bytes.

mod header;
mod metadata;
mod quantization;
mod reader;
mod tensors;

use std::path::Path;
use std::sync::Arc;

use super::files::{Bytes, FileAccess, load};
use crate::model::LoadError;
pub(in crate::model) use header::Header;

/// A GGUF file: a model with its configuration, tokenizer, chat template and weights.
pub struct Gguf {
    header: Header,
    bytes: Bytes,
}

impl Gguf {
    /// Reads a GGUF file into memory.
    ///
    /// # Errors
    /// [`LoadError::Io`] or [`LoadError::NotAFile`]; [`LoadError::Gguf`] if the file is truncated, damaged or
    /// not a GGUF file; [`LoadError::DuplicateTensor`].
    pub fn read(path: &Path) -> Result<Self, LoadError> {
        // SAFETY: nothing is mapped.
        unsafe { Self::open(path, FileAccess::Read) }
    }

    /// Opens a GGUF file like [`read`](Self::read), but maps the file instead of copying it.
    ///
    /// # Safety
    /// While this object or a tensor taken from it is alive, no process may change or truncate the file.
    ///
    /// # Errors
    /// The errors of [`read`](Self::read).
    pub unsafe fn map(path: &Path) -> Result<Self, LoadError> {
        // SAFETY: the caller promises that the file does not change.
        unsafe { Self::open(path, FileAccess::Map) }
    }

    /// Parses the contents of a GGUF file that is already in memory; `path` is the file's name in errors.
    ///
    /// # Errors
    /// The errors of [`read`](Self::read).
    pub fn from_bytes(path: &Path, bytes: Vec<u8>) -> Result<Self, LoadError> {
        Self::new(path, Arc::new(bytes))
    }

    /// # Safety
    /// With [`FileAccess::Map`], the promise of [`map`](Self::map).
    pub(in crate::model) unsafe fn open(path: &Path, access: FileAccess) -> Result<Self, LoadError> {
        // SAFETY: the caller makes the same promise.
        let bytes = unsafe { load(path, access)? };
        Self::new(path, bytes)
    }

    fn new(path: &Path, bytes: Bytes) -> Result<Self, LoadError> {
        let header = Header::parse(path, bytes.clone())?;
        Ok(Self { header, bytes })
    }

    /// Returns the path of the file.
    pub fn path(&self) -> &Path {
        self.header.path()
    }

    /// Returns the header: metadata and the list of tensors.
    pub(in crate::model) fn header(&self) -> &Header {
        &self.header
    }

    /// Returns every tensor's name, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.header.tensors().map(|(name, _)| name)
    }
}

impl std::fmt::Debug for Gguf {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Gguf({}: {} tensors)", self.path().display(), self.header.tensors().count())
    }
}

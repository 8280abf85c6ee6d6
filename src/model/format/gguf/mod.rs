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
//! F32, F16 and BF16 tensors are used in place. Matrices of Q8_0, Q4_0, Q4_1, Q4_K, Q5_K and Q6_K keep their blocks, in
//! place too, if [`QuantizedWeights::Keep`] asks for it; otherwise they become bf16 when they are loaded, as Q5_0, Q5_1,
//! Q2_K, Q3_K, IQ4_NL and IQ4_XS always do. Supported are the architectures `llama`, `qwen2`, `qwen3` (dense) and
//! `smollm3`, SentencePiece, and byte-level BPE with the
//! splits (`tokenizer.ggml.pre`) smollm, gpt-2, llama-bpe and qwen2.
//!
//! A model may be split into files `NAME-00001-of-00003.gguf`, …; the first one has the metadata. Opening any of
//! them opens all of them.
//!
//! The file is not trusted: counts, lengths and offsets are checked against its size before anything is read
//! or allocated, and no two tensors may share bytes.

mod header;
mod metadata;
mod parts;
mod quantization;
mod reader;
mod tensors;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::files::{Bytes, FileAccess, load};
use crate::model::LoadError;
pub(in crate::model) use header::Header;
use header::ParsedFile;

/// The form in which the quantised matrices of a GGUF file are loaded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum QuantizedWeights {
    /// They become bf16, which every device takes.
    #[default]
    Bf16,
    /// They keep their blocks if a [`Tensor`](crate::tensor::Tensor) can hold the
    /// [format](crate::tensor::BlockFormat), and become bf16 if not. The CPU device computes with the f32 numbers that
    /// the blocks stand for; the GPU device refuses blocks.
    ///
    /// Blocks stay where the file is mapped or read, without a copy. The query and key projections of the architectures
    /// `llama` and `smollm3` are the exception: their rows are permuted in the file, and are copied into the model's
    /// order.
    Keep,
}

/// A GGUF file, or all files of a split model: a model with its configuration, tokenizer, chat template and
/// weights.
pub struct Gguf {
    header: Header,
    /// The bytes of every file that the header lists, in the same order.
    files: Vec<Bytes>,
}

impl Gguf {
    /// Reads a file into memory. If the file is one of a split model, reads the others too.
    ///
    /// # Errors
    /// [`LoadError::Io`] or [`LoadError::NotAFile`]; [`LoadError::Gguf`] if the file is truncated, damaged or
    /// not a GGUF file; [`LoadError::MissingParts`] or [`LoadError::DuplicateTensor`].
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
        // SAFETY: the caller guarantees that the file does not change.
        unsafe { Self::open(path, FileAccess::Map) }
    }

    /// Parses the contents of a GGUF file that is already in memory; `path` is the file's name in errors.
    ///
    /// # Errors
    /// The errors of [`read`](Self::read).
    pub fn from_bytes(path: &Path, bytes: Vec<u8>) -> Result<Self, LoadError> {
        let first = ParsedFile::parse(path, Arc::new(bytes))?;
        let (header, files) = Header::assemble(path, first, |part| {
            // The other files of a split model are not in memory.
            let io = |source| LoadError::Io { path: part.into(), source };
            Err(io(std::io::ErrorKind::NotFound.into()))
        })?;
        Ok(Self { header, files })
    }

    /// # Safety
    /// With [`FileAccess::Map`], the contract of [`map`](Self::map).
    pub(in crate::model) unsafe fn open(path: &Path, access: FileAccess) -> Result<Self, LoadError> {
        let open = |path: &Path| {
            // SAFETY: the caller upholds the same contract.
            let bytes = unsafe { load(path, access)? };
            ParsedFile::parse(path, bytes)
        };
        let (header, files) = Header::assemble(path, open(path)?, open)?;
        Ok(Self { header, files })
    }

    /// Returns the paths of the model's files.
    pub fn files(&self) -> &[PathBuf] {
        self.header.files()
    }

    /// Returns the path of the file.
    pub fn path(&self) -> &Path {
        self.header.path()
    }

    /// Returns the header: metadata and the list of tensors.
    pub(in crate::model) fn header(&self) -> &Header {
        &self.header
    }

    /// Returns the names of all tensors, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.header.tensors().map(|(name, _)| name)
    }
}

impl std::fmt::Debug for Gguf {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Gguf({}: {} tensors)", self.path().display(), self.header.tensors().count())
    }
}

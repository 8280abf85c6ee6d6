//! The one door to a target's files.
//!
//! A target is a GGUF file, or a directory as Hugging Face lays it out. This module alone asks which of the two a
//! path is; every `read` and `map` that takes a target's path is here.

use std::path::Path;

use super::config::{self, hugging_face};
use super::format::files::Access;
use super::format::gguf::{Gguf, Header};
use super::format::safetensors::Checkpoint;
use super::text::chat::ChatTemplate;
use super::text::gguf::{chat_template, tokenizer};
use super::text::tokenizer::Tokenizer;
use super::{LoadError, ModelConfig, TargetWeights};

/// A target's files, opened.
pub(super) enum TargetFiles {
    /// One file that holds configuration, tokenizer, chat template and weights.
    Gguf(Gguf),
    /// A directory's configuration and tensors.
    Directory(ModelConfig, Checkpoint),
}

impl TargetFiles {
    /// Opens the files at `path`.
    ///
    /// # Safety
    /// With [`Access::Map`], no file may be changed or truncated while the result, or a tensor taken from it, lives.
    pub(super) unsafe fn open(path: &Path, access: Access) -> Result<Self, LoadError> {
        if is_gguf(path) {
            // SAFETY: the caller's promise covers this file.
            return Ok(Self::Gguf(unsafe { Gguf::open(path, access) }?));
        }
        // The configuration comes first: without a configuration, the first missing tensor says little.
        let config = hugging_face::read(path)?;
        config.validate()?;
        // SAFETY: the caller's promise covers these files.
        Ok(Self::Directory(config, unsafe { Checkpoint::open(path, access) }?))
    }
}

/// Whether `path` is a GGUF file rather than a directory.
fn is_gguf(path: &Path) -> bool {
    path.is_file()
}

impl ModelConfig {
    /// Reads the configuration of the model at `path`: `config.json` and, for the end-of-sequence ids,
    /// `generation_config.json` of a directory as transformers 4 or 5 writes them, or the metadata of a GGUF file.
    ///
    /// # Errors
    /// [`LoadError`] if a file cannot be read, a key is missing or has a value that makes no sense,
    /// or the model needs something that is not supported.
    pub fn read(path: &Path) -> Result<Self, LoadError> {
        if is_gguf(path) { config::gguf::read_header(&Header::read(path)?) } else { hugging_face::read(path) }
    }
}

impl TargetWeights {
    /// Reads the model at `path` into memory: from a directory `config.json`, `generation_config.json` if it exists,
    /// and `model.safetensors` or the shards of its index; or all of a GGUF file.
    ///
    /// # Errors
    /// [`LoadError`] naming the file, key or tensor: see [`ModelConfig::read`] and [`Checkpoint::read`], or
    /// [`Gguf::target`]; also a tensor that is missing or has the wrong shape or element type.
    pub fn read(path: &Path) -> Result<Self, LoadError> {
        // SAFETY: `Access::Read` maps nothing.
        unsafe { Self::open(path, Access::Read) }
    }

    /// Maps the weights of the model at `path` instead of copying them; otherwise like [`read`](Self::read).
    ///
    /// # Safety
    /// As long as the weights or a clone of one of their tensors live, no file of the model may be changed or
    /// truncated, by this process or another.
    ///
    /// # Errors
    /// The errors of [`read`](Self::read).
    pub unsafe fn map(path: &Path) -> Result<Self, LoadError> {
        // SAFETY: the caller promises that the files do not change.
        unsafe { Self::open(path, Access::Map) }
    }

    /// # Safety
    /// With [`Access::Map`], as [`map`](Self::map).
    unsafe fn open(path: &Path, access: Access) -> Result<Self, LoadError> {
        // SAFETY: the caller's promise is handed on.
        match unsafe { TargetFiles::open(path, access) }? {
            TargetFiles::Gguf(file) => file.target(),
            TargetFiles::Directory(config, checkpoint) => Self::from_checkpoint(config, &checkpoint),
        }
    }
}

impl Tokenizer {
    /// Reads the tokenizer of the model at `path` (`tokenizer.json` of a directory, or the metadata of a GGUF file)
    /// for a model with `vocab_size` ids.
    ///
    /// The tokenizer may have fewer ids than the model (padded embeddings) or more: an id that the
    /// model does not have is an error when a text needs it.
    ///
    /// # Errors
    /// [`LoadError::Io`], or [`LoadError::Tokenizer`] if the file is not a tokenizer; for a GGUF file the errors of
    /// [`Gguf::tokenizer`].
    pub fn read(path: &Path, vocab_size: usize) -> Result<Self, LoadError> {
        if is_gguf(path) {
            tokenizer(&Header::read(path)?, vocab_size)
        } else {
            Self::read_directory(path, vocab_size)
        }
    }

    /// Reads the tokenizer like [`read`](Self::read); `None` if `path` is a directory without `tokenizer.json`.
    ///
    /// # Errors
    /// The errors of [`read`](Self::read).
    pub fn read_if_present(path: &Path, vocab_size: usize) -> Result<Option<Self>, LoadError> {
        let absent = !is_gguf(path) && matches!(path.join("tokenizer.json").try_exists(), Ok(false));
        if absent { Ok(None) } else { Self::read(path, vocab_size).map(Some) }
    }
}

impl ChatTemplate {
    /// Reads the chat template of the model at `path`. In a directory that is `chat_template.jinja`, or else
    /// `chat_template` in `tokenizer_config.json` (one template, or a list of named templates with one named
    /// `default`); a GGUF file has it in its metadata.
    ///
    /// # Errors
    /// [`LoadError::NoChatTemplate`] if the model has none, [`LoadError::ChatTemplate`] if it
    /// cannot be parsed; [`LoadError::Json`] or [`LoadError::InvalidKey`] for a
    /// `tokenizer_config.json` that makes no sense.
    pub fn read(path: &Path) -> Result<Self, LoadError> {
        if is_gguf(path) { chat_template(&Header::read(path)?) } else { Self::read_directory(path) }
    }
}

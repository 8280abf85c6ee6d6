//! Opens the files of a target model, which is a GGUF file or a directory.
//!
//! A directory has the layout of Hugging Face. Only this module decides which of the two a path is; it has
//! every `read` and `map` that takes the path of a target.

use std::path::Path;

use super::config;
use super::config::hugging_face::{self, DirectoryConfig};
use super::format::files::FileAccess;
use super::format::gguf::{Gguf, Header, QuantizedWeights};
use super::format::safetensors::Checkpoint;
use super::text::chat::ChatTemplate;
use super::text::gguf::{chat_template, tokenizer};
use super::text::tokenizer::Tokenizer;
use super::weights::orthrus;
use super::{LoadError, ModelConfig, ModelWeights, TargetWeights};

/// The opened files of a target.
pub(super) enum TargetFiles {
    /// One GGUF file that holds configuration, tokenizer, chat template and weights.
    Gguf(Gguf),
    /// A directory's configuration and tensors.
    Directory(DirectoryConfig, Checkpoint),
}

impl TargetFiles {
    /// Opens the files of the model at `path`.
    ///
    /// # Safety
    /// With [`FileAccess::Map`], no process may change or truncate a file while the result, or a tensor taken
    /// from it, is alive.
    pub(super) unsafe fn open(path: &Path, access: FileAccess) -> Result<Self, LoadError> {
        if is_gguf(path) {
            // SAFETY: the caller's guarantee covers this file.
            return Ok(Self::Gguf(unsafe { Gguf::open(path, access) }?));
        }
        // The configuration comes first: if it is missing, the name of the first missing tensor would not
        // explain the problem.
        let config = hugging_face::read(path)?;
        config.target.validate()?;
        // SAFETY: the caller's guarantee covers these files.
        Ok(Self::Directory(config, unsafe { Checkpoint::open(path, access) }?))
    }
}

/// Returns whether the path leads to a GGUF file and not to a directory.
fn is_gguf(path: &Path) -> bool {
    path.is_file()
}

impl ModelConfig {
    /// Reads the configuration of the model at `path`. In a directory this is `config.json` and, for the
    /// end-of-sequence ids, `generation_config.json`, as written by transformers 4 or 5. In a GGUF file it is
    /// the metadata.
    ///
    /// # Errors
    /// [`LoadError`] if a file cannot be read, if a key is missing or has an invalid value, or if the model
    /// needs an unsupported feature.
    pub fn read(path: &Path) -> Result<Self, LoadError> {
        if is_gguf(path) {
            return config::gguf::read_header(&Header::read(path)?);
        }
        Ok(hugging_face::read(path)?.target)
    }
}

impl TargetWeights {
    /// Reads the model at `path` into memory. In a directory this is `config.json`, `generation_config.json`
    /// if it exists, and `model.safetensors` or the shards of its index; otherwise all of a GGUF file, whose quantised
    /// weights become bf16.
    ///
    /// # Errors
    /// [`LoadError`] naming the file, key or tensor: see [`ModelConfig::read`] and [`Checkpoint::read`], or
    /// [`Gguf::target`]; also if a tensor is missing or has the wrong shape or element type.
    pub fn read(path: &Path) -> Result<Self, LoadError> {
        Self::read_with(path, QuantizedWeights::Bf16)
    }

    /// Reads the model like [`read`](Self::read), with the quantised weights of a GGUF file as `quantized` says.
    ///
    /// # Errors
    /// The errors of [`read`](Self::read).
    pub fn read_with(path: &Path, quantized: QuantizedWeights) -> Result<Self, LoadError> {
        // SAFETY: `FileAccess::Read` maps nothing.
        unsafe { Self::open(path, FileAccess::Read, quantized) }
    }

    /// Loads the model like [`read`](Self::read), but maps the weights instead of copying them.
    ///
    /// # Safety
    /// While the weights or a clone of one of their tensors are alive, no process may change or truncate a
    /// file of the model.
    ///
    /// # Errors
    /// The errors of [`read`](Self::read).
    pub unsafe fn map(path: &Path) -> Result<Self, LoadError> {
        // SAFETY: the caller upholds the same contract.
        unsafe { Self::map_with(path, QuantizedWeights::Bf16) }
    }

    /// Loads the model like [`map`](Self::map), with the quantised weights of a GGUF file as `quantized` says.
    ///
    /// # Safety
    /// The contract of [`map`](Self::map).
    ///
    /// # Errors
    /// The errors of [`read`](Self::read).
    pub unsafe fn map_with(path: &Path, quantized: QuantizedWeights) -> Result<Self, LoadError> {
        // SAFETY: the caller guarantees that the files do not change.
        unsafe { Self::open(path, FileAccess::Map, quantized) }
    }

    /// # Safety
    /// With [`FileAccess::Map`], the contract of [`map`](Self::map).
    unsafe fn open(path: &Path, access: FileAccess, quantized: QuantizedWeights) -> Result<Self, LoadError> {
        // SAFETY: the caller upholds the same contract.
        match unsafe { TargetFiles::open(path, access) }? {
            TargetFiles::Gguf(file) => file.target_with(quantized),
            TargetFiles::Directory(config, checkpoint) => Self::of_directory(config, &checkpoint),
        }
    }

    fn of_directory(config: DirectoryConfig, checkpoint: &Checkpoint) -> Result<Self, LoadError> {
        let mut weights = Self::from_checkpoint(config.target, checkpoint)?;
        weights.warnings.splice(0..0, config.warnings);
        Ok(weights)
    }
}

impl ModelWeights {
    /// Reads the model at `path` into memory: its target as [`TargetWeights::read`] does, and the drafter in the
    /// same files, if they are an Orthrus model. No file is read twice, and target and drafter share the memory.
    ///
    /// # Errors
    /// [`LoadError`] naming the file, key or tensor, of the target or of the drafter.
    pub fn read(path: &Path) -> Result<Self, LoadError> {
        Self::read_with(path, QuantizedWeights::Bf16)
    }

    /// Reads the model like [`read`](Self::read), with the quantised weights of a GGUF file as `quantized` says.
    ///
    /// # Errors
    /// The errors of [`read`](Self::read).
    pub fn read_with(path: &Path, quantized: QuantizedWeights) -> Result<Self, LoadError> {
        // SAFETY: `FileAccess::Read` maps nothing.
        unsafe { Self::open(path, FileAccess::Read, quantized) }
    }

    /// Loads the model like [`read`](Self::read), but maps the weights instead of copying them.
    ///
    /// # Safety
    /// While the weights or a clone of one of their tensors are alive, no process may change or truncate a
    /// file of the model.
    ///
    /// # Errors
    /// The errors of [`read`](Self::read).
    pub unsafe fn map(path: &Path) -> Result<Self, LoadError> {
        // SAFETY: the caller upholds the same contract.
        unsafe { Self::map_with(path, QuantizedWeights::Bf16) }
    }

    /// Loads the model like [`map`](Self::map), with the quantised weights of a GGUF file as `quantized` says.
    ///
    /// # Safety
    /// The contract of [`map`](Self::map).
    ///
    /// # Errors
    /// The errors of [`read`](Self::read).
    pub unsafe fn map_with(path: &Path, quantized: QuantizedWeights) -> Result<Self, LoadError> {
        // SAFETY: the caller guarantees that the files do not change.
        unsafe { Self::open(path, FileAccess::Map, quantized) }
    }

    /// # Safety
    /// With [`FileAccess::Map`], the contract of [`map`](Self::map).
    unsafe fn open(path: &Path, access: FileAccess, quantized: QuantizedWeights) -> Result<Self, LoadError> {
        // SAFETY: the caller upholds the same contract.
        match unsafe { TargetFiles::open(path, access) }? {
            TargetFiles::Gguf(file) => Ok(Self { target: file.target_with(quantized)?, drafter: None }),
            TargetFiles::Directory(config, checkpoint) => {
                let orthrus = config.orthrus;
                let target = TargetWeights::of_directory(config, &checkpoint)?;
                let collect =
                    |config| orthrus::collect(config, &target.config, Some(&target.embed), &checkpoint);
                let drafter =
                    orthrus.map(|config| collect(config).or_first_problem(&checkpoint)).transpose()?;
                Ok(Self { target, drafter })
            }
        }
    }
}

impl Tokenizer {
    /// Reads the tokenizer of the model at `path` (`tokenizer.json` of a directory, or the metadata of a GGUF file)
    /// for a model with `vocab_size` ids.
    ///
    /// The tokenizer may have fewer ids than the model (padded embeddings) or more. An id that the model does
    /// not have is an error when a text needs it.
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

    /// Reads the tokenizer like [`read`](Self::read); returns `None` if `path` is a directory without `tokenizer.json`.
    ///
    /// # Errors
    /// The errors of [`read`](Self::read).
    pub fn read_if_present(path: &Path, vocab_size: usize) -> Result<Option<Self>, LoadError> {
        let absent = !is_gguf(path) && matches!(path.join("tokenizer.json").try_exists(), Ok(false));
        if absent { Ok(None) } else { Self::read(path, vocab_size).map(Some) }
    }
}

impl ChatTemplate {
    /// Reads the chat template of the model at `path`. In a directory this is `chat_template.jinja`, or else
    /// `chat_template` in `tokenizer_config.json` (one template, or a list of named templates including
    /// `default`). A GGUF file has it in its metadata.
    ///
    /// # Errors
    /// [`LoadError::NoChatTemplate`] if the model has none, [`LoadError::ChatTemplate`] if it cannot be
    /// parsed; [`LoadError::Json`] or [`LoadError::InvalidKey`] for an invalid `tokenizer_config.json`.
    pub fn read(path: &Path) -> Result<Self, LoadError> {
        if is_gguf(path) { chat_template(&Header::read(path)?) } else { Self::read_directory(path) }
    }
}

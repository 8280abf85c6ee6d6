//! Why a model, drafter or tokenizer could not be loaded.

/// Why a model, drafter or tokenizer could not be loaded. Every variant names the file or tensor.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LoadError {
    /// A file that could not be read.
    #[error("cannot read {path}: {source}")]
    Io {
        /// The file.
        path: std::path::PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
}

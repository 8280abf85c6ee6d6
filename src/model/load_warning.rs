//! Warnings of loading: the model runs, and its files say something that the user should know.

use std::fmt;
use std::path::PathBuf;

/// A contradiction in the files of a model, or a part of them that has no effect.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum LoadWarning {
    /// The configuration says that the LM head is the embedding, and the checkpoint has an LM head with other
    /// values.
    OwnHead,
    /// A key that may change what a model computes is not read. transformers or llama.cpp does not read it
    /// either for this architecture.
    UnreadKey {
        /// Path of the file with the key.
        path: PathBuf,
        /// Name of the key; keys of inner objects are joined by dots.
        key: String,
        /// Value of the key, as JSON, shortened.
        value: String,
    },
}

impl fmt::Display for LoadWarning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::OwnHead => f.write_str(
                "`tie_word_embeddings` is true, but the checkpoint's `lm_head.weight` differs from its embedding; \
                 the model uses `lm_head.weight`",
            ),
            Self::UnreadKey { path, key, value } => {
                write!(f, "{}: `{key}` is {value}, which is not read and has no effect", path.display())
            }
        }
    }
}

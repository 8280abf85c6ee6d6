//! Errors of the tuner.

use std::path::PathBuf;

/// A [`Result`](std::result::Result) with a [`TuneError`].
pub type Result<T, E = TuneError> = std::result::Result<T, E>;

/// Errors from making data, a target or a drafter.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TuneError {
    /// The runner refused something: a model that does not load, or an invalid request.
    #[error(transparent)]
    Runner(#[from] flexdraft::Error),
    /// An operation on tensors failed: out of memory or mismatched shapes.
    #[error(transparent)]
    Tensor(#[from] candle_core::Error),
    /// A file that cannot be read or written.
    #[error("cannot {action} {path}: {source}")]
    Io {
        /// The operation that failed, as a verb: `read` or `write`, for example.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// The system's error.
        source: std::io::Error,
    },
    /// A file with invalid contents.
    #[error("{path}: {reason}")]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong with the file, and where.
        reason: String,
    },
    /// A setting that is invalid, by itself or for this model.
    #[error("{setting} is {value}, expected {expected}")]
    Setting {
        /// Name of the setting.
        setting: &'static str,
        /// Value of the setting.
        value: String,
        /// Description of accepted values.
        expected: String,
    },
    /// A text or a set of transcripts that is too small.
    #[error("{path}: {found} {unit}, and at least {needed} are needed")]
    TooLittleData {
        /// The file or folder.
        path: PathBuf,
        /// The amount found.
        found: usize,
        /// The unit that is counted.
        unit: &'static str,
        /// The amount needed.
        needed: usize,
    },
    /// Anchors for which no mask rows can be made.
    #[error("anchors of transcript {transcript}: {reason}")]
    Pick {
        /// Index of the transcript.
        transcript: usize,
        /// What the transcript or one of its anchors lacks.
        reason: String,
    },
    /// A run that is continued with another target, other data or other settings than it began with.
    #[error("{path} is of a run with another {what}: {found}, now {expected}")]
    OtherRun {
        /// Path of the checkpoint.
        path: PathBuf,
        /// What differs.
        what: &'static str,
        /// The checkpoint's value.
        found: String,
        /// The value of this run.
        expected: String,
    },
    /// A drafter that changed the target's output, which must never happen.
    #[error("NOT LOSSLESS: prompt {prompt}: token {position} is {found} with drafts, {expected} without")]
    NotLossless {
        /// Number of the prompt, from 0.
        prompt: usize,
        /// The first position of the response that differs, from 0.
        position: usize,
        /// The token with drafts, or `none` if the response ended.
        found: String,
        /// The token without drafts.
        expected: String,
    },
    /// A loss that is not a number. The last good checkpoint is kept.
    #[error("the loss is {loss} at step {step}: stopped; the latest checkpoint is of step {checkpoint}")]
    NotFinite {
        /// The step that failed.
        step: usize,
        /// Loss of the step, or norm of its gradient.
        loss: f64,
        /// The step of the checkpoint on disk; 0 if there is none.
        checkpoint: usize,
    },
}

impl TuneError {
    /// Returns a function that wraps an I/O error, for `map_err`.
    pub fn io(action: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { action, path, source }
    }

    /// Returns the error for a setting that is out of range.
    pub fn setting(setting: &'static str, value: impl ToString, expected: impl Into<String>) -> Self {
        Self::Setting { setting, value: value.to_string(), expected: expected.into() }
    }
}

macro_rules! from_runner {
    ($($error:path),*) => {$(
        impl From<$error> for TuneError {
            fn from(error: $error) -> Self {
                Self::Runner(error.into())
            }
        }
    )*};
}

from_runner!(flexdraft::decode::DecodeError, flexdraft::device::DeviceError, flexdraft::model::LoadError);

//! What ends a command of the tuner early.

use std::path::PathBuf;

/// A [`Result`](std::result::Result) with a [`TuneError`].
pub type Result<T, E = TuneError> = std::result::Result<T, E>;

/// Why data, a target or a drafter could not be made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TuneError {
    /// What the runner refused: a model that does not load, a request that cannot be.
    #[error(transparent)]
    Runner(#[from] flexdraft::Error),
    /// An operation on tensors: no memory, or shapes that do not fit.
    #[error(transparent)]
    Tensor(#[from] candle_core::Error),
    /// A file that cannot be read or written.
    #[error("cannot {action} {path}: {source}")]
    Io {
        /// `read`, `write`, …
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A file whose contents are not what they should be.
    #[error("{path}: {reason}")]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong with it, and where.
        reason: String,
    },
    /// Settings that make no sense, by themselves or for this model.
    #[error("{setting} is {value}, expected {expected}")]
    Setting {
        /// The setting's name.
        setting: &'static str,
        /// Its value.
        value: String,
        /// What would be accepted.
        expected: String,
    },
    /// A text or transcripts that there is too little of.
    #[error("{path}: {found} {unit}, and at least {needed} are needed")]
    TooLittleData {
        /// The file or folder.
        path: PathBuf,
        /// What there is.
        found: usize,
        /// What was counted.
        unit: &'static str,
        /// What is needed.
        needed: usize,
    },
    /// Anchors that no mask row can stand for.
    #[error("anchors of transcript {transcript}: {reason}")]
    Pick {
        /// The transcript's index.
        transcript: usize,
        /// What it, or an anchor of it, lacks.
        reason: String,
    },
    /// A run that is continued with another target, other data or other settings than it began with.
    #[error("{path} is of a run with another {what}: {found}, now {expected}")]
    OtherRun {
        /// The checkpoint.
        path: PathBuf,
        /// What differs.
        what: &'static str,
        /// The checkpoint's.
        found: String,
        /// This run's.
        expected: String,
    },
    /// A drafter that changed what the target writes, which it must not.
    #[error("NOT LOSSLESS: prompt {prompt}: token {position} is {found} with drafts, {expected} without")]
    NotLossless {
        /// The prompt's number, from 0.
        prompt: usize,
        /// The first position of the response that differs, from 0.
        position: usize,
        /// The token with drafts, `none` where the response ended.
        found: String,
        /// The token without.
        expected: String,
    },
    /// A loss that is not a number. The last good checkpoint stays as it is.
    #[error("the loss is {loss} at step {step}: stopped; the latest checkpoint is of step {checkpoint}")]
    NotFinite {
        /// The step.
        step: usize,
        /// Its loss, or the norm of its gradient.
        loss: f64,
        /// The step of the checkpoint on disk, 0 if there is none.
        checkpoint: usize,
    },
}

impl TuneError {
    /// For `map_err` on a file operation.
    pub fn io(action: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { action, path, source }
    }

    /// A setting that is out of range.
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

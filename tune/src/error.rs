//! The error type of the tuner.

use std::path::PathBuf;

use serde::Serialize;
use serde_json::Value;

/// A [`Result`](std::result::Result) with a [`TuneError`].
pub type Result<T, E = TuneError> = std::result::Result<T, E>;

/// Errors from making data, a target or a drafter.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TuneError {
    /// The runner refused a model or a request.
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
        /// Path that could not be read or written.
        path: PathBuf,
        /// The operating system's error.
        source: std::io::Error,
    },
    /// A file with invalid contents.
    #[error("{path}: {reason}")]
    File {
        /// Path of the invalid file.
        path: PathBuf,
        /// The problem in the file, and its place.
        reason: String,
    },
    /// A setting that is invalid by itself or for this target.
    #[error("{setting} is {value}, expected {expected}")]
    Setting {
        /// Name of the invalid setting.
        setting: &'static str,
        /// Value of the invalid setting.
        value: String,
        /// The accepted values, in words.
        expected: String,
    },
    /// A text or a set of transcripts that is too small.
    #[error("{path}: expected at least {needed} {unit}, found {found}")]
    TooLittleData {
        /// Path of the file or folder that holds too little.
        path: PathBuf,
        /// The amount that was found.
        found: usize,
        /// Name of the unit that is counted, such as tokens.
        unit: &'static str,
        /// The smallest amount that suffices.
        needed: usize,
    },
    /// Anchors (positions to draft from) for which no mask rows can be made.
    #[error("cannot make mask rows for transcript {transcript}: {reason}")]
    Pick {
        /// Index of the transcript, from 0.
        transcript: usize,
        /// The missing part of the transcript or of one of its anchors.
        reason: String,
    },
    /// A run that is continued with another target, other data or other settings than it began with.
    #[error(
        "{path} belongs to a run with another {what}: {found} there, {expected} now; use the same {what} again, or \
         another folder"
    )]
    OtherRun {
        /// Path of the other run's checkpoint or folder.
        path: PathBuf,
        /// The difference between the runs: the target, the data or a setting.
        what: &'static str,
        /// The value that the run began with.
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
        /// The token that plain decoding wrote.
        expected: String,
    },
    /// A training loss that is not a number. The last good checkpoint is kept.
    #[error(
        "the loss or its gradient is {loss} at step {step}; the run stopped, and its latest checkpoint is from step \
         {checkpoint}; a lower learning rate may help"
    )]
    NotFinite {
        /// The training step that failed.
        step: usize,
        /// Loss of the step, or norm of its gradient.
        loss: f64,
        /// The step of the checkpoint on disk; 0 if there is none.
        checkpoint: usize,
    },
    /// A trained tensor with elements that are infinite or not numbers. The last good checkpoint is kept.
    #[error(
        "`{tensor}` has elements that are not finite after step {step}; the run stopped, and its latest checkpoint is \
         from step {checkpoint}; a lower learning rate may help"
    )]
    WeightsNotFinite {
        /// Name of the first such tensor.
        tensor: String,
        /// The training step after which the weights were checked.
        step: usize,
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

/// Returns the first setting that differs between two runs, as `key: value` for each run.
pub(crate) fn settings_difference<T: Serialize>(found: &T, expected: &T) -> Option<(String, String)> {
    fn leaves(key: &str, value: &Value, all: &mut Vec<String>) {
        match value {
            Value::Object(fields) => fields.iter().for_each(|(name, value)| {
                let key = if key.is_empty() { name.clone() } else { format!("{key}.{name}") };
                leaves(&key, value, all);
            }),
            value => all.push(format!("{key}: {value}")),
        }
    }
    let [found, expected] = [found, expected].map(|settings| {
        let mut all = Vec::new();
        // The settings are compared as JSON text, in which an f32 has no more digits than it needs.
        let text = serde_json::to_string(settings).unwrap_or_default();
        leaves("", &serde_json::from_str(&text).unwrap_or_default(), &mut all);
        all
    });
    found.into_iter().zip(expected).find(|(found, expected)| found != expected)
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

//! The settings that all training runs share, and their checks.

use flexdraft::decode::Confidence;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::error::{Result, TuneError};
use crate::optimizer::{AdamSettings, Schedule};

/// The settings of a training run, as stored in its configuration file and in its checkpoint.
pub trait TrainingSettings: Clone + Serialize + DeserializeOwned {
    /// Returns the settings that all training runs share.
    fn training(&self) -> Training;
}

/// The settings that all training runs share; [`Settings`](super::Settings) and [`ChainSettings`](super::ChainSettings)
/// explain them.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Training {
    /// γ in the weight of slot j in the loss, exp(−(j − 1) / γ).
    pub gamma: f64,
    /// Total number of training steps.
    pub steps: usize,
    /// Number of transcripts per step.
    pub sequences: usize,
    /// Maximum number of anchors per transcript.
    pub anchors: usize,
    /// Peak learning rate.
    pub learning_rate: f64,
    /// Share of the steps during which the learning rate rises.
    pub warmup: f64,
    /// Settings of the AdamW optimizer.
    pub adam: AdamSettings,
    /// Number of steps between evaluations.
    pub evaluate_every: usize,
    /// Number of held-out transcripts that an evaluation walks.
    pub evaluate_on: usize,
    /// Confidence threshold (cumulative product) with which the walk chooses verify lengths.
    pub threshold: f32,
    /// Number of steps between checkpoints.
    pub checkpoint_every: usize,
    /// Memory for what is computed once from the transcripts, in GiB.
    pub kept_gib: f64,
}

impl Training {
    /// Checks every setting by itself.
    ///
    /// # Errors
    /// [`TuneError::Setting`] naming the first invalid setting.
    pub(super) fn validate(&self) -> Result<()> {
        for (setting, value) in [
            ("steps", self.steps),
            ("sequences", self.sequences),
            ("anchors", self.anchors),
            ("evaluate_every", self.evaluate_every),
            ("evaluate_on", self.evaluate_on),
            ("checkpoint_every", self.checkpoint_every),
        ] {
            check_count(setting, value, usize::MAX)?;
        }
        check_positive("gamma", self.gamma)?;
        check_positive("learning_rate", self.learning_rate)?;
        check_share("warmup", self.warmup)?;
        check_share("threshold", f64::from(self.threshold))?;
        if !(self.kept_gib.is_finite() && self.kept_gib >= 0.0) {
            return Err(TuneError::setting("kept_gib", self.kept_gib, "a finite number, at least 0"));
        }
        self.adam.validate()
    }

    /// Returns the learning-rate schedule of a run whose rate falls over `steps` steps.
    pub fn schedule(&self, steps: usize) -> Schedule {
        let warmup = (self.warmup * steps as f64).round() as usize;
        Schedule { peak: self.learning_rate, warmup, steps }
    }

    /// Returns the confidence settings by which an evaluation on held-out transcripts chooses verify lengths.
    pub fn confidence(&self) -> Confidence {
        Confidence { threshold: self.threshold, ..Confidence::default() }
    }
}

/// Checks that a setting is from 1 to `most`.
pub(super) fn check_count(setting: &'static str, value: usize, most: usize) -> Result<()> {
    if (1..=most).contains(&value) {
        return Ok(());
    }
    let expected = match most {
        usize::MAX => "at least 1".to_owned(),
        most => format!("1 to {most}"),
    };
    Err(TuneError::setting(setting, value, expected))
}

/// Checks that a setting is a finite number above 0.
pub(super) fn check_positive(setting: &'static str, value: f64) -> Result<()> {
    match value.is_finite() && value > 0.0 {
        true => Ok(()),
        false => Err(TuneError::setting(setting, value, "a finite number above 0")),
    }
}

/// Checks that a setting is at least 0 and below 1.
pub(super) fn check_share(setting: &'static str, value: f64) -> Result<()> {
    match (0.0..1.0).contains(&value) {
        true => Ok(()),
        false => Err(TuneError::setting(setting, value, "at least 0 and below 1")),
    }
}

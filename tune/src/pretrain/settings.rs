//! Settings of a pretraining run. Together with the text they determine all its numbers.

use serde::{Deserialize, Serialize};

use crate::error::{Result, TuneError, settings_difference};
use crate::optimizer::{AdamSettings, Schedule};

/// The shape of the model to train, without the vocabulary size, which follows from the tokenizer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Shape {
    /// Hidden size: elements of a token's row between layers.
    pub hidden_size: usize,
    /// Number of decoder layers of the model.
    pub layers: usize,
    /// Number of query heads per layer.
    pub q_heads: usize,
    /// Number of KV heads, a divisor of the number of query heads.
    pub kv_heads: usize,
    /// Size of an attention head in elements, an even number.
    pub head_dim: usize,
    /// Number of columns of the MLP's gate and up projections.
    pub intermediate_size: usize,
    /// Number of positions that the model is trained for.
    pub context_len: usize,
    /// Base of the rotary frequencies (θ).
    pub rope_theta: f64,
}

impl Default for Shape {
    fn default() -> Self {
        Self {
            hidden_size: 256,
            layers: 5,
            q_heads: 4,
            kv_heads: 2,
            head_dim: 64,
            intermediate_size: 704,
            context_len: 1024,
            rope_theta: 10_000.0,
        }
    }
}

/// Settings of a pretraining run, as stored in its configuration file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PretrainSettings {
    /// Shape of the model.
    pub shape: Shape,
    /// Maximum number of token ids, including the end-of-text token.
    pub vocab_size: usize,
    /// Number of tokens per window of text.
    pub window: usize,
    /// Interval, in steps, of steps that use windows of the whole context, so that every position is trained.
    pub long_window_every: usize,
    /// Maximum number of tokens per step, for every window length.
    pub step_tokens: usize,
    /// Total number of training steps of the run.
    pub steps: usize,
    /// Peak learning rate.
    pub learning_rate: f64,
    /// Share of the steps during which the learning rate rises.
    pub warmup: f64,
    /// Settings of the AdamW optimizer.
    pub adam: AdamSettings,
    /// Seed of the initial weights and of the windows' places.
    pub seed: u64,
    /// Number of steps between lines of metrics.
    pub log_every: usize,
    /// Number of steps between evaluations on the held-out text.
    pub evaluate_every: usize,
    /// Number of steps between checkpoints.
    pub checkpoint_every: usize,
}

impl Default for PretrainSettings {
    fn default() -> Self {
        Self {
            shape: Shape::default(),
            vocab_size: 2048,
            window: 256,
            long_window_every: 4,
            step_tokens: 2048,
            steps: 1600,
            learning_rate: 2e-3,
            warmup: 0.04,
            adam: AdamSettings { weight_decay: 0.05, ..AdamSettings::default() },
            seed: 0,
            log_every: 10,
            evaluate_every: 100,
            checkpoint_every: 100,
        }
    }
}

impl PretrainSettings {
    /// Checks the settings, except the model's shape, which the runner checks when it reads the config.
    ///
    /// # Errors
    /// [`TuneError::Setting`] naming the first invalid setting.
    pub fn validate(&self) -> Result<()> {
        let context = self.shape.context_len;
        let least = [
            ("vocab_size", self.vocab_size, 257, "more than the 256 bytes".to_owned()),
            ("window", self.window, 1, "at least 1".to_owned()),
            ("long_window_every", self.long_window_every, 1, "at least 1".to_owned()),
            ("step_tokens", self.step_tokens, context, format!("at least the context, {context}")),
            ("steps", self.steps, 1, "at least 1".to_owned()),
            ("log_every", self.log_every, 1, "at least 1".to_owned()),
            ("evaluate_every", self.evaluate_every, 1, "at least 1".to_owned()),
            ("checkpoint_every", self.checkpoint_every, 1, "at least 1".to_owned()),
        ];
        for (setting, value, least, expected) in least {
            if value < least {
                return Err(TuneError::setting(setting, value, expected));
            }
        }
        if self.window > context {
            let expected = format!("at most the context, {context}");
            return Err(TuneError::setting("window", self.window, expected));
        }
        for (setting, value) in [("learning_rate", self.learning_rate), ("adam.clip", self.adam.clip)] {
            if !(value.is_finite() && value > 0.0) {
                return Err(TuneError::setting(setting, value, "a finite number above 0"));
            }
        }
        let shares = [
            ("warmup", self.warmup),
            ("adam.beta1", self.adam.beta1),
            ("adam.beta2", self.adam.beta2),
            ("adam.weight_decay", self.adam.weight_decay),
        ];
        for (setting, value) in shares {
            if !(0.0..1.0).contains(&value) {
                return Err(TuneError::setting(setting, value, "at least 0 and below 1"));
            }
        }
        Ok(())
    }

    /// Returns the learning-rate schedule.
    pub fn schedule(&self, steps: usize) -> Schedule {
        let warmup = (self.warmup * steps as f64).ceil() as usize;
        Schedule { peak: self.learning_rate, warmup, steps }
    }

    /// Returns the length and number of the windows of step `step`, counted from 0.
    pub fn windows(&self, step: usize) -> (usize, usize) {
        let long = step % self.long_window_every == self.long_window_every - 1;
        let window = if long { self.shape.context_len } else { self.window };
        (window, self.step_tokens / window)
    }

    /// Returns the first setting that keeps a run of `other` from resuming with these settings, as `other` and as these
    /// settings have it. The intervals of logs, evaluations and checkpoints may differ.
    pub(super) fn difference(&self, other: &Self) -> Option<(String, String)> {
        let Self { log_every, evaluate_every, checkpoint_every, .. } = *self;
        let other = Self { log_every, evaluate_every, checkpoint_every, ..other.clone() };
        settings_difference(&other, self)
    }
}

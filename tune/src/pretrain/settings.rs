//! What a pretraining run is set to.

use serde::{Deserialize, Serialize};

use crate::error::{Result, TuneError};
use crate::optimizer::{AdamSettings, Schedule};

/// The model's shape. Vocabulary aside, which the tokenizer decides.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Shape {
    /// H.
    pub hidden_size: usize,
    /// L.
    pub layers: usize,
    /// Query heads.
    pub q_heads: usize,
    /// KV heads, a divisor of the query heads.
    pub kv_heads: usize,
    /// Elements of a head, even.
    pub head_dim: usize,
    /// Columns of the gate and up projections.
    pub intermediate_size: usize,
    /// Positions that the model is trained for.
    pub context_len: usize,
    /// Base of the rotary frequencies.
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

/// What a run depends on, besides its text. The same settings and text give the same model.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PretrainSettings {
    /// The model's shape.
    pub shape: Shape,
    /// Ids of the tokenizer at most, the end-of-text token included.
    pub vocab_size: usize,
    /// Tokens of a window of text.
    pub window: usize,
    /// Tokens of a step, whose windows they are divided into.
    pub step_tokens: usize,
    /// One step in so many has windows of the whole context instead, so that every position is trained.
    pub long_window_every: usize,
    /// The optimizer's settings.
    pub adam: AdamSettings,
    /// The learning rates.
    pub schedule: Schedule,
    /// Of the weights' first values and the windows' places.
    pub seed: u64,
}

impl PretrainSettings {
    /// Checks what the rest relies on. The shape is checked by the runner, when it reads the config.
    ///
    /// # Errors
    /// [`TuneError::Setting`].
    pub fn validate(&self) -> Result<()> {
        let context = self.shape.context_len;
        if self.window == 0 || self.window > context {
            return Err(TuneError::setting("window", self.window, format!("1..={context}, the context")));
        }
        if self.step_tokens < context {
            let expected = format!("at least {context}, a window of the whole context");
            return Err(TuneError::setting("step_tokens", self.step_tokens, expected));
        }
        if self.vocab_size <= 256 {
            return Err(TuneError::setting("vocab_size", self.vocab_size, "more than the 256 bytes"));
        }
        if self.schedule.steps == 0 {
            return Err(TuneError::setting("steps", 0, "at least 1"));
        }
        if !(self.schedule.peak.is_finite() && self.schedule.peak > 0.0) {
            return Err(TuneError::setting("rate", self.schedule.peak, "a finite number above 0"));
        }
        if self.long_window_every == 0 {
            return Err(TuneError::setting("long_window_every", 0, "at least 1"));
        }
        Ok(())
    }

    /// How long the windows of a step are, counted from 0, and how many.
    pub fn windows(&self, step: usize) -> (usize, usize) {
        let long = step % self.long_window_every == self.long_window_every - 1;
        let window = if long { self.shape.context_len } else { self.window };
        (window, self.step_tokens / window)
    }
}

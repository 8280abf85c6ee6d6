//! Settings of a run that trains the chain of a frozen drafter.

use flexdraft::model::weights::{ChainConfig, ChainKind, MAX_CHAIN_TOP_K};
use serde::{Deserialize, Serialize};

use super::compute::Compute;
use super::training::{Training, TrainingSettings, check_count};
use crate::chain::ChainShape;
use crate::error::Result;
use crate::optimizer::AdamSettings;

/// The kind of score with which a chain corrects the logits of a slot's most likely ids.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// A score of two tokens, `(A · embed(t)) · (B · embed(x))`.
    #[default]
    Pair,
    /// A score of two tokens and the slot's hidden row, `lm_head[x] · (W2 · silu(W1 · [embed(t); h]))`.
    Hidden,
}

impl From<Kind> for ChainKind {
    fn from(kind: Kind) -> Self {
        match kind {
            Kind::Pair => Self::Pair,
            Kind::Hidden => Self::Hidden,
        }
    }
}

/// The chain that a tuning run trains with the rest of its drafter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ChainChoice {
    /// The kind of the chain's scores.
    pub kind: Kind,
    /// Rank r of the chain's two layers.
    pub rank: usize,
    /// K: number of ids per slot that drafting scores.
    pub top_k: usize,
}

impl Default for ChainChoice {
    fn default() -> Self {
        let ChainSettings { kind, rank, top_k, .. } = ChainSettings::default();
        Self { kind, rank, top_k }
    }
}

impl ChainChoice {
    /// Checks every setting by itself.
    ///
    /// # Errors
    /// [`TuneError::Setting`](crate::TuneError::Setting) naming the first invalid setting.
    pub fn validate(self) -> Result<()> {
        check_count("chain.rank", self.rank, usize::MAX)?;
        check_count("chain.top_k", self.top_k, MAX_CHAIN_TOP_K)
    }

    /// Returns the sizes of the chain's tensors.
    pub fn shape(self) -> ChainShape {
        ChainShape { config: ChainConfig { kind: self.kind.into(), top_k: self.top_k }, rank: self.rank }
    }
}

/// Settings of a run that trains a chain, as stored in its configuration file. Together with the drafter and the
/// transcripts they determine all its numbers, except for the rounding of sums, which depends on the kind of device.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ChainSettings {
    /// The kind of the chain's scores.
    pub kind: Kind,
    /// Rank r of the chain's two layers.
    pub rank: usize,
    /// K: number of ids per slot that drafting scores.
    pub top_k: usize,
    /// True if every slot's scores take the bonus token instead of the token before the slot, for comparison; such a
    /// chain is not exported.
    pub bonus_only: bool,
    /// γ in the weight of slot j in the loss, exp(−(j − 1) / γ).
    pub gamma: f64,
    /// Total number of training steps of the run.
    pub steps: usize,
    /// Number of transcripts per step.
    pub sequences: usize,
    /// Maximum number of anchors per transcript. A transcript has the same anchors in every epoch: the frozen drafter's
    /// logits after them are computed once and kept.
    pub anchors: usize,
    /// Peak learning rate.
    pub learning_rate: f64,
    /// Share of the steps during which the learning rate rises.
    pub warmup: f64,
    /// Settings of the AdamW optimizer.
    pub adam: AdamSettings,
    /// The type that operands of matrix products are rounded to; everything else is f32.
    pub compute: Compute,
    /// Seed of the initial weights, the order of transcripts and the anchors.
    pub seed: u64,
    /// Number of steps between evaluations.
    pub evaluate_every: usize,
    /// Number of held-out transcripts that an evaluation walks.
    pub evaluate_on: usize,
    /// Confidence threshold (cumulative product) with which the walk chooses verify lengths.
    pub threshold: f32,
    /// Number of steps between checkpoints.
    pub checkpoint_every: usize,
    /// Memory for the most likely ids and hidden rows of the frozen drafter's slots, in GiB; slots beyond it are
    /// computed again each time.
    pub kept_gib: f64,
}

impl Default for ChainSettings {
    fn default() -> Self {
        Self {
            kind: Kind::Pair,
            rank: 256,
            top_k: 16,
            bonus_only: false,
            gamma: 4.0,
            steps: 2000,
            sequences: 4,
            anchors: 32,
            learning_rate: 2e-3,
            warmup: 0.04,
            adam: AdamSettings::default(),
            compute: Compute::F32,
            seed: 0,
            evaluate_every: 200,
            evaluate_on: 16,
            threshold: 0.01,
            checkpoint_every: 200,
            kept_gib: 4.0,
        }
    }
}

impl ChainSettings {
    /// Checks every setting by itself.
    ///
    /// # Errors
    /// [`TuneError::Setting`](crate::TuneError::Setting) naming the first invalid setting.
    pub fn validate(&self) -> Result<()> {
        check_count("rank", self.rank, usize::MAX)?;
        check_count("top_k", self.top_k, MAX_CHAIN_TOP_K)?;
        self.training().validate()
    }

    /// Returns the sizes of the chain's tensors.
    pub fn shape(&self) -> ChainShape {
        ChainChoice { kind: self.kind, rank: self.rank, top_k: self.top_k }.shape()
    }
}

impl TrainingSettings for ChainSettings {
    fn training(&self) -> Training {
        let Self { gamma, steps, sequences, anchors, learning_rate, warmup, adam, .. } = *self;
        let Self { evaluate_every, evaluate_on, threshold, checkpoint_every, kept_gib, .. } = *self;
        Training {
            gamma,
            steps,
            sequences,
            anchors,
            learning_rate,
            warmup,
            adam,
            evaluate_every,
            evaluate_on,
            threshold,
            checkpoint_every,
            kept_gib,
        }
    }
}

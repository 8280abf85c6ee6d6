//! Settings of a tuning run. Together with the transcripts they determine all its numbers, except for the rounding of
//! sums, which depends on the kind of device and the number of ranks.

use std::path::PathBuf;

use flexdraft::layout::MAX_BLOCK_SIZE;
use flexdraft::model::{DrafterKind, ModelConfig};
use serde::{Deserialize, Serialize};

use super::chain_settings::ChainChoice;
use super::compute::Compute;
use super::training::{Training, TrainingSettings, check_positive, check_share};
use crate::drafter::DrafterShape;
use crate::error::{Result, TuneError};
use crate::optimizer::AdamSettings;

/// The kind of drafter that a run tunes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DrafterChoice {
    /// A FlexDraft drafter (arXiv 2605.20022): projectors in the last layers, a mask embedding and a calibrator.
    #[default]
    FlexDraft,
    /// An Orthrus drafter (arXiv 2605.12825): projectors in all layers, and no other tensor.
    Orthrus,
}

/// Settings of a tuning run, as stored in its configuration file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// The kind of drafter.
    pub kind: DrafterChoice,
    /// The token whose embedding the mask rows of an Orthrus drafter start from; by default the last id of the
    /// vocabulary. A FlexDraft drafter has a mask embedding of its own.
    pub mask_token: Option<u32>,
    /// Directory of the FlexDraft drafter whose weights the run starts from; `None` starts from the target's own weights. A
    /// run that resumes from its checkpoint does not read the drafter again.
    pub init_from: Option<PathBuf>,
    /// N: number of the target's last layers that get attention projectors for mask rows. An Orthrus drafter has
    /// projectors in all layers, whatever this setting is.
    pub tail_layers: usize,
    /// S: number of slots of a block, including slot 0, the bonus token's.
    pub block_size: usize,
    /// Rank r of the calibrator; 0 tunes a drafter without a calibrator. An Orthrus drafter has no calibrator, whatever
    /// this setting is.
    pub rank: usize,
    /// True if the tail's norms and MLPs are trained too, for comparison; such a drafter cannot be exported.
    pub whole_tail: bool,
    /// The chain that is trained with the rest; `None` trains a drafter without one.
    pub chain: Option<ChainChoice>,
    /// γ in the weight of slot j in the loss, exp(−(j − 1) / γ).
    pub gamma: f64,
    /// Number of token ids that are drafted, the most frequent ones of the transcripts; 0 drafts the whole vocabulary.
    pub shortlist: usize,
    /// Total number of training steps of the run.
    pub steps: usize,
    /// Number of transcripts per step.
    pub sequences: usize,
    /// Maximum number of anchors per transcript.
    pub anchors: usize,
    /// Peak learning rate.
    pub learning_rate: f64,
    /// Learning rate of the calibrator, as a multiple of `learning_rate`.
    pub calibrator_rate: f64,
    /// Share of the steps during which the learning rate rises.
    pub warmup: f64,
    /// Settings of the AdamW optimizer.
    pub adam: AdamSettings,
    /// Decay of the running mean of the weights, which is evaluated and exported; 0 uses the weights themselves.
    pub ema: f64,
    /// The type that operands of matrix products are rounded to: in products with weights, and with the keys
    /// and values of transcript tokens. Trained weights and everything between the products stay f32.
    pub compute: Compute,
    /// Seed of the initial calibrator, the order of transcripts and the anchors.
    pub seed: u64,
    /// Number of steps between evaluations.
    pub evaluate_every: usize,
    /// Number of held-out transcripts that an evaluation walks.
    pub evaluate_on: usize,
    /// Confidence threshold (cumulative product) with which the walk chooses verify lengths.
    pub threshold: f32,
    /// Number of steps between checkpoints.
    pub checkpoint_every: usize,
    /// Memory for the keys and values of transcript tokens, in GiB; keys and values beyond it are computed
    /// again each time.
    pub kept_gib: f64,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            kind: DrafterChoice::default(),
            mask_token: None,
            init_from: None,
            tail_layers: 8,
            block_size: 8,
            rank: 128,
            whole_tail: false,
            chain: None,
            gamma: 4.0,
            shortlist: 0,
            steps: 1000,
            sequences: 16,
            anchors: 24,
            learning_rate: 6e-4,
            calibrator_rate: 1.0,
            warmup: 0.04,
            adam: AdamSettings::default(),
            ema: 0.0,
            compute: Compute::F32,
            seed: 0,
            evaluate_every: 100,
            evaluate_on: 16,
            threshold: 0.01,
            checkpoint_every: 100,
            kept_gib: 6.0,
        }
    }
}

impl Settings {
    /// Checks every setting, by itself and against the target.
    ///
    /// # Errors
    /// [`TuneError::Setting`] naming the first invalid setting.
    pub fn validate(&self, target: &ModelConfig) -> Result<()> {
        let shape = self.shape(target);
        if !(1..=target.layers).contains(&shape.tail_layers) {
            let expected = format!("1 to {}, the target's number of layers", target.layers);
            return Err(TuneError::setting("tail_layers", shape.tail_layers, expected));
        }
        // A block of one slot would draft nothing.
        if !(2..=MAX_BLOCK_SIZE).contains(&self.block_size) {
            let expected = format!("2 to {MAX_BLOCK_SIZE}");
            return Err(TuneError::setting("block_size", self.block_size, expected));
        }
        self.training().validate()?;
        check_positive("calibrator_rate", self.calibrator_rate)?;
        check_share("ema", self.ema)?;
        if let Some(chain) = self.chain {
            if self.kind == DrafterChoice::Orthrus {
                let expected = "no chain, because an Orthrus drafter has none";
                return Err(TuneError::setting("chain", format!("{:?}", chain.kind), expected));
            }
            chain.validate()?;
        }
        if let Some(dir) = &self.init_from
            && (self.kind == DrafterChoice::Orthrus || self.whole_tail)
        {
            let expected = "no value for an Orthrus drafter or with whole_tail";
            return Err(TuneError::setting("init_from", dir.display(), expected));
        }
        if shape.rank == 0 && self.shortlist > 0 {
            // Only the bias of a calibrator keeps the other ids from being drafted.
            let expected = "0 for a drafter without a calibrator (rank 0, or an Orthrus drafter)";
            return Err(TuneError::setting("shortlist", self.shortlist, expected));
        }
        if let Some(token) = self.mask_token {
            if self.kind != DrafterChoice::Orthrus {
                let expected = "no value, because a FlexDraft drafter has a mask embedding of its own";
                return Err(TuneError::setting("mask_token", token, expected));
            }
            if token as usize >= target.vocab_size {
                let expected = format!("below {}, the target's vocabulary", target.vocab_size);
                return Err(TuneError::setting("mask_token", token, expected));
            }
        }
        Ok(())
    }

    /// Returns the sizes of the drafter's tensors, for a target with the configuration `target`.
    pub fn shape(&self, target: &ModelConfig) -> DrafterShape {
        let (kind, tail_layers, rank) = match self.kind {
            DrafterChoice::FlexDraft => (DrafterKind::FlexDraft, self.tail_layers, self.rank),
            DrafterChoice::Orthrus => (DrafterKind::Orthrus, target.layers, 0),
        };
        DrafterShape { kind, tail_layers, block_size: self.block_size, rank, whole_tail: self.whole_tail }
    }

    /// Returns the token whose embedding the mask rows of an Orthrus drafter start from.
    pub fn mask_token(&self, target: &ModelConfig) -> u32 {
        self.mask_token
            .unwrap_or_else(|| u32::try_from(target.vocab_size).unwrap_or(u32::MAX).saturating_sub(1))
    }
}

impl TrainingSettings for Settings {
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

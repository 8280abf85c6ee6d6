//! Loads a FlexDraft drafter, and checks that it fits its target.

use std::fmt::Display;
use std::path::Path;

use super::chain::{self, ChainConfig};
use super::collector::{Collected, Collector};
use super::source::TensorSource;
use super::{CalibratorWeights, DrafterWeights};
use crate::layout::MAX_BLOCK_SIZE;
use crate::model::LoadError;
use crate::model::config::hugging_face::attention_shape;
use crate::model::config::{Architecture, DrafterConfig, DrafterKind, ModelConfig, orthrus};
use crate::model::format::json::{Fields, JsonFile};
use crate::model::format::safetensors::Checkpoint;

impl DrafterWeights {
    /// Reads the drafter in `dir`, made for a target with configuration `target`, into memory.
    ///
    /// # Errors
    /// [`LoadError`] naming the file, key or tensor; [`LoadError::WrongTarget`] if the drafter was trained
    /// for a target with other dimensions.
    pub fn read(dir: &Path, target: &ModelConfig) -> Result<Self, LoadError> {
        let header = DrafterHeader::read(dir, target)?;
        Self::from_checkpoint(&header, target, &Checkpoint::read(dir)?)
    }

    /// Loads the drafter like [`read`](Self::read), with the weights memory-mapped.
    ///
    /// # Safety
    /// While the weights or a clone of one of their tensors are alive, no process may change or truncate
    /// their files.
    ///
    /// # Errors
    /// The errors of [`read`](Self::read).
    pub unsafe fn map(dir: &Path, target: &ModelConfig) -> Result<Self, LoadError> {
        let header = DrafterHeader::read(dir, target)?;
        // SAFETY: the caller guarantees that the files do not change.
        let checkpoint = unsafe { Checkpoint::map(dir)? };
        Self::from_checkpoint(&header, target, &checkpoint)
    }

    fn from_checkpoint(
        header: &DrafterHeader,
        target: &ModelConfig,
        checkpoint: &Checkpoint,
    ) -> Result<Self, LoadError> {
        target.validate()?;
        collect(header, target, checkpoint).or_first_problem(checkpoint)
    }
}

/// The contents of a drafter's `config.json`, checked against the target.
#[derive(Clone, Debug, PartialEq)]
pub(in crate::model) struct DrafterHeader {
    pub(in crate::model) config: DrafterConfig,
    /// True if the drafter's projectors have biases.
    attention_bias: bool,
    /// True if the drafter has a calibrator, which corrects drafts by the bonus token.
    calibrated: bool,
    /// The chain of the draft's slots, if the drafter has one.
    chain: Option<ChainConfig>,
}

impl DrafterHeader {
    pub(in crate::model) fn read(dir: &Path, target: &ModelConfig) -> Result<Self, LoadError> {
        let file = JsonFile::read(&dir.join("config.json"))?;
        let fields = file.fields();
        if fields.text("model_type")? == Some(orthrus::MODEL_TYPE) {
            let supported =
                "a FlexDraft drafter (an Orthrus drafter is loaded with the target in its directory)";
            return Err(fields.unsupported("model_type", supported));
        }
        // FlexDraft's released checkpoint has its configuration under `dflash_config`.
        let own = match fields.object("flexdraft_config")? {
            Some(own) => Some(own),
            None => fields.object("dflash_config")?,
        };
        let own = own.ok_or_else(|| fields.missing("flexdraft_config"))?;
        check_dimensions(&fields, target)?;
        let tail_layers = fields.required_count("num_hidden_layers", usize::MAX)?;
        check_tail(&fields, &own, tail_layers, target.layers)?;
        let block_size = fields.required_count("block_size", MAX_BLOCK_SIZE)?;
        let calibrated = own.flag("enable_anchor_bias_logits")?;
        Ok(Self {
            config: DrafterConfig { kind: DrafterKind::FlexDraft, tail_layers, block_size },
            attention_bias: fields.flag("attention_bias")?.unwrap_or(false),
            calibrated: calibrated.ok_or_else(|| own.missing("enable_anchor_bias_logits"))?,
            chain: ChainConfig::read(&own)?,
        })
    }

    /// Returns the calibrator's rank, if there is a calibrator: the rank of the stored W1, whatever the config says.
    pub(in crate::model) fn rank(&self, checkpoint: &Checkpoint) -> Option<usize> {
        self.calibrated.then(|| {
            let w1 = checkpoint.shape("anchor_bias_mlp.0.weight");
            w1.and_then(|shape| shape.first().copied()).unwrap_or(1).max(1)
        })
    }

    /// Returns the chain and the rank of its stored tensors, if there is a chain.
    pub(in crate::model) fn chain_and_rank(&self, checkpoint: &Checkpoint) -> Option<(ChainConfig, usize)> {
        self.chain.map(|config| (config, chain::rank(config, checkpoint)))
    }
}

fn same<T: PartialEq + Display>(
    fields: &Fields<'_>,
    what: &'static str,
    drafter: T,
    target: T,
) -> Result<(), LoadError> {
    if drafter == target {
        return Ok(());
    }
    Err(LoadError::WrongTarget {
        path: fields.path().into(),
        what,
        drafter: drafter.to_string(),
        target: target.to_string(),
    })
}

fn check_dimensions(fields: &Fields<'_>, target: &ModelConfig) -> Result<(), LoadError> {
    if let Some(model_type) = fields.text("model_type")? {
        // A drafter may have its own model type, but the type of another family is a contradiction.
        let family = Architecture::ALL.into_iter().find(|a| a.model_type() == model_type);
        if let Some(family) = family {
            same(fields, "model family", family.name(), target.architecture.name())?;
        }
    }
    let hidden_size = fields.required_count("hidden_size", usize::MAX)?;
    same(fields, "hidden size", hidden_size, target.hidden_size)?;
    let attention = attention_shape(fields, target.architecture, hidden_size)?;
    same(fields, "number of query heads", attention.q_heads, target.attention.q_heads)?;
    same(fields, "number of KV heads", attention.kv_heads, target.attention.kv_heads)?;
    same(fields, "head dimension", attention.head_dim, target.attention.head_dim)?;
    same(fields, "vocabulary size", fields.required_count("vocab_size", usize::MAX)?, target.vocab_size)
}

/// Checks that the drafter's layers are the last layers of the target.
fn check_tail(
    fields: &Fields<'_>,
    own: &Fields<'_>,
    tail_layers: usize,
    target_layers: usize,
) -> Result<(), LoadError> {
    let expected_layers = fields.required_count("num_target_layers", usize::MAX)?;
    same(fields, "number of target layers", expected_layers, target_layers)?;
    let first = target_layers.checked_sub(tail_layers).ok_or_else(|| {
        fields.invalid("num_hidden_layers", format!("at most the target's {target_layers} layers"))
    })?;
    let key = "target_layer_ids";
    let ids = own.list(key)?.ok_or_else(|| own.missing(key))?;
    let is_tail = ids.len() == tail_layers
        && ids.iter().zip(first..).all(|(id, expected)| id.as_u64() == Some(expected as u64));
    if is_tail {
        return Ok(());
    }
    let last = target_layers.saturating_sub(1);
    Err(own.invalid(key, format!("the target's last {tail_layers} layers, {first} to {last}, in order")))
}

/// Takes every tensor of a drafter out of a checkpoint, and records tensors that are missing or do not fit.
pub(in crate::model) fn collect(
    header: &DrafterHeader,
    target: &ModelConfig,
    checkpoint: &Checkpoint,
) -> Collected<DrafterWeights> {
    let mut tensors = Collector::new(checkpoint);
    let parts = Parts {
        attention_bias: header.attention_bias,
        calibrator_rank: header.rank(checkpoint),
        chain: header.chain_and_rank(checkpoint),
    };
    if let Err(problem) = chain::check_kind(header.chain, checkpoint) {
        tensors.report(problem);
    }
    let weights = build(&mut tensors, header.config.clone(), target, parts);
    tensors.finish(weights)
}

/// The parts that some drafters have and others lack.
pub(super) struct Parts {
    /// True if the projectors have biases.
    pub(super) attention_bias: bool,
    /// Rank of the calibrator; `None` for a drafter without one.
    pub(super) calibrator_rank: Option<usize>,
    /// Configuration and rank of the chain; `None` for a drafter without one.
    pub(super) chain: Option<(ChainConfig, usize)>,
}

/// Builds a drafter for `target`.
pub(super) fn build(
    tensors: &mut impl TensorSource,
    config: DrafterConfig,
    target: &ModelConfig,
    parts: Parts,
) -> Option<DrafterWeights> {
    let Parts { attention_bias, calibrator_rank, chain } = parts;
    let attention: Vec<_> = (0..config.tail_layers)
        .map(|i| tensors.attention(&format!("layers.{i}.self_attn"), target, attention_bias))
        .collect();
    let attention: Option<Vec<_>> = attention.into_iter().collect();
    let mask_embedding = tensors.tensor("mask_embedding", &[target.hidden_size]);
    let calibrator = calibrator_rank.map(|rank| {
        let hidden = tensors.linear("anchor_bias_mlp.0", [rank, 2 * target.hidden_size], true);
        let output = tensors.linear("anchor_bias_mlp.2", [target.vocab_size, rank], true);
        Some(CalibratorWeights { hidden: hidden?, output: output? })
    });
    let calibrator = match calibrator {
        Some(calibrator) => Some(calibrator?),
        None => None,
    };
    let chain = match chain {
        Some((config, rank)) => Some(chain::build(tensors, config, target, rank)?),
        None => None,
    };
    Some(DrafterWeights { config, attention: attention?, mask_embedding: mask_embedding?, calibrator, chain })
}

//! The tensors of an Orthrus drafter, which are in the checkpoint of its target.

use super::DrafterWeights;
use super::collector::{Collected, Collector};
use super::source::TensorSource;
use super::target::tensor_prefix;
use crate::model::config::orthrus::OrthrusConfig;
use crate::model::config::{DrafterConfig, ModelConfig};
use crate::model::format::safetensors::Checkpoint;
use crate::tensor::Tensor;

/// The suffix in the names of an Orthrus drafter's modules; the target's own modules have none.
const SUFFIX: &str = "_diff";

/// Takes every tensor of an Orthrus drafter out of a checkpoint, and records tensors that are missing or do not
/// fit. `embed` is the target's embedding, whose row for the mask token is the mask embedding; `None` if the
/// target has problems itself, and then there is no drafter.
pub(in crate::model) fn collect(
    config: OrthrusConfig,
    target: &ModelConfig,
    embed: Option<&Tensor>,
    checkpoint: &Checkpoint,
) -> Collected<DrafterWeights> {
    let mut tensors = Collector::new(checkpoint);
    let mask_embedding = embed.and_then(|embed| embed.row(config.mask_token_id as usize));
    let prefix = tensor_prefix(checkpoint);
    let weights = build(&mut tensors, prefix, config.drafter(target), target, mask_embedding);
    tensors.finish(weights)
}

/// Builds a drafter for `target` from tensors whose names start with `prefix`.
pub(super) fn build(
    tensors: &mut impl TensorSource,
    prefix: &str,
    config: DrafterConfig,
    target: &ModelConfig,
    mask_embedding: Option<Tensor>,
) -> Option<DrafterWeights> {
    let layer = |i: usize| {
        let name = format!("{prefix}layers.{i}.self_attn");
        tensors.attention_with_suffix(&name, SUFFIX, target, target.attention_bias)
    };
    let attention: Vec<_> = (0..config.tail_layers).map(layer).collect();
    let attention: Option<Vec<_>> = attention.into_iter().collect();
    Some(DrafterWeights {
        config,
        attention: attention?,
        mask_embedding: mask_embedding?,
        calibrator: None,
        chain: None,
    })
}

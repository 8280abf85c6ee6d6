//! The tensors of a target model, and how they are taken out of a checkpoint.

use super::collector::{Collected, Collector};
use super::source::TensorSource;
use super::{LayerWeights, TargetWeights};
use crate::model::LoadError;
use crate::model::config::ModelConfig;
use crate::model::format::safetensors::Checkpoint;

impl TargetWeights {
    /// Takes the weights of a model with configuration `config` out of a checkpoint.
    ///
    /// # Errors
    /// [`LoadError`] if a tensor is missing or has the wrong shape or element type.
    pub fn from_checkpoint(config: ModelConfig, checkpoint: &Checkpoint) -> Result<Self, LoadError> {
        config.validate()?;
        collect(config, checkpoint).or_first_problem(checkpoint)
    }
}

/// Takes every tensor of the model, and records problems.
pub(in crate::model) fn collect(config: ModelConfig, checkpoint: &Checkpoint) -> Collected<TargetWeights> {
    let mut tensors = Collector::new(checkpoint);
    let weights = build(&mut tensors, tensor_prefix(checkpoint), config);
    tensors.finish(weights)
}

/// Builds a target from tensors whose names start with `prefix`, except for `lm_head.weight`.
pub(super) fn build(
    tensors: &mut impl TensorSource,
    prefix: &str,
    config: ModelConfig,
) -> Option<TargetWeights> {
    let embedding_shape = [config.vocab_size, config.hidden_size];
    let embed = tensors.tensor(&format!("{prefix}embed_tokens.weight"), &embedding_shape);
    let layers: Vec<_> =
        (0..config.layers).map(|i| layer(tensors, &format!("{prefix}layers.{i}"), &config)).collect();
    let norm = tensors.tensor(&format!("{prefix}norm.weight"), &[config.hidden_size]);
    // The config decides whether the head is tied: the checkpoint of a tied model may hold a copy of the embedding
    // under the head's name.
    let lm_head = match config.tied_embeddings {
        true => embed.clone(),
        false => tensors.tensor("lm_head.weight", &embedding_shape),
    };
    let layers: Option<Vec<_>> = layers.into_iter().collect();
    Some(TargetWeights { config, embed: embed?, layers: layers?, norm: norm?, lm_head: lm_head? })
}

fn layer(tensors: &mut impl TensorSource, name: &str, config: &ModelConfig) -> Option<LayerWeights> {
    let (hidden, intermediate) = (config.hidden_size, config.intermediate_size);
    let input_norm = tensors.tensor(&format!("{name}.input_layernorm.weight"), &[hidden]);
    let attention = tensors.attention(&format!("{name}.self_attn"), config, config.attention_bias);
    let post_attention_norm = tensors.tensor(&format!("{name}.post_attention_layernorm.weight"), &[hidden]);
    let gate = tensors.linear(&format!("{name}.mlp.gate_proj"), [intermediate, hidden], config.mlp_bias);
    let up = tensors.linear(&format!("{name}.mlp.up_proj"), [intermediate, hidden], config.mlp_bias);
    let down = tensors.linear(&format!("{name}.mlp.down_proj"), [hidden, intermediate], config.mlp_bias);
    Some(LayerWeights {
        input_norm: input_norm?,
        attention: attention?,
        post_attention_norm: post_attention_norm?,
        gate: gate?,
        up: up?,
        down: down?,
    })
}

/// Returns the prefix of tensor names: `LlamaForCausalLM` saves its decoder's tensors under `model.`, the
/// bare `LlamaModel` does not.
fn tensor_prefix(checkpoint: &Checkpoint) -> &'static str {
    let bare =
        checkpoint.contains("embed_tokens.weight") && !checkpoint.contains("model.embed_tokens.weight");
    if bare { "" } else { "model." }
}

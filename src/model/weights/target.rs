//! The tensors of a target model, and how they are taken out of a checkpoint.

use super::collector::{Collected, Collector};
use super::source::TensorSource;
use super::{LayerWeights, TargetWeights};
use crate::model::LoadError;
use crate::model::config::ModelConfig;
use crate::model::format::safetensors::Checkpoint;
use crate::model::load_warning::LoadWarning;
use crate::tensor::{Elements, Tensor};

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

/// Takes every tensor of a target out of a checkpoint, and records tensors that are missing or do not fit.
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
    let pair = embedding_and_head(tensors, prefix, &config);
    let layers: Vec<_> =
        (0..config.layers).map(|i| layer(tensors, &format!("{prefix}layers.{i}"), &config)).collect();
    let norm = tensors.tensor(&format!("{prefix}norm.weight"), &[config.hidden_size]);
    let layers: Option<Vec<_>> = layers.into_iter().collect();
    let (embed, head) = pair?;
    let (lm_head, tied_embeddings, warnings) = match head {
        Head::Tied => (embed.clone(), true, Vec::new()),
        Head::Own(head) if !config.tied_embeddings => (head, false, Vec::new()),
        Head::Own(head) => (head, false, vec![LoadWarning::OwnHead]),
    };
    let config = ModelConfig { tied_embeddings, ..config };
    Some(TargetWeights { config, embed, layers: layers?, norm: norm?, lm_head, warnings })
}

/// The LM head of a model.
enum Head {
    /// The embedding matrix is the LM head too.
    Tied,
    Own(Tensor),
}

/// Takes the embedding and the LM head out of a checkpoint. If the configuration ties them, the tensors still
/// decide: the pair may be stored under the head's name only, and a stored head with values of its own is a
/// head of its own.
fn embedding_and_head(
    tensors: &mut impl TensorSource,
    prefix: &str,
    config: &ModelConfig,
) -> Option<(Tensor, Head)> {
    let shape = [config.vocab_size, config.hidden_size];
    let (embed_name, head_name) = (format!("{prefix}embed_tokens.weight"), "lm_head.weight");
    let head_stored = tensors.contains(head_name);
    if config.tied_embeddings && head_stored && !tensors.contains(&embed_name) {
        return Some((tensors.tensor(head_name, &shape)?, Head::Tied));
    }
    let embed = tensors.tensor(&embed_name, &shape);
    if config.tied_embeddings && !head_stored {
        return Some((embed?, Head::Tied));
    }
    let head = tensors.tensor(head_name, &shape);
    let (embed, head) = (embed?, head?);
    let same = config.tied_embeddings && same_values(&embed, &head);
    Some((embed, if same { Head::Tied } else { Head::Own(head) }))
}

/// Number of elements that are compared at once.
const PIECE: usize = 1024;

/// Returns whether two tensors of one shape have the same values, whatever types they are stored as.
fn same_values(a: &Tensor, b: &Tensor) -> bool {
    match (a.elements(), b.elements()) {
        (Elements::F32(a), Elements::F32(b)) => a == b,
        (Elements::F16(a), Elements::F16(b)) => a == b,
        (Elements::Bf16(a), Elements::Bf16(b)) => a == b,
        (a, b) => {
            // Piece by piece, so that blocks are not dequantised as a whole.
            let same_piece = |start: usize| {
                let end = (start + PIECE).min(a.len());
                let [a, b] = [a, b].map(|elements| {
                    let mut piece = [0.0; PIECE];
                    elements.read_f32(start..end, &mut piece[..end - start]);
                    piece
                });
                a == b
            };
            a.len() == b.len() && (0..a.len()).step_by(PIECE).all(same_piece)
        }
    }
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
pub(super) fn tensor_prefix(checkpoint: &Checkpoint) -> &'static str {
    let has = |prefix: &str| {
        ["embed_tokens.weight", "norm.weight"]
            .iter()
            .any(|name| checkpoint.contains(&format!("{prefix}{name}")))
    };
    if has("") && !has("model.") { "" } else { "model." }
}

//! The configuration of a model: the target's layers, its rotary embedding, and the drafter's tail layers.

pub(in crate::model) mod end_of_turn;
pub(in crate::model) mod gguf;
pub(in crate::model) mod hugging_face;
pub(in crate::model) mod orthrus;
pub mod rope;
mod unread;

use super::LoadError;
use crate::device::{AttentionShape, Rope};
use crate::layout::Prediction;

// Limits on the sizes in a configuration, far above the sizes of any model. They prevent a damaged config from
// requesting absurd amounts of memory, and the products of shapes from overflowing.
pub(in crate::model) const MAX_LAYERS: usize = 4096;
pub(in crate::model) const MAX_HEADS: usize = 1 << 14;
pub(in crate::model) const MAX_HIDDEN: usize = 1 << 24;
pub(in crate::model) const MAX_VOCAB: usize = 1 << 28;
pub(in crate::model) const MAX_CONTEXT: usize = 1 << 30;

/// The largest even head size for which rotary frequencies are made.
pub(in crate::model) const MAX_HEAD_DIM: usize = 4096;

/// A model family, defined by its decoder layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Architecture {
    /// Llama 2 and 3, and models with the same layer.
    Llama,
    /// Mistral: Llama's layer. A window of attention is supported only if it covers the context.
    Mistral,
    /// Qwen2 and 2.5 (dense): biases on q, k and v.
    Qwen2,
    /// Qwen3 (dense): RMSNorm over each q and k head.
    Qwen3,
    /// SmolLM3: Llama's layer, without rotation in some layers.
    SmolLm3,
}

impl Architecture {
    /// Every supported family.
    pub(in crate::model) const ALL: [Self; 5] =
        [Self::Llama, Self::Mistral, Self::Qwen2, Self::Qwen3, Self::SmolLm3];

    /// Returns the class with which transformers loads models of this family.
    pub fn name(self) -> &'static str {
        match self {
            Self::Llama => "LlamaForCausalLM",
            Self::Mistral => "MistralForCausalLM",
            Self::Qwen2 => "Qwen2ForCausalLM",
            Self::Qwen3 => "Qwen3ForCausalLM",
            Self::SmolLm3 => "SmolLM3ForCausalLM",
        }
    }

    /// Returns the family's `model_type` in a config.
    pub fn model_type(self) -> &'static str {
        match self {
            Self::Llama => "llama",
            Self::Mistral => "mistral",
            Self::Qwen2 => "qwen2",
            Self::Qwen3 => "qwen3",
            Self::SmolLm3 => "smollm3",
        }
    }

    /// Returns whether each q and k head is normed before its rotation.
    pub fn has_qk_norms(self) -> bool {
        self == Self::Qwen3
    }

    /// Returns whether the output projection of attention has a bias if q, k and v have one.
    pub(in crate::model) fn has_output_bias(self) -> bool {
        self != Self::Qwen2
    }
}

/// The configuration of a target model.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelConfig {
    /// Model family, which decides the layer's computation.
    pub architecture: Architecture,
    /// Hidden size H: elements of a token's row between layers.
    pub hidden_size: usize,
    /// Number of columns of the MLP's gate and up projections.
    pub intermediate_size: usize,
    /// Number L of decoder layers.
    pub layers: usize,
    /// Numbers of query heads and KV heads, and the size of a head.
    pub attention: AttentionShape,
    /// Vocabulary size V: the number of token ids.
    pub vocab_size: usize,
    /// Positions that the model was trained for: prompt and output together must not exceed them.
    pub context_len: usize,
    /// Epsilon of every RMSNorm of the model.
    pub rms_norm_eps: f32,
    /// The rotary embedding, with scaling applied.
    pub rope: Rope,
    /// Indices of the layers that do not rotate q and k, ascending.
    pub layers_without_rope: Vec<usize>,
    /// True if the q, k and v projections have biases, and the o projection too, except in Qwen2.
    pub attention_bias: bool,
    /// True if the MLP's gate, up and down projections have biases.
    pub mlp_bias: bool,
    /// True if the LM head is the embedding matrix.
    pub tied_embeddings: bool,
    /// End-of-sequence ids, from `generation_config.json` or the config.
    pub eos_ids: Vec<u32>,
}

impl ModelConfig {
    /// Checks the relations between fields that the rest of the crate relies on. Needed for a configuration made in
    /// code.
    ///
    /// # Errors
    /// [`LoadError::InvalidConfig`] naming the first invalid field.
    pub fn validate(&self) -> Result<(), LoadError> {
        let AttentionShape { q_heads, kv_heads, head_dim } = self.attention;
        let counts = [
            ("hidden_size", self.hidden_size, MAX_HIDDEN),
            ("intermediate_size", self.intermediate_size, MAX_HIDDEN),
            ("layers", self.layers, MAX_LAYERS),
            ("attention.q_heads", q_heads, MAX_HEADS),
            ("attention.kv_heads", kv_heads, MAX_HEADS),
            ("attention.head_dim", head_dim, MAX_HEAD_DIM),
            ("vocab_size", self.vocab_size, MAX_VOCAB),
            ("context_len", self.context_len, MAX_CONTEXT),
        ];
        let wrong =
            |field, value: String, expected: String| Err(LoadError::InvalidConfig { field, value, expected });
        for (field, value, limit) in counts {
            if !(1..=limit).contains(&value) {
                return wrong(field, value.to_string(), format!("1 to {limit}"));
            }
        }
        if !q_heads.is_multiple_of(kv_heads) {
            return wrong(
                "attention.kv_heads",
                kv_heads.to_string(),
                format!("a divisor of the number of query heads, {q_heads}"),
            );
        }
        if !head_dim.is_multiple_of(2) {
            return wrong("attention.head_dim", head_dim.to_string(), "an even number".into());
        }
        if self.rope.inv_freq.len() != head_dim / 2 {
            let expected = format!("{} frequencies, half of head_dim", head_dim / 2);
            return wrong("rope.inv_freq", format!("{} frequencies", self.rope.inv_freq.len()), expected);
        }
        if let Some(layer) = self.layers_without_rope.iter().find(|layer| **layer >= self.layers) {
            return wrong("layers_without_rope", layer.to_string(), format!("layers below {}", self.layers));
        }
        if !(self.rms_norm_eps.is_finite() && self.rms_norm_eps > 0.0) {
            return wrong("rms_norm_eps", self.rms_norm_eps.to_string(), "a finite number above 0".into());
        }
        Ok(())
    }
}

/// The kind of a drafter, which decides what its mask rows start from and which token each slot predicts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DrafterKind {
    /// FlexDraft (arXiv 2605.20022). Every slot is a mask row, and predicts the token at its own position. A group
    /// does not need the bonus token, so a pass can draft the next block while it verifies this one.
    FlexDraft,
    /// Orthrus (arXiv 2605.12825). Slot 0 is the bonus token itself, and every slot predicts the token at the next
    /// position. A group can only be computed once the bonus token is known, after the verification.
    Orthrus,
}

impl DrafterKind {
    /// Returns the kind's name.
    pub fn name(self) -> &'static str {
        match self {
            Self::FlexDraft => "FlexDraft",
            Self::Orthrus => "Orthrus",
        }
    }

    /// Returns whether a pass can draft the next block while it verifies this one. If not, drafts are made after the
    /// verification, in a pass of their own.
    pub fn drafts_while_verifying(self) -> bool {
        self == Self::FlexDraft
    }

    /// Returns the token that each slot predicts.
    pub fn prediction(self) -> Prediction {
        match self {
            Self::FlexDraft => Prediction::OwnPosition,
            Self::Orthrus => Prediction::NextPosition,
        }
    }
}

/// The configuration of a drafter.
#[derive(Clone, Debug, PartialEq)]
pub struct DrafterConfig {
    /// The kind of the drafter.
    pub kind: DrafterKind,
    /// Number N of tail layers: the target's last layers, in which the drafter works.
    pub tail_layers: usize,
    /// Block size S that the drafter was trained with, 1..=[`MAX_BLOCK_SIZE`](crate::layout::MAX_BLOCK_SIZE).
    pub block_size: usize,
}

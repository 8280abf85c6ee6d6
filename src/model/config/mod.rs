//! The configuration of a model: the target's layers, its rotary embedding, and the drafter's tail layers.

pub(in crate::model) mod gguf;
pub(in crate::model) mod hugging_face;
pub mod rope;

use super::LoadError;
use crate::device::{AttentionShape, Rope};

// Limits far above any model. They prevent a damaged config from requesting absurd amounts of memory, and the
// products of shapes from overflowing.
pub(in crate::model) const MAX_LAYERS: usize = 4096;
pub(in crate::model) const MAX_HEADS: usize = 1 << 14;
pub(in crate::model) const MAX_HIDDEN: usize = 1 << 24;
pub(in crate::model) const MAX_VOCAB: usize = 1 << 28;
pub(in crate::model) const MAX_CONTEXT: usize = 1 << 30;

/// The largest even head_dim for which rotary frequencies are made.
pub(in crate::model) const MAX_HEAD_DIM: usize = 4096;

/// A model family, defined by its decoder layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Architecture {
    /// Llama 2 and 3, and models with the same layer.
    Llama,
    /// Qwen3 (dense): RMSNorm over each q and k head.
    Qwen3,
}

impl Architecture {
    /// Every supported family.
    pub(in crate::model) const ALL: [Self; 2] = [Self::Llama, Self::Qwen3];

    /// Returns the class with which transformers loads models of this family.
    pub fn name(self) -> &'static str {
        match self {
            Self::Llama => "LlamaForCausalLM",
            Self::Qwen3 => "Qwen3ForCausalLM",
        }
    }

    /// Returns the family's `model_type` in a config.
    pub(in crate::model) fn model_type(self) -> &'static str {
        match self {
            Self::Llama => "llama",
            Self::Qwen3 => "qwen3",
        }
    }

    /// Returns whether each q and k head is normed before its rotation.
    pub fn has_qk_norms(self) -> bool {
        self == Self::Qwen3
    }
}

/// A target's configuration.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelConfig {
    /// The model family.
    pub architecture: Architecture,
    /// H: the hidden size.
    pub hidden_size: usize,
    /// Columns of the gate and up projections.
    pub intermediate_size: usize,
    /// L: the number of layers.
    pub layers: usize,
    /// Numbers of query heads and KV heads, and head_dim.
    pub attention: AttentionShape,
    /// V: the vocabulary size.
    pub vocab_size: usize,
    /// Positions that the model was trained for: prompt and output together must not exceed them.
    pub context_len: usize,
    /// Epsilon of every RMSNorm.
    pub rms_norm_eps: f32,
    /// The rotary embedding, with scaling applied.
    pub rope: Rope,
    /// Whether q, k, v and o projections have biases.
    pub attention_bias: bool,
    /// Whether gate, up and down projections have biases.
    pub mlp_bias: bool,
    /// Whether lm_head is the embedding matrix.
    pub tied_embeddings: bool,
    /// End-of-sequence ids, from `generation_config.json` or the config.
    pub eos_ids: Vec<u32>,
}

impl ModelConfig {
    /// Checks the relations that the rest of the crate relies on. Needed for a configuration made in code.
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
                return wrong(field, value.to_string(), format!("1..={limit}"));
            }
        }
        if !q_heads.is_multiple_of(kv_heads) {
            return wrong(
                "attention.kv_heads",
                kv_heads.to_string(),
                format!("a divisor of {q_heads} query heads"),
            );
        }
        if !head_dim.is_multiple_of(2) {
            return wrong("attention.head_dim", head_dim.to_string(), "an even number".into());
        }
        if self.rope.inv_freq.len() != head_dim / 2 {
            let expected = format!("{} of them, one for two dimensions of a head", head_dim / 2);
            return wrong("rope.inv_freq", format!("{} frequencies", self.rope.inv_freq.len()), expected);
        }
        if !(self.rms_norm_eps.is_finite() && self.rms_norm_eps > 0.0) {
            return wrong("rms_norm_eps", self.rms_norm_eps.to_string(), "a finite number above 0".into());
        }
        Ok(())
    }
}

/// A drafter's configuration.
#[derive(Clone, Debug, PartialEq)]
pub struct DrafterConfig {
    /// N: the number of tail layers.
    pub tail_layers: usize,
    /// S: the block size that the drafter was trained with,
    /// 1..=[`MAX_BLOCK_SIZE`](crate::layout::MAX_BLOCK_SIZE).
    pub block_size: usize,
}

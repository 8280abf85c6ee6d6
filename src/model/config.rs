//! What `config.json` says: the target's shape, its rotary embedding, the drafter's place in it.

use crate::device::{AttentionShape, Rope};

/// Model families, by their decoder layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Architecture {
    /// Llama 2 and 3, and models with the same layer.
    Llama,
    /// Qwen3 (dense): RMSNorm over each q and k head.
    Qwen3,
}

/// A target's configuration.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelConfig {
    /// The model family.
    pub architecture: Architecture,
    /// H.
    pub hidden_size: usize,
    /// Columns of the gate and up projections.
    pub intermediate_size: usize,
    /// L.
    pub layers: usize,
    /// Query heads, KV heads, head_dim.
    pub attention: AttentionShape,
    /// Vocabulary size V.
    pub vocab_size: usize,
    /// Positions that the model was trained for: prompt and output together may not exceed it.
    pub context_len: usize,
    /// Epsilon of every RMSNorm.
    pub rms_norm_eps: f32,
    /// The rotary embedding, scaling resolved.
    pub rope: Rope,
    /// Whether q, k, v and o projections have biases.
    pub attention_bias: bool,
    /// Whether gate, up and down projections have biases.
    pub mlp_bias: bool,
    /// Whether lm_head is the embedding.
    pub tied_embeddings: bool,
    /// End-of-sequence ids, from `generation_config.json` or the config.
    pub eos_ids: Vec<u32>,
}

/// A drafter's configuration.
#[derive(Clone, Debug, PartialEq)]
pub struct DrafterConfig {
    /// N, the number of tail layers.
    pub tail_layers: usize,
    /// S as trained, 1..=[`MAX_BLOCK_SIZE`](crate::layout::MAX_BLOCK_SIZE).
    pub block_size: usize,
}

//! A model's weights on the host, with every shape checked against its configuration.

pub(in crate::model) mod collector;
pub(in crate::model) mod drafter;
mod gguf;
mod random;
mod source;
pub(in crate::model) mod target;

use super::config::{DrafterConfig, ModelConfig};
use crate::tensor::Tensor;

/// A linear layer as stored: weight `[out, in]` and optional bias `[out]`.
#[derive(Clone, Debug)]
pub struct LinearWeights {
    /// `[out, in]`.
    pub weight: Tensor,
    /// `[out]`.
    pub bias: Option<Tensor>,
}

/// The attention projectors of one layer, the target's or the drafter's.
#[derive(Clone, Debug)]
pub struct AttentionWeights {
    /// `[q_heads · head_dim, hidden]`.
    pub q: LinearWeights,
    /// `[kv_heads · head_dim, hidden]`.
    pub k: LinearWeights,
    /// `[kv_heads · head_dim, hidden]`.
    pub v: LinearWeights,
    /// `[hidden, q_heads · head_dim]`.
    pub o: LinearWeights,
    /// RMSNorm weights over a q head and a k head, `[head_dim]` each (Qwen3).
    pub qk_norms: Option<(Tensor, Tensor)>,
}

/// One decoder layer of the target.
#[derive(Clone, Debug)]
pub struct LayerWeights {
    /// `[hidden]`.
    pub input_norm: Tensor,
    /// The target's own projectors.
    pub attention: AttentionWeights,
    /// `[hidden]`.
    pub post_attention_norm: Tensor,
    /// `[intermediate, hidden]`.
    pub gate: LinearWeights,
    /// `[intermediate, hidden]`.
    pub up: LinearWeights,
    /// `[hidden, intermediate]`.
    pub down: LinearWeights,
}

/// The target model.
#[derive(Clone, Debug)]
pub struct TargetWeights {
    /// What the shapes were checked against.
    pub config: ModelConfig,
    /// `[vocab, hidden]`.
    pub embed: Tensor,
    /// L layers.
    pub layers: Vec<LayerWeights>,
    /// `[hidden]`.
    pub norm: Tensor,
    /// `[vocab, hidden]`; the embedding itself where the two are tied.
    pub lm_head: Tensor,
}

/// The MLP of Bonus-guided Calibration:
/// `logits += W2 · silu(W1 · [embed(bonus); h] + b1) + b2`.
#[derive(Clone, Debug)]
pub struct CalibratorWeights {
    /// W1 `[r, 2 · hidden]` and b1 `[r]`; columns 0..hidden take the bonus token's embedding.
    pub hidden: LinearWeights,
    /// W2 `[vocab, r]` and b2 `[vocab]`.
    pub output: LinearWeights,
}

/// A FlexDraft drafter: what Attention Tuning and Bonus-guided Calibration added to a target.
#[derive(Clone, Debug)]
pub struct DrafterWeights {
    /// What the shapes were checked against.
    pub config: DrafterConfig,
    /// Projectors for mask rows in each tail layer, N of them.
    pub attention: Vec<AttentionWeights>,
    /// The hidden state with which every mask row enters the tail, `[hidden]`.
    pub mask_embedding: Tensor,
    /// Absent where the drafter was trained without one.
    pub calibrator: Option<CalibratorWeights>,
}

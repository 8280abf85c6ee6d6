//! Weights of a model on the host, with every shape checked against the configuration.

pub(in crate::model) mod chain;
pub(in crate::model) mod collector;
pub(in crate::model) mod drafter;
mod gguf;
pub(in crate::model) mod orthrus;
mod random;
mod source;
pub(in crate::model) mod target;

pub use self::chain::{ChainConfig, ChainKind, ChainWeights, MAX_CHAIN_TOP_K};
use super::config::{DrafterConfig, ModelConfig};
use super::load_warning::LoadWarning;
use crate::kernels::ModelShape;
use crate::tensor::Tensor;

/// The stored weights of a linear layer: weight `[out, in]` and optional bias `[out]`.
#[derive(Clone, Debug)]
pub struct LinearWeights {
    /// Weight of the linear layer, `[out, in]`.
    pub weight: Tensor,
    /// Bias of the linear layer, `[out]`, if there is one.
    pub bias: Option<Tensor>,
}

/// The attention projectors (projections to queries, keys and values, and from the heads' output) of one layer, from the
/// target or from the drafter.
#[derive(Clone, Debug)]
pub struct AttentionWeights {
    /// Query projector `[q_heads · head_dim, hidden]`.
    pub q: LinearWeights,
    /// Key projector `[kv_heads · head_dim, hidden]`.
    pub k: LinearWeights,
    /// Value projector `[kv_heads · head_dim, hidden]`.
    pub v: LinearWeights,
    /// Output projector `[hidden, q_heads · head_dim]`.
    pub o: LinearWeights,
    /// RMSNorm weights for a query head and a key head, `[head_dim]` each (Qwen3).
    pub qk_norms: Option<(Tensor, Tensor)>,
}

/// The weights of one decoder layer of the target.
#[derive(Clone, Debug)]
pub struct LayerWeights {
    /// RMSNorm weight before attention, `[hidden]`.
    pub input_norm: Tensor,
    /// The target's own attention projectors.
    pub attention: AttentionWeights,
    /// RMSNorm weight before the MLP, `[hidden]`.
    pub post_attention_norm: Tensor,
    /// Gate projection of the MLP, `[intermediate, hidden]`.
    pub gate: LinearWeights,
    /// Up projection of the MLP, `[intermediate, hidden]`.
    pub up: LinearWeights,
    /// Down projection of the MLP, `[hidden, intermediate]`.
    pub down: LinearWeights,
}

/// The weights of a target model.
#[derive(Clone, Debug)]
pub struct TargetWeights {
    /// The configuration that the shapes were checked against.
    pub config: ModelConfig,
    /// Token embedding `[vocab, hidden]`.
    pub embed: Tensor,
    /// The decoder layers, in order.
    pub layers: Vec<LayerWeights>,
    /// Final RMSNorm weight `[hidden]`.
    pub norm: Tensor,
    /// Output projection `[vocab, hidden]`; the embedding itself if the two are tied.
    pub lm_head: Tensor,
    /// Warnings about the model's files.
    pub warnings: Vec<LoadWarning>,
}

/// The weights of the calibrator, the MLP of Bonus-guided Calibration:
/// `logits += W2 · silu(W1 · [embed(bonus); h] + b1) + b2`.
#[derive(Clone, Debug)]
pub struct CalibratorWeights {
    /// The layer with W1 `[r, 2 · hidden]` and b1 `[r]`; columns 0..hidden multiply the bonus token's
    /// embedding.
    pub hidden: LinearWeights,
    /// The layer with W2 `[vocab, r]` and b2 `[vocab]`, whose output is added to the logits.
    pub output: LinearWeights,
}

/// The weights of a drafter: the parts that Attention Tuning, and for FlexDraft Bonus-guided Calibration, add to a
/// target.
#[derive(Clone, Debug)]
pub struct DrafterWeights {
    /// The configuration that the shapes were checked against.
    pub config: DrafterConfig,
    /// Projectors for the mask rows of each of the N tail layers.
    pub attention: Vec<AttentionWeights>,
    /// The hidden state with which mask rows enter the tail, `[hidden]`. Slot 0 of an Orthrus drafter enters as the
    /// bonus token's embedding instead.
    pub mask_embedding: Tensor,
    /// The calibrator; `None` if the drafter was trained without one, as an Orthrus drafter is.
    pub calibrator: Option<CalibratorWeights>,
    /// The weights that chain the slots of a draft; `None` if slots are drawn independently.
    pub chain: Option<ChainWeights>,
}

/// Returns the shapes of a target and its drafter, if it has one, that decide whether a device can run them.
pub fn model_shape(target: &TargetWeights, drafter: Option<&DrafterWeights>) -> ModelShape {
    let config = &target.config;
    let rank = |layer: &LinearWeights| layer.weight.shape().first().copied();
    let calibrator = drafter.and_then(|drafter| drafter.calibrator.as_ref());
    let chain = drafter.and_then(|drafter| drafter.chain.as_ref());
    let hidden_chain = chain.filter(|chain| chain.config.kind == ChainKind::Hidden);
    ModelShape {
        attention: config.attention,
        vocab: config.vocab_size,
        hidden: config.hidden_size,
        intermediate: config.intermediate_size,
        rank: calibrator.and_then(|calibrator| rank(&calibrator.hidden)),
        hidden_chain_rank: hidden_chain.and_then(|chain| rank(&chain.first)),
    }
}

/// The weights of a target, and of the drafter that its files hold, if they hold one.
#[derive(Clone, Debug)]
pub struct ModelWeights {
    /// The target's weights.
    pub target: TargetWeights,
    /// The drafter of an Orthrus model; `None` for any other model, whose drafter has files of its own.
    pub drafter: Option<DrafterWeights>,
}

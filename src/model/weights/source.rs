//! Takes the tensors of a linear layer or an attention block from any source.

use super::{AttentionWeights, LinearWeights};
use crate::model::config::ModelConfig;
use crate::tensor::Tensor;

/// A source of weights: a checkpoint, or a random generator.
///
/// For a tensor that is not available, the source returns `None` and records the reason. Code that builds a
/// part of a model requests all its tensors before it gives up, so that the source sees every request.
pub(super) trait TensorSource {
    /// Returns whether a stored tensor has this name.
    fn contains(&self, name: &str) -> bool;

    /// Returns the tensor with this name, if it has this shape.
    fn tensor(&mut self, name: &str, shape: &[usize]) -> Option<Tensor>;

    /// Returns the linear layer `name`: the tensor `{name}.weight` [out, in] and, if `bias` is true, `{name}.bias`
    /// [out].
    fn linear(&mut self, name: &str, shape: [usize; 2], bias: bool) -> Option<LinearWeights> {
        let weight = self.tensor(&format!("{name}.weight"), &shape);
        let bias = bias.then(|| self.tensor(&format!("{name}.bias"), &shape[..1]));
        Some(LinearWeights {
            weight: weight?,
            bias: match bias {
                Some(bias) => Some(bias?),
                None => None,
            },
        })
    }

    /// Returns the attention projectors and norms under `{name}.`, with the shapes of `config`.
    fn attention(&mut self, name: &str, config: &ModelConfig, bias: bool) -> Option<AttentionWeights> {
        self.attention_with_suffix(name, "", config, bias)
    }

    /// Returns the attention projectors and norms under `{name}.` whose names end with `suffix`, with the shapes of
    /// `config`.
    fn attention_with_suffix(
        &mut self,
        name: &str,
        suffix: &str,
        config: &ModelConfig,
        bias: bool,
    ) -> Option<AttentionWeights> {
        let shape = config.attention;
        let q_cols = shape.out_cols();
        let kv_cols = shape.kv_heads * shape.head_dim;
        let q = self.linear(&format!("{name}.q_proj{suffix}"), [q_cols, config.hidden_size], bias);
        let k = self.linear(&format!("{name}.k_proj{suffix}"), [kv_cols, config.hidden_size], bias);
        let v = self.linear(&format!("{name}.v_proj{suffix}"), [kv_cols, config.hidden_size], bias);
        let o = self.linear(
            &format!("{name}.o_proj{suffix}"),
            [config.hidden_size, q_cols],
            bias && config.architecture.has_output_bias(),
        );
        let norms = config.architecture.has_qk_norms().then(|| {
            let q_norm = self.tensor(&format!("{name}.q_norm{suffix}.weight"), &[shape.head_dim]);
            let k_norm = self.tensor(&format!("{name}.k_norm{suffix}.weight"), &[shape.head_dim]);
            Some((q_norm?, k_norm?))
        });
        let qk_norms = match norms {
            Some(norms) => Some(norms?),
            None => None,
        };
        Some(AttentionWeights { q: q?, k: k?, v: v?, o: o?, qk_norms })
    }
}

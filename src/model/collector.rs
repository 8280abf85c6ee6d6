//! Taking tensors out of a checkpoint, and remembering every one that does not fit.

use std::collections::BTreeSet;

use super::LoadError;
use super::checkpoint::Checkpoint;
use super::config::{Architecture, ModelConfig};
use super::weights::{AttentionWeights, LinearWeights};
use crate::tensor::Tensor;

/// Takes tensors from a checkpoint. A tensor that is missing or does not fit is `None` here and a
/// problem in the list, so that one traversal finds all of them.
pub(super) struct Collector<'a> {
    checkpoint: &'a Checkpoint,
    used: BTreeSet<String>,
    problems: Vec<LoadError>,
}

/// What a traversal found.
pub(super) struct Collected<T> {
    /// The weights, or everything that is wrong with them.
    pub(super) weights: Result<T, Vec<LoadError>>,
    /// Names of the tensors that were asked for and are there, fitting or not.
    pub(super) used: BTreeSet<String>,
}

impl<T> Collected<T> {
    /// The weights, or the first thing that is wrong with them.
    pub(super) fn or_first_problem(self, checkpoint: &Checkpoint) -> Result<T, LoadError> {
        self.weights.map_err(|problems| {
            let nothing = || LoadError::NoCheckpoint { dir: checkpoint.dir().into() };
            problems.into_iter().next().unwrap_or_else(nothing)
        })
    }
}

impl<'a> Collector<'a> {
    pub(super) fn new(checkpoint: &'a Checkpoint) -> Self {
        Self { checkpoint, used: BTreeSet::new(), problems: Vec::new() }
    }

    pub(super) fn checkpoint(&self) -> &'a Checkpoint {
        self.checkpoint
    }

    /// Ends the traversal. `weights` is `None` only if there was a problem.
    pub(super) fn finish<T>(self, weights: Option<T>) -> Collected<T> {
        let Self { used, problems, .. } = self;
        let weights = match weights {
            Some(weights) if problems.is_empty() => Ok(weights),
            _ => Err(problems),
        };
        Collected { weights, used }
    }

    pub(super) fn tensor(&mut self, name: &str, shape: &[usize]) -> Option<Tensor> {
        if self.checkpoint.contains(name) {
            self.used.insert(name.to_owned());
        }
        self.checkpoint.tensor_of_shape(name, shape).map_err(|problem| self.problems.push(problem)).ok()
    }

    /// `{name}.weight` [out, in], and `{name}.bias` [out] where there should be one.
    pub(super) fn linear(&mut self, name: &str, shape: [usize; 2], bias: bool) -> Option<LinearWeights> {
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

    /// The projectors and norms under `{name}.`, for the shapes of `config`.
    pub(super) fn attention(
        &mut self,
        name: &str,
        config: &ModelConfig,
        bias: bool,
    ) -> Option<AttentionWeights> {
        let shape = config.attention;
        let q_cols = shape.out_cols();
        let kv_cols = shape.kv_heads * shape.head_dim;
        let q = self.linear(&format!("{name}.q_proj"), [q_cols, config.hidden_size], bias);
        let k = self.linear(&format!("{name}.k_proj"), [kv_cols, config.hidden_size], bias);
        let v = self.linear(&format!("{name}.v_proj"), [kv_cols, config.hidden_size], bias);
        let o = self.linear(&format!("{name}.o_proj"), [config.hidden_size, q_cols], bias);
        let norms = (config.architecture == Architecture::Qwen3).then(|| {
            let q_norm = self.tensor(&format!("{name}.q_norm.weight"), &[shape.head_dim]);
            let k_norm = self.tensor(&format!("{name}.k_norm.weight"), &[shape.head_dim]);
            Some((q_norm?, k_norm?))
        });
        let qk_norms = match norms {
            Some(norms) => Some(norms?),
            None => None,
        };
        Some(AttentionWeights { q: q?, k: k?, v: v?, o: o?, qk_norms })
    }
}

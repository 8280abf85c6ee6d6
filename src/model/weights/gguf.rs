//! Loads the weights of a target from a GGUF file.

use std::collections::BTreeSet;

use super::collector::Collected;
use super::source::TensorSource;
use super::{TargetWeights, target};
use crate::model::LoadError;
use crate::model::config::gguf::ROPE_FACTORS;
use crate::model::config::{Architecture, ModelConfig};
use crate::model::format::gguf::{Gguf, QuantizedWeights};
use crate::model::load_error::shorten;
use crate::tensor::Tensor;

/// The names of a layer's parts in transformers and in ggml.
const LAYER_PARTS: [(&str, &str); 11] = [
    ("input_layernorm", "attn_norm"),
    ("self_attn.q_proj", "attn_q"),
    ("self_attn.k_proj", "attn_k"),
    ("self_attn.v_proj", "attn_v"),
    ("self_attn.o_proj", "attn_output"),
    ("self_attn.q_norm", "attn_q_norm"),
    ("self_attn.k_norm", "attn_k_norm"),
    ("post_attention_layernorm", "ffn_norm"),
    ("mlp.gate_proj", "ffn_gate"),
    ("mlp.up_proj", "ffn_up"),
    ("mlp.down_proj", "ffn_down"),
];

impl Gguf {
    /// Returns the weights of the target; quantised weights become bf16.
    ///
    /// # Errors
    /// The errors of [`config`](Self::config). Also if a tensor is missing, has the wrong shape, has an
    /// unsupported storage type ([`LoadError::UnsupportedQuantization`]), or does not belong to the
    /// architecture ([`LoadError::UnexpectedTensor`]).
    pub fn target(&self) -> Result<TargetWeights, LoadError> {
        self.target_with(QuantizedWeights::Bf16)
    }

    /// Returns the weights of the target, with quantised weights as `quantized` says.
    ///
    /// # Errors
    /// The errors of [`target`](Self::target).
    pub fn target_with(&self, quantized: QuantizedWeights) -> Result<TargetWeights, LoadError> {
        let weights = take(self, self.config()?, quantized, Problems::First).weights;
        let mut weights = weights.map_err(|problems| {
            let none = || LoadError::Gguf {
                path: self.path().into(),
                reason: "its tensors do not form a model".into(),
            };
            problems.into_iter().next().unwrap_or_else(none)
        })?;
        weights.warnings.splice(0..0, self.config_warnings());
        Ok(weights)
    }

    /// Returns the weights that a configuration requires, or all problems with them. All tensors are
    /// empty, except for embedding and LM head if their elements have to be compared.
    pub(in crate::model) fn collect(&self, config: ModelConfig) -> Collected<TargetWeights> {
        take(self, config, QuantizedWeights::Keep, Problems::All)
    }
}

/// The problems that a traversal of the tensors looks for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Problems {
    /// Only the first problem, which ends the traversal, so that no tensor is dequantised in vain.
    First,
    /// All problems, for a report, which does not compute with the weights: tensors are checked, and not decoded.
    All,
}

/// Takes the weights that a configuration requires out of a GGUF file. `used` in the result has ggml's names.
fn take(
    file: &Gguf,
    config: ModelConfig,
    quantized: QuantizedWeights,
    wanted: Problems,
) -> Collected<TargetWeights> {
    let architecture = config.architecture;
    let used = file.names().filter(|name| *name == ROPE_FACTORS).map(str::to_owned).collect();
    let mut source =
        GgufSource { file, config: config.clone(), quantized, used, wanted, problems: Vec::new() };
    let weights = target::build(&mut source, "model.", config);
    let GgufSource { used, mut problems, .. } = source;
    problems.extend(file.names().filter(|name| !used.contains(*name)).map(|tensor| {
        LoadError::UnexpectedTensor {
            path: file.path().into(),
            tensor: shorten(tensor),
            architecture: architecture.model_type(),
        }
    }));
    let weights = match weights {
        Some(weights) if problems.is_empty() => Ok(weights),
        _ => Err(problems),
    };
    Collected { weights, used }
}

/// Provides the tensors of a GGUF file under transformers' names.
struct GgufSource<'a> {
    file: &'a Gguf,
    config: ModelConfig,
    quantized: QuantizedWeights,
    /// ggml's names of the tensors that were requested.
    used: BTreeSet<String>,
    wanted: Problems,
    problems: Vec<LoadError>,
}

impl TensorSource for GgufSource<'_> {
    fn contains(&self, name: &str) -> bool {
        self.file.header().contains(&ggml_name(name))
    }

    fn tensor(&mut self, name: &str, shape: &[usize]) -> Option<Tensor> {
        if self.wanted == Problems::First && !self.problems.is_empty() {
            return None;
        }
        let ggml_name = ggml_name(name);
        // If the configuration ties embedding and LM head, and the file has both, their elements decide.
        let pair = ["model.embed_tokens.weight", "lm_head.weight"];
        let both = self.config.tied_embeddings && pair.iter().all(|name| self.contains(name));
        let is_compared = both && pair.contains(&name);
        let tensor = if self.wanted == Problems::All && !is_compared {
            self.file.stored_of_shape(&ggml_name, shape).map(|_| Tensor::empty())
        } else {
            let heads = self.permuted_heads(name);
            self.file.tensor_of_shape(&ggml_name, shape, heads, self.quantized)
        };
        if self.file.header().contains(&ggml_name) {
            self.used.insert(ggml_name);
        }
        tensor.map_err(|problem| self.problems.push(problem)).ok()
    }
}

impl GgufSource<'_> {
    /// Returns the number of heads whose rows are permuted in a tensor, if a tensor has permuted rows. The `llama`
    /// architecture rotates neighbouring dimensions, so the conversion to GGUF places dimension i + head_dim / 2 next
    /// to i.
    fn permuted_heads(&self, name: &str) -> Option<usize> {
        let attention = self.config.attention;
        let permuted = matches!(self.config.architecture, Architecture::Llama | Architecture::SmolLm3);
        let heads = [(".q_proj.", attention.q_heads), (".k_proj.", attention.kv_heads)];
        let heads = heads.into_iter().find(|(part, _)| permuted && name.contains(part));
        heads.map(|(_, heads)| heads)
    }
}

/// Returns ggml's name of a tensor of transformers.
fn ggml_name(name: &str) -> String {
    match name {
        "model.embed_tokens.weight" => return "token_embd.weight".into(),
        "model.norm.weight" => return "output_norm.weight".into(),
        "lm_head.weight" => return "output.weight".into(),
        _ => {}
    }
    let in_layer = name.strip_prefix("model.layers.").and_then(|rest| rest.split_once('.'));
    let renamed = in_layer.and_then(|(layer, part)| {
        let (part, kind) = part.rsplit_once('.')?;
        let (_, ggml_part) = LAYER_PARTS.iter().find(|(transformers_part, _)| *transformers_part == part)?;
        Some(format!("blk.{layer}.{ggml_part}.{kind}"))
    });
    renamed.unwrap_or_else(|| name.to_owned())
}

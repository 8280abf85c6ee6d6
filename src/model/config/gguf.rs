//! Reads a model's configuration from the metadata of a GGUF file.

use super::end_of_turn::end_ids;
use super::hugging_face::{SMOLLM3_INTERVAL, every};
use super::rope::{RopeScaling, Yarn, rope};
use super::{
    Architecture, MAX_CONTEXT, MAX_HEAD_DIM, MAX_HEADS, MAX_HIDDEN, MAX_LAYERS, MAX_VOCAB, ModelConfig,
    unread,
};
use crate::device::{AttentionShape, Rope};
use crate::model::format::gguf::{Gguf, Header};
use crate::model::format::json::Fields;
use crate::model::{LoadError, LoadWarning};

/// Name of the tensor `[head_dim / 2]` with divisors of the rotary frequencies, in which GGUF files store the rope
/// scaling of Llama 3.
pub(in crate::model) const ROPE_FACTORS: &str = "rope_freqs.weight";

/// The minimum number of tensors in a layer: two norms, four attention projections, three MLP projections.
const TENSORS_IN_LAYER: usize = 9;

/// Architecture keys that change what a layer computes, each with the only value that leaves the computation
/// unchanged.
const WITHOUT_EFFECT: [(&str, f64, &str); 12] = [
    ("expert_count", 0.0, "0: dense models only, no mixture of experts"),
    ("attention.clamp_kqv", 0.0, "0"),
    ("attention.max_alibi_bias", 0.0, "0"),
    ("attention.scale", 0.0, "0, which stands for 1/√head_dim"),
    ("attn_logit_softcapping", 0.0, "0"),
    ("final_logit_softcapping", 0.0, "0"),
    ("logit_scale", 0.0, "0, which stands for none"),
    ("embedding_scale", 0.0, "0, which stands for none"),
    ("residual_scale", 0.0, "0, which stands for none"),
    ("rope.scaling.attn_factor", 1.0, "1"),
    ("rope.scaling.yarn_attn_factor", 1.0, "1"),
    ("rope.scaling.yarn_ext_factor", 1.0, "1"),
];

impl Architecture {
    /// Returns the model family's name in the metadata key `general.architecture`. Mistral's models are stored as Llama's.
    pub(in crate::model) fn gguf_name(self) -> Option<&'static str> {
        (self != Self::Mistral).then(|| self.model_type())
    }
}

pub(in crate::model) fn architecture(header: &Header) -> Result<Architecture, LoadError> {
    let key = "general.architecture";
    let fields = header.fields();
    let name = fields.text(key)?.ok_or_else(|| fields.missing(key))?;
    Architecture::ALL.into_iter().find(|architecture| architecture.gguf_name() == Some(name)).ok_or_else(
        || {
            fields.unsupported(
                key,
                Architecture::ALL
                    .into_iter()
                    .filter_map(Architecture::gguf_name)
                    .collect::<Vec<_>>()
                    .join(", "),
            )
        },
    )
}

/// Returns the vocabulary size: the number of embeddings.
pub(in crate::model) fn vocab_size(header: &Header) -> Result<usize, LoadError> {
    let shape = &header.tensor("token_embd.weight")?.shape;
    match shape.as_slice() {
        &[vocab_size, _] if (1..=MAX_VOCAB).contains(&vocab_size) => Ok(vocab_size),
        _ => Err(LoadError::Gguf {
            path: header.path().into(),
            reason: format!(
                "tensor `token_embd.weight` has shape {shape:?}, expected [vocabulary, hidden size]"
            ),
        }),
    }
}

/// The metadata keys of an architecture, which start with the architecture's name.
struct ArchitectureFields<'a> {
    fields: Fields<'a>,
    name: &'static str,
}

impl ArchitectureFields<'_> {
    fn key(&self, key: &str) -> String {
        format!("{}.{key}", self.name)
    }

    fn count(&self, key: &str, limit: usize) -> Result<Option<usize>, LoadError> {
        self.fields.count(&self.key(key), limit)
    }

    fn required_count(&self, key: &str, limit: usize) -> Result<usize, LoadError> {
        self.fields.required_count(&self.key(key), limit)
    }

    fn positive(&self, key: &str) -> Result<Option<f64>, LoadError> {
        self.fields.positive(&self.key(key))
    }

    /// Returns the number above 0 that a key holds, or `None` if the key is missing or holds 0.
    fn nonzero(&self, key: &str) -> Result<Option<f64>, LoadError> {
        if self.fields.number(&self.key(key))? == Some(0.0) { Ok(None) } else { self.positive(key) }
    }

    fn invalid(&self, key: &str, expected: impl Into<String>) -> LoadError {
        self.fields.invalid(&self.key(key), expected)
    }

    fn unsupported(&self, key: &str, supported: impl Into<String>) -> LoadError {
        self.fields.unsupported(&self.key(key), supported)
    }
}

impl Gguf {
    /// Returns the configuration that the metadata and the tensors' shapes describe.
    ///
    /// # Errors
    /// [`LoadError`] naming a key or tensor that is missing, is invalid, or requests an unsupported feature.
    pub fn config(&self) -> Result<ModelConfig, LoadError> {
        read(self.header(), |name| self.tensor(name).map(|tensor| tensor.to_f32()))
    }

    /// Returns warnings about metadata that have no effect.
    pub(in crate::model) fn config_warnings(&self) -> Vec<LoadWarning> {
        let read = WITHOUT_EFFECT.iter().map(|(key, ..)| *key).chain(["rope.scaling.yarn_log_multiplier"]);
        match architecture(self.header()) {
            Ok(architecture) => unread::gguf(&self.header().fields(), architecture, read),
            Err(_) => Vec::new(),
        }
    }
}

/// Reads the configuration of a GGUF file without its weights.
pub(in crate::model) fn read_header(header: &Header) -> Result<ModelConfig, LoadError> {
    read(header, |name| header.read_tensor(name).map(|tensor| tensor.to_f32()))
}

/// Reads a model's configuration from the metadata of a GGUF file. `elements` returns the elements of a tensor.
fn read(
    header: &Header,
    elements: impl FnOnce(&str) -> Result<Vec<f32>, LoadError>,
) -> Result<ModelConfig, LoadError> {
    let architecture = architecture(header)?;
    let fields = ArchitectureFields { fields: header.fields(), name: architecture.model_type() };
    reject_unsupported(&fields)?;
    let hidden_size = fields.required_count("embedding_length", MAX_HIDDEN)?;
    let attention = attention_shape(&fields, hidden_size)?;
    let stated_context = fields.required_count("context_length", MAX_CONTEXT)?;
    let scaling = read_scaling(&fields, stated_context)?;
    let window = fields.fields.get(&fields.key("attention.sliding_window"));
    if window.is_some_and(|window| {
        window.as_u64().is_none_or(|window| window > 0 && window < stated_context as u64)
    }) {
        return Err(fields.unsupported("attention.sliding_window", "0: full attention in every layer"));
    }
    let factors = match header.contains(ROPE_FACTORS) {
        true => Some(rope_factors(header, attention.head_dim, elements)?),
        false => None,
    };
    let layers = layers(header, &fields)?;
    let config = ModelConfig {
        architecture,
        hidden_size,
        intermediate_size: fields.required_count("feed_forward_length", MAX_HIDDEN)?,
        layers,
        attention,
        vocab_size: vocab_size(header)?,
        context_len: scaling.context_len(stated_context),
        rms_norm_eps: {
            let key = "attention.layer_norm_rms_epsilon";
            fields.positive(key)?.ok_or_else(|| fields.fields.missing(&fields.key(key)))? as f32
        },
        rope: read_rope(&fields, attention.head_dim, &scaling, factors)?,
        // GGUF has no key for the layers that do not rotate q and k: in SmolLM3, every fourth layer does not.
        layers_without_rope: match architecture {
            Architecture::SmolLm3 => every(SMOLLM3_INTERVAL, layers),
            _ => Vec::new(),
        },
        // GGUF has no key for biases: the layers have biases if the tensors exist.
        attention_bias: header.contains("blk.0.attn_q.bias"),
        mlp_bias: header.contains("blk.0.ffn_gate.bias"),
        tied_embeddings: !header.contains("output.weight"),
        eos_ids: end_ids(header)?,
    };
    config.validate()?;
    Ok(config)
}

fn reject_unsupported(fields: &ArchitectureFields<'_>) -> Result<(), LoadError> {
    for (key, neutral, supported) in WITHOUT_EFFECT {
        if fields.fields.get(&fields.key(key)).is_some_and(|value| value.as_f64() != Some(neutral)) {
            return Err(fields.unsupported(key, supported));
        }
    }
    if fields.fields.flag(&fields.key("attention.causal"))? == Some(false) {
        return Err(fields.unsupported("attention.causal", "true"));
    }
    Ok(())
}

/// Returns the number of decoder layers. Nothing is allocated for layers that leave no trace in the file.
fn layers(header: &Header, fields: &ArchitectureFields<'_>) -> Result<usize, LoadError> {
    let key = "block_count";
    let layers = fields.required_count(key, MAX_LAYERS)?;
    let tensors = header.tensors().count();
    if layers > tensors / TENSORS_IN_LAYER {
        let most = tensors / TENSORS_IN_LAYER;
        return Err(
            fields.invalid(key, format!("at most {most}, because the file has only {tensors} tensors"))
        );
    }
    Ok(layers)
}

fn attention_shape(fields: &ArchitectureFields<'_>, hidden_size: usize) -> Result<AttentionShape, LoadError> {
    let q_heads = fields.required_count("attention.head_count", MAX_HEADS)?;
    let kv_heads = fields.count("attention.head_count_kv", MAX_HEADS)?.unwrap_or(q_heads);
    if q_heads % kv_heads != 0 {
        return Err(fields.invalid(
            "attention.head_count_kv",
            format!("a divisor of the number of query heads, {q_heads}"),
        ));
    }
    let head_dim = match fields.count("attention.key_length", MAX_HEAD_DIM)? {
        Some(head_dim) => head_dim,
        None if !hidden_size.is_multiple_of(q_heads) => {
            let expected = format!("a divisor of `{}`, {hidden_size}", fields.key("embedding_length"));
            return Err(fields.invalid("attention.head_count", expected));
        }
        None => hidden_size / q_heads,
    };
    if head_dim % 2 != 0 || head_dim > MAX_HEAD_DIM {
        let given = fields.fields.contains(&fields.key("attention.key_length"));
        let key = if given { "attention.key_length" } else { "attention.head_count" };
        let expected = format!("an even number of dimensions per head, at most {MAX_HEAD_DIM}");
        return Err(fields.invalid(key, expected));
    }
    // The attention kernels need value vectors as long as key vectors, and rotate all dimensions of a head.
    for key in ["attention.value_length", "rope.dimension_count"] {
        if fields.count(key, usize::MAX)?.is_some_and(|len| len != head_dim) {
            return Err(fields.unsupported(key, format!("{head_dim}, the size of a head")));
        }
    }
    Ok(AttentionShape { q_heads, kv_heads, head_dim })
}

/// Reads the scaling of the rotary embedding. The defaults are llama.cpp's.
fn read_scaling(fields: &ArchitectureFields<'_>, context_len: usize) -> Result<RopeScaling, LoadError> {
    let factor = match fields.nonzero("rope.scaling.factor")? {
        Some(factor) => Some(factor),
        None => fields.nonzero("rope.scale_linear")?,
    };
    Ok(match (fields.fields.text(&fields.key("rope.scaling.type"))?, factor) {
        (Some("none"), _) | (None | Some("linear" | "yarn"), None) => RopeScaling::Default,
        (None | Some("linear"), Some(factor)) => RopeScaling::Linear {
            factor,
            original_context: fields.nonzero("rope.scaling.original_context_length")?,
        },
        (Some("yarn"), Some(factor)) => {
            let original = fields.nonzero("rope.scaling.original_context_length")?;
            let mut yarn = Yarn::new(factor, original.unwrap_or(context_len as f64));
            yarn.beta_fast = fields.positive("rope.scaling.yarn_beta_fast")?.unwrap_or(yarn.beta_fast);
            yarn.beta_slow = fields.positive("rope.scaling.yarn_beta_slow")?.unwrap_or(yarn.beta_slow);
            let log_multiplier = fields.nonzero("rope.scaling.yarn_log_multiplier")?;
            if log_multiplier.is_some() {
                return Err(fields.unsupported("rope.scaling.yarn_log_multiplier", "0"));
            }
            RopeScaling::Yarn(yarn)
        }
        (Some(_), _) => return Err(fields.unsupported("rope.scaling.type", "none, linear, yarn")),
    })
}

/// Makes the rotary embedding. The default base is llama.cpp's.
fn read_rope(
    fields: &ArchitectureFields<'_>,
    head_dim: usize,
    scaling: &RopeScaling,
    factors: Option<Vec<f32>>,
) -> Result<Rope, LoadError> {
    let theta = fields.positive("rope.freq_base")?.unwrap_or(10_000.0);
    let mut rope = rope(head_dim, theta, scaling)
        .ok_or_else(|| fields.invalid("rope.freq_base", "a base that gives finite frequencies"))?;
    if let Some(factors) = factors {
        rope.inv_freq.iter_mut().zip(factors).for_each(|(frequency, factor)| *frequency /= factor);
    }
    Ok(rope)
}

fn rope_factors(
    header: &Header,
    head_dim: usize,
    elements: impl FnOnce(&str) -> Result<Vec<f32>, LoadError>,
) -> Result<Vec<f32>, LoadError> {
    let expected = vec![head_dim / 2];
    let found = &header.tensor(ROPE_FACTORS)?.shape;
    if *found != expected {
        return Err(LoadError::Shape {
            path: header.path().into(),
            tensor: ROPE_FACTORS.into(),
            expected,
            found: found.clone(),
        });
    }
    let factors = elements(ROPE_FACTORS)?;
    // Frequencies are divided by the factors, and a normal floating-point number has a finite inverse.
    match factors.iter().find(|factor| !(factor.is_normal() && **factor > 0.0)) {
        None => Ok(factors),
        Some(factor) => Err(LoadError::Gguf {
            path: header.path().into(),
            reason: format!("tensor `{ROPE_FACTORS}` has the element {factor}, expected numbers above 0"),
        }),
    }
}

//! Warnings about keys of a configuration that look as if they changed what a model computes, and that are not
//! read.

use serde_json::Value;

use super::Architecture;
use crate::model::format::json::Fields;
use crate::model::load_warning::LoadWarning;

/// Parts of key names by which a key is taken for one that changes what a model computes: scales and caps,
/// norms, positions, windows, experts.
const PARTS: [&str; 28] = [
    "scal",
    "mult",
    "factor",
    "cap",
    "clip",
    "clamp",
    "alibi",
    "rope",
    "rotary",
    "position",
    "window",
    "chunk",
    "norm",
    "gate",
    "logit",
    "residual",
    "attn",
    "attention",
    "sink",
    "moe",
    "expert",
    "mup",
    "depth",
    "bias",
    "temperature",
    "model_base",
    "freq",
    "parallel",
];

/// Keys of a `config.json` that are read, or that change nothing when a model generates text.
const HARMLESS: [&str; 38] = [
    "_attn_implementation",
    "_attn_implementation_autoset",
    "attn_implementation",
    "attention_dropout",
    "attention_probs_dropout_prob",
    "attn_pdrop",
    "bias",
    "first_attn_dropout",
    "head_dim",
    "layer_norm_eps",
    "layer_types",
    "logits_to_keep",
    "max_position_embeddings",
    "max_window_layers",
    "norm_eps",
    "num_attention_heads",
    "num_experts",
    "num_experts_per_tok",
    "num_local_experts",
    "num_logits_to_keep",
    "n_positions",
    "n_routed_experts",
    "original_max_position_embeddings",
    "output_attentions",
    "output_router_logits",
    "partial_rotary_factor",
    "position_embedding_type",
    "resid_pdrop",
    "rms_norm_eps",
    "rope_interleaved",
    "rope_parameters",
    "rope_scaling",
    "rope_theta",
    "router_aux_loss_coef",
    "router_jitter_noise",
    "scale_attn_weights",
    "temperature",
    "transformers.js_config",
];

/// Metadata keys of a GGUF file, without the architecture's name before them, that are read or that change
/// nothing.
const HARMLESS_METADATA: [&str; 22] = [
    "vocab_size",
    "context_length",
    "embedding_length",
    "block_count",
    "feed_forward_length",
    "tensor_data_layout",
    "attention.causal",
    "attention.head_count",
    "attention.head_count_kv",
    "attention.key_length",
    "attention.value_length",
    "attention.layer_norm_rms_epsilon",
    "attention.sliding_window",
    "rope.dimension_count",
    "rope.freq_base",
    "rope.scale_linear",
    "rope.scaling.type",
    "rope.scaling.factor",
    "rope.scaling.original_context_length",
    "rope.scaling.finetuned",
    "rope.scaling.yarn_beta_fast",
    "rope.scaling.yarn_beta_slow",
];

/// Returns a warning for every key of a `config.json` that looks as if it changed the model, and is not read.
pub(super) fn hugging_face(config: &Fields<'_>, architecture: Architecture) -> Vec<LoadWarning> {
    let read = |key: &str| match key {
        "no_rope_layers" | "no_rope_layer_interval" => architecture == Architecture::SmolLm3,
        "attention_bias" => !matches!(architecture, Architecture::Mistral | Architecture::Qwen2),
        "mlp_bias" => {
            matches!(architecture, Architecture::Llama | Architecture::Qwen3 | Architecture::SmolLm3)
        }
        "sliding_window" | "use_sliding_window" => architecture != Architecture::Llama,
        key => HARMLESS.contains(&key),
    };
    let suspicious = |key: &str| {
        let key_lower = key.to_ascii_lowercase();
        !read(key) && PARTS.iter().any(|part| key_lower.contains(part))
    };
    let mut warnings = unread(config, suspicious);
    for key in ["rope_parameters", "rope_scaling"] {
        if let Ok(Some(rope)) = config.object(key) {
            warnings.extend(rope_object(&rope));
            break;
        }
    }
    warnings
}

/// Returns a warning for every metadata key of a GGUF file's architecture that is not read. `read` are further
/// keys that are read.
pub(super) fn gguf<'a>(
    metadata: &Fields<'_>,
    architecture: Architecture,
    read: impl Iterator<Item = &'a str> + Clone,
) -> Vec<LoadWarning> {
    let Some(name) = architecture.gguf_name() else { return Vec::new() };
    let prefix = format!("{name}.");
    unread(metadata, |key| {
        let key = key.strip_prefix(&prefix);
        key.is_some_and(|key| {
            !HARMLESS_METADATA.contains(&key) && !read.clone().any(|read_key| read_key == key)
        })
    })
}

/// Returns a warning for every key of a `rope_parameters` or `rope_scaling` object that its rope type does not
/// read.
fn rope_object(rope: &Fields<'_>) -> Vec<LoadWarning> {
    let text = |key| rope.text(key).ok().flatten();
    let kind = text("rope_type").or_else(|| text("type")).unwrap_or("default");
    let both_scales = ["mscale", "mscale_all_dim"].iter().all(|key| rope.get(key).is_some());
    unread(rope, |key| match (kind, key) {
        (_, "rope_type" | "type" | "rope_theta" | "partial_rotary_factor" | "finetuned") => false,
        ("linear" | "llama3" | "yarn", "factor") => false,
        ("linear" | "llama3" | "yarn", "original_max_position_embeddings") => false,
        ("llama3", "low_freq_factor" | "high_freq_factor") => false,
        ("yarn", "beta_fast" | "beta_slow" | "truncate" | "attention_factor") => false,
        // transformers uses `mscale` and `mscale_all_dim` only together.
        ("yarn", "mscale" | "mscale_all_dim") => !both_scales,
        _ => true,
    })
}

fn unread(fields: &Fields<'_>, suspicious: impl Fn(&str) -> bool) -> Vec<LoadWarning> {
    let unread = fields.entries().filter(|(key, value)| suspicious(key) && !is_neutral(value));
    unread.map(|(key, _)| fields.unread(key)).collect()
}

/// Returns whether a key with this value leaves the model as it is: null, false, a 0 or 1, a text, an empty
/// list or object.
fn is_neutral(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(on) => !on,
        Value::Number(number) => matches!(number.as_f64(), Some(0.0 | 1.0)),
        // An infinity of Python, which arrives as text, switches a limit off; NaN does not.
        Value::String(text) => !matches!(text.as_str(), "NaN"),
        Value::Array(list) => list.is_empty(),
        Value::Object(object) => object.is_empty(),
    }
}

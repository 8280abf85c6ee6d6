//! Reads a model's configuration from a Hugging Face directory: `config.json` and `generation_config.json`.

use std::path::Path;

use serde_json::Value;

use super::{
    Architecture, MAX_CONTEXT, MAX_HEAD_DIM, MAX_HEADS, MAX_HIDDEN, MAX_LAYERS, MAX_VOCAB, ModelConfig, rope,
    unread,
};
use crate::device::AttentionShape;
use crate::model::format::files::if_exists;
use crate::model::format::json::{Fields, JsonFile};
use crate::model::{LoadError, LoadWarning};

/// Reads the configuration of a directory, as written by transformers 4 or 5, with warnings about it.
pub(in crate::model) fn read(dir: &Path) -> Result<(ModelConfig, Vec<LoadWarning>), LoadError> {
    let file = JsonFile::read(&dir.join("config.json"))?;
    let generation = if_exists(JsonFile::read(&dir.join("generation_config.json")))?;
    let mut config = from_fields(&file.fields())?;
    let generation = generation.as_ref().map(JsonFile::fields);
    config.eos_ids = match generation.map(|fields| eos_ids(&fields)).transpose()? {
        Some(ids) if !ids.is_empty() => ids,
        _ => eos_ids(&file.fields())?,
    };
    Ok((config, unread::hugging_face(&file.fields())))
}

fn architecture(config: &Fields<'_>) -> Result<Architecture, LoadError> {
    let supported = || Architecture::ALL.map(Architecture::name).join(", ");
    let model_type = config.text("model_type")?;
    let by_type = Architecture::ALL.into_iter().find(|a| Some(a.model_type()) == model_type);
    let architecture = match config.list("architectures")?.map(Vec::as_slice) {
        None | Some([]) if model_type.is_none() => return Err(config.missing("architectures")),
        None | Some([]) => by_type.ok_or_else(|| config.unsupported("model_type", "llama, qwen3"))?,
        Some([first, ..]) => Architecture::ALL
            .into_iter()
            .find(|a| first.as_str() == Some(a.name()))
            .ok_or_else(|| config.unsupported("architectures", supported()))?,
    };
    if model_type.is_some() && by_type != Some(architecture) {
        return Err(config.unsupported(
            "model_type",
            format!("{} for {}", architecture.model_type(), architecture.name()),
        ));
    }
    Ok(architecture)
}

fn from_fields(fields: &Fields<'_>) -> Result<ModelConfig, LoadError> {
    let architecture = architecture(fields)?;
    reject_unsupported(fields, architecture)?;
    let hidden_size = fields.required_count("hidden_size", MAX_HIDDEN)?;
    let attention = attention_shape(fields, architecture, hidden_size)?;
    let stated_context = fields.required_count("max_position_embeddings", MAX_CONTEXT)?;
    let (rope, scaling) = rope::from_config(fields, attention.head_dim, stated_context)?;
    Ok(ModelConfig {
        architecture,
        hidden_size,
        intermediate_size: fields.required_count("intermediate_size", MAX_HIDDEN)?,
        layers: fields.required_count("num_hidden_layers", MAX_LAYERS)?,
        attention,
        vocab_size: fields.required_count("vocab_size", MAX_VOCAB)?,
        context_len: scaling.context_len(stated_context),
        rms_norm_eps: fields.positive("rms_norm_eps")?.unwrap_or(1e-6) as f32,
        rope,
        attention_bias: fields.flag("attention_bias")?.unwrap_or(false),
        mlp_bias: fields.flag("mlp_bias")?.unwrap_or(false),
        tied_embeddings: fields.flag("tie_word_embeddings")?.unwrap_or(false),
        eos_ids: Vec::new(),
    })
}

/// Reads numbers of heads and their dimensions, from the config of a target or of a drafter.
pub(in crate::model) fn attention_shape(
    fields: &Fields<'_>,
    architecture: Architecture,
    hidden_size: usize,
) -> Result<AttentionShape, LoadError> {
    let q_heads = fields.required_count("num_attention_heads", MAX_HEADS)?;
    let kv_heads = fields.count("num_key_value_heads", MAX_HEADS)?.unwrap_or(q_heads);
    if !q_heads.is_multiple_of(kv_heads) {
        return Err(fields
            .invalid("num_key_value_heads", format!("a divisor of the number of query heads, {q_heads}")));
    }
    let head_dim = match fields.count("head_dim", MAX_HEAD_DIM)? {
        Some(head_dim) => head_dim,
        // The default head size of transformers' Qwen3Config, whatever the hidden size.
        None if architecture == Architecture::Qwen3 && !fields.contains("head_dim") => 128,
        None if !hidden_size.is_multiple_of(q_heads) => {
            return Err(
                fields.invalid("num_attention_heads", format!("a divisor of `hidden_size`, {hidden_size}"))
            );
        }
        None => hidden_size / q_heads,
    };
    if !head_dim.is_multiple_of(2) || head_dim > MAX_HEAD_DIM {
        let derived = if fields.get("head_dim").is_some() { "head_dim" } else { "hidden_size" };
        return Err(fields
            .invalid(derived, format!("an even number of dimensions per head, at most {}", MAX_HEAD_DIM)));
    }
    Ok(AttentionShape { q_heads, kv_heads, head_dim })
}

fn reject_unsupported(fields: &Fields<'_>, architecture: Architecture) -> Result<(), LoadError> {
    for key in ["num_experts", "num_local_experts", "n_routed_experts"] {
        if fields.get(key).is_some_and(|value| value.as_u64() != Some(0)) {
            return Err(fields.unsupported(key, "dense models only, no mixture of experts"));
        }
    }
    if fields.get("quantization_config").is_some() {
        return Err(fields.unsupported("quantization_config", "weights stored as F32, F16 or BF16"));
    }
    if !matches!(fields.text("hidden_act")?, None | Some("silu")) {
        return Err(fields.unsupported("hidden_act", "silu"));
    }
    // In transformers, Qwen3's MLP has no biases, whatever the key says.
    if architecture == Architecture::Qwen3 && fields.flag("mlp_bias")? == Some(true) {
        return Err(fields.unsupported("mlp_bias", "false for Qwen3ForCausalLM"));
    }
    let full = |kind: &Value| kind.as_str() == Some("full_attention");
    match fields.list("layer_types")? {
        Some(types) if !types.iter().all(full) => {
            Err(fields.unsupported("layer_types", "full_attention in every layer"))
        }
        Some(_) => Ok(()),
        None => reject_sliding_window(fields),
    }
}

/// Rejects a model whose attention has a sliding window. Before the key `layer_types` existed, a window applied from
/// layer `max_window_layers` on.
fn reject_sliding_window(fields: &Fields<'_>) -> Result<(), LoadError> {
    let used = fields.flag("use_sliding_window")? == Some(true)
        && (fields.get("sliding_window").is_some() || !fields.contains("sliding_window"));
    let full_layers = fields.get("max_window_layers").map_or(Some(28), Value::as_u64);
    let layers = fields.get("num_hidden_layers").and_then(Value::as_u64);
    match (full_layers, layers) {
        (Some(full), Some(layers)) if full >= layers => Ok(()),
        _ if used => Err(fields.unsupported("use_sliding_window", "false, or no layer with a window")),
        _ => Ok(()),
    }
}

/// Returns the token ids of `eos_token_id`, which may be absent, one id, or a list.
fn eos_ids(fields: &Fields<'_>) -> Result<Vec<u32>, LoadError> {
    let key = "eos_token_id";
    let id = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok());
    let ids = match fields.get(key) {
        None => Some(Vec::new()),
        Some(Value::Array(ids)) => ids.iter().map(id).collect(),
        Some(value) => id(value).map(|id| vec![id]),
    };
    ids.ok_or_else(|| fields.invalid(key, "a token id or a list of token ids"))
}

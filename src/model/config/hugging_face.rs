//! Reads a model's configuration from a Hugging Face directory: `config.json` and `generation_config.json`.

use std::path::Path;

use serde_json::Value;

use super::orthrus::{self, OrthrusConfig};
use super::{
    Architecture, MAX_CONTEXT, MAX_HEAD_DIM, MAX_HEADS, MAX_HIDDEN, MAX_LAYERS, MAX_VOCAB, ModelConfig, rope,
    unread,
};
use crate::device::AttentionShape;
use crate::model::format::files::if_exists;
use crate::model::format::json::{Fields, JsonFile};
use crate::model::{LoadError, LoadWarning};

/// The contents of a directory's `config.json` and `generation_config.json`.
pub(in crate::model) struct DirectoryConfig {
    pub(in crate::model) target: ModelConfig,
    /// The drafter's keys, if the directory is an Orthrus model.
    pub(in crate::model) orthrus: Option<OrthrusConfig>,
    pub(in crate::model) warnings: Vec<LoadWarning>,
}

/// Reads the configuration of a directory, as written by transformers 4 or 5, with warnings about it.
pub(in crate::model) fn read(dir: &Path) -> Result<DirectoryConfig, LoadError> {
    let file = JsonFile::read(&dir.join("config.json"))?;
    let generation = if_exists(JsonFile::read(&dir.join("generation_config.json")))?;
    let class = Class::of(&file.fields())?;
    let mut target = from_fields(&file.fields(), class.architecture())?;
    let orthrus = match class {
        Class::Target(_) => None,
        Class::Orthrus => Some(OrthrusConfig::from_fields(&file.fields(), &target)?),
    };
    let generation = generation.as_ref().map(JsonFile::fields);
    target.eos_ids = match generation.map(|fields| eos_ids(&fields)).transpose()? {
        Some(ids) if !ids.is_empty() => ids,
        _ => eos_ids(&file.fields())?,
    };
    let warnings = unread::hugging_face(&file.fields(), target.architecture);
    Ok(DirectoryConfig { target, orthrus, warnings })
}

/// The class of a model, as `architectures` and `model_type` name it.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Class {
    /// A target alone.
    Target(Architecture),
    /// A Qwen3 with an Orthrus drafter.
    Orthrus,
}

impl Class {
    fn all() -> impl Iterator<Item = Self> {
        Architecture::ALL.into_iter().map(Self::Target).chain([Self::Orthrus])
    }

    fn name(self) -> &'static str {
        match self {
            Self::Target(architecture) => architecture.name(),
            Self::Orthrus => orthrus::CLASS,
        }
    }

    fn model_type(self) -> &'static str {
        match self {
            Self::Target(architecture) => architecture.model_type(),
            Self::Orthrus => orthrus::MODEL_TYPE,
        }
    }

    fn architecture(self) -> Architecture {
        match self {
            Self::Target(architecture) => architecture,
            Self::Orthrus => Architecture::Qwen3,
        }
    }

    fn of(config: &Fields<'_>) -> Result<Self, LoadError> {
        let list = |name: fn(Self) -> &'static str| Self::all().map(name).collect::<Vec<_>>().join(", ");
        let model_type = config.text("model_type")?;
        let by_type = Self::all().find(|class| Some(class.model_type()) == model_type);
        let class = match config.list("architectures")?.map(Vec::as_slice) {
            None | Some([]) if model_type.is_none() => return Err(config.missing("architectures")),
            None | Some([]) => {
                by_type.ok_or_else(|| config.unsupported("model_type", list(Self::model_type)))?
            }
            Some([first, ..]) => Self::all()
                .find(|class| first.as_str() == Some(class.name()))
                .ok_or_else(|| config.unsupported("architectures", list(Self::name)))?,
        };
        if model_type.is_some() && by_type != Some(class) {
            let supported = format!("{} for {}", class.model_type(), class.name());
            return Err(config.unsupported("model_type", supported));
        }
        Ok(class)
    }
}

fn from_fields(fields: &Fields<'_>, architecture: Architecture) -> Result<ModelConfig, LoadError> {
    reject_unsupported(fields, architecture)?;
    let hidden_size = fields.required_count("hidden_size", MAX_HIDDEN)?;
    let attention = attention_shape(fields, architecture, hidden_size)?;
    let stated_context = fields.required_count("max_position_embeddings", MAX_CONTEXT)?;
    let default_theta = if architecture == Architecture::SmolLm3 { 2_000_000.0 } else { 10_000.0 };
    let (rope, scaling) = rope::from_config(fields, attention.head_dim, stated_context, default_theta)?;
    let context_len = scaling.context_len(stated_context);
    let layers = fields.required_count("num_hidden_layers", MAX_LAYERS)?;
    reject_sliding_window(fields, architecture, layers, context_len)?;
    // In transformers, Qwen2 and Mistral do not read `attention_bias` and `mlp_bias`.
    let (attention_bias, mlp_bias) = match architecture {
        Architecture::Qwen2 => (true, false),
        Architecture::Mistral => (false, false),
        _ => (fields.flag("attention_bias")?.unwrap_or(false), fields.flag("mlp_bias")?.unwrap_or(false)),
    };
    let tied = fields.flag("tie_word_embeddings")?.unwrap_or(architecture == Architecture::SmolLm3);
    Ok(ModelConfig {
        architecture,
        hidden_size,
        intermediate_size: fields.required_count("intermediate_size", MAX_HIDDEN)?,
        layers,
        attention,
        vocab_size: fields.required_count("vocab_size", MAX_VOCAB)?,
        context_len,
        rms_norm_eps: fields.positive("rms_norm_eps")?.unwrap_or(1e-6) as f32,
        rope,
        layers_without_rope: layers_without_rope(fields, architecture, layers)?,
        attention_bias,
        mlp_bias,
        tied_embeddings: tied,
        eos_ids: Vec::new(),
    })
}

/// Returns the indices of SmolLM3's layers that do not rotate q and k: the layers with a 0 in `no_rope_layers`,
/// or without this key every `no_rope_layer_interval`-th layer.
fn layers_without_rope(
    fields: &Fields<'_>,
    architecture: Architecture,
    layers: usize,
) -> Result<Vec<usize>, LoadError> {
    if architecture != Architecture::SmolLm3 {
        return Ok(Vec::new());
    }
    let key = "no_rope_layers";
    let Some(rotated) = fields.list(key)? else {
        let interval = fields.count("no_rope_layer_interval", MAX_LAYERS)?.unwrap_or(SMOLLM3_INTERVAL);
        return Ok(every(interval, layers));
    };
    let rotates: Option<Vec<bool>> =
        rotated.iter().map(|value| value.as_u64().map(|flag| flag != 0).or(value.as_bool())).collect();
    match rotates.filter(|rotates| rotates.len() == layers) {
        Some(rotates) => {
            Ok((0..layers).zip(rotates).filter(|(_, rotates)| !rotates).map(|(i, _)| i).collect())
        }
        None => {
            Err(fields
                .invalid(key, format!("{layers} numbers, one per layer, 0 for layers without rotation")))
        }
    }
}

/// The default of `no_rope_layer_interval`: every fourth layer of SmolLM3 does not rotate q and k.
pub(super) const SMOLLM3_INTERVAL: usize = 4;

/// Returns the indices of every `interval`-th of `layers` layers.
pub(super) fn every(interval: usize, layers: usize) -> Vec<usize> {
    (0..layers).filter(|layer| (layer + 1).is_multiple_of(interval)).collect()
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
    Ok(())
}

/// Rejects a sliding window that is shorter than the context. A longer one has no effect.
fn reject_sliding_window(
    fields: &Fields<'_>,
    architecture: Architecture,
    layers: usize,
    context_len: usize,
) -> Result<(), LoadError> {
    // Without the key, the families with sliding windows have a window of 4096 positions in transformers.
    let window = match fields.contains("sliding_window") {
        true => fields.count("sliding_window", usize::MAX)?,
        false => Some(4096),
    };
    let covered = window.is_some_and(|window| window >= context_len);
    if let Some(types) = fields.list("layer_types")? {
        let supported = |kind: &Value| match kind.as_str() {
            Some("full_attention") => true,
            Some("sliding_attention") => covered,
            _ => false,
        };
        return match types.iter().all(supported) {
            true => Ok(()),
            false => Err(fields.unsupported("layer_types", "full_attention in every layer")),
        };
    }
    if covered || window.is_none() {
        return Ok(());
    }
    if architecture == Architecture::Mistral {
        let supported = format!("null, or a window that covers the context of {context_len} positions");
        return Err(fields.unsupported("sliding_window", supported));
    }
    // Before the key `layer_types` existed, a sliding window applied from layer `max_window_layers` on.
    let used = fields.flag("use_sliding_window")? == Some(true);
    let full_layers = fields.get("max_window_layers").map_or(Some(28), Value::as_u64);
    match full_layers {
        Some(full) if full >= layers as u64 => Ok(()),
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

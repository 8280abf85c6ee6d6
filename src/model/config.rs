//! What `config.json` says: the target's shape, its rotary embedding, the drafter's place in it.

use std::path::Path;

use serde_json::Value;

use super::json::{Fields, JsonFile, if_exists};
use super::rope;
use super::{LoadError, gguf};
use crate::device::{AttentionShape, Rope};

// Bounds that no model comes near. They keep a damaged config from asking for absurd memory, and
// the products of shapes from overflowing.
pub(super) const MAX_LAYERS: usize = 4096;
pub(super) const MAX_HEADS: usize = 1 << 14;
pub(super) const MAX_HIDDEN: usize = 1 << 24;
pub(super) const MAX_VOCAB: usize = 1 << 28;
pub(super) const MAX_CONTEXT: usize = 1 << 30;

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

impl Architecture {
    /// The class that transformers loads such a model with.
    pub fn name(self) -> &'static str {
        match self {
            Self::Llama => "LlamaForCausalLM",
            Self::Qwen3 => "Qwen3ForCausalLM",
        }
    }

    /// `model_type` in a config.
    pub(super) fn model_type(self) -> &'static str {
        match self {
            Self::Llama => "llama",
            Self::Qwen3 => "qwen3",
        }
    }

    /// Whether each q and k head is normed before its rotation.
    pub fn has_qk_norms(self) -> bool {
        self == Self::Qwen3
    }

    fn from_config(config: &Fields<'_>) -> Result<Self, LoadError> {
        const ALL: [Architecture; 2] = [Architecture::Llama, Architecture::Qwen3];
        let supported = || ALL.map(Self::name).join(", ");
        let model_type = config.text("model_type")?;
        let by_type = ALL.into_iter().find(|a| Some(a.model_type()) == model_type);
        let architecture = match config.list("architectures")?.map(Vec::as_slice) {
            None | Some([]) if model_type.is_none() => return Err(config.missing("architectures")),
            None | Some([]) => by_type.ok_or_else(|| config.unsupported("model_type", "llama, qwen3"))?,
            Some([first, ..]) => ALL
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
}

impl ModelConfig {
    /// Reads `config.json` and, for the end-of-sequence ids, `generation_config.json` of a directory
    /// as transformers 4 or 5 writes them, or the metadata of a GGUF file.
    ///
    /// # Errors
    /// [`LoadError`] if a file cannot be read, a key is missing or has a value that makes no sense,
    /// or the model needs something that is not supported.
    pub fn read(dir: &Path) -> Result<Self, LoadError> {
        if gguf::is_file(dir) {
            return gguf::read_config(dir);
        }
        let file = JsonFile::read(&dir.join("config.json"))?;
        let generation = if_exists(JsonFile::read(&dir.join("generation_config.json")))?;
        let mut config = Self::from_fields(&file.fields())?;
        let generation = generation.as_ref().map(JsonFile::fields);
        config.eos_ids = match generation.map(|fields| eos_ids(&fields)).transpose()? {
            Some(ids) if !ids.is_empty() => ids,
            _ => eos_ids(&file.fields())?,
        };
        Ok(config)
    }

    fn from_fields(fields: &Fields<'_>) -> Result<Self, LoadError> {
        let architecture = Architecture::from_config(fields)?;
        reject_unsupported(fields, architecture)?;
        let hidden_size = fields.required_count("hidden_size", MAX_HIDDEN)?;
        let attention = attention_shape(fields, architecture, hidden_size)?;
        let context_len = fields.required_count("max_position_embeddings", MAX_CONTEXT)?;
        Ok(Self {
            architecture,
            hidden_size,
            intermediate_size: fields.required_count("intermediate_size", MAX_HIDDEN)?,
            layers: fields.required_count("num_hidden_layers", MAX_LAYERS)?,
            attention,
            vocab_size: fields.required_count("vocab_size", MAX_VOCAB)?,
            context_len,
            rms_norm_eps: fields.positive("rms_norm_eps")?.unwrap_or(1e-6) as f32,
            rope: rope::from_config(fields, attention.head_dim, context_len)?,
            attention_bias: fields.flag("attention_bias")?.unwrap_or(false),
            mlp_bias: fields.flag("mlp_bias")?.unwrap_or(false),
            tied_embeddings: fields.flag("tie_word_embeddings")?.unwrap_or(false),
            eos_ids: Vec::new(),
        })
    }

    /// Checks the relations that the rest of the crate relies on, for a configuration made in code.
    ///
    /// # Errors
    /// [`LoadError::InvalidConfig`] naming the first field that does not fit.
    pub fn validate(&self) -> Result<(), LoadError> {
        let AttentionShape { q_heads, kv_heads, head_dim } = self.attention;
        let counts = [
            ("hidden_size", self.hidden_size, MAX_HIDDEN),
            ("intermediate_size", self.intermediate_size, MAX_HIDDEN),
            ("layers", self.layers, MAX_LAYERS),
            ("attention.q_heads", q_heads, MAX_HEADS),
            ("attention.kv_heads", kv_heads, MAX_HEADS),
            ("attention.head_dim", head_dim, rope::MAX_HEAD_DIM),
            ("vocab_size", self.vocab_size, MAX_VOCAB),
            ("context_len", self.context_len, MAX_CONTEXT),
        ];
        let wrong =
            |field, value: String, expected: String| Err(LoadError::InvalidConfig { field, value, expected });
        for (field, value, limit) in counts {
            if !(1..=limit).contains(&value) {
                return wrong(field, value.to_string(), format!("1..={limit}"));
            }
        }
        if !q_heads.is_multiple_of(kv_heads) {
            return wrong(
                "attention.kv_heads",
                kv_heads.to_string(),
                format!("a divisor of {q_heads} query heads"),
            );
        }
        if !head_dim.is_multiple_of(2) {
            return wrong("attention.head_dim", head_dim.to_string(), "an even number".into());
        }
        if self.rope.inv_freq.len() != head_dim / 2 {
            let expected = format!("{} of them, one for two dimensions of a head", head_dim / 2);
            return wrong("rope.inv_freq", format!("{} frequencies", self.rope.inv_freq.len()), expected);
        }
        if !(self.rms_norm_eps.is_finite() && self.rms_norm_eps > 0.0) {
            return wrong("rms_norm_eps", self.rms_norm_eps.to_string(), "a finite number above 0".into());
        }
        Ok(())
    }
}

/// Heads and their dimensions, for a target's config and a drafter's alike.
pub(super) fn attention_shape(
    fields: &Fields<'_>,
    architecture: Architecture,
    hidden_size: usize,
) -> Result<AttentionShape, LoadError> {
    let q_heads = fields.required_count("num_attention_heads", MAX_HEADS)?;
    let kv_heads = fields.count("num_key_value_heads", MAX_HEADS)?.unwrap_or(q_heads);
    if !q_heads.is_multiple_of(kv_heads) {
        return Err(fields.invalid("num_key_value_heads", format!("a divisor of {q_heads} query heads")));
    }
    let head_dim = match fields.count("head_dim", rope::MAX_HEAD_DIM)? {
        Some(head_dim) => head_dim,
        // The default of transformers' Qwen3Config, whatever the hidden size.
        None if architecture == Architecture::Qwen3 && !fields.contains("head_dim") => 128,
        None if !hidden_size.is_multiple_of(q_heads) => {
            return Err(
                fields.invalid("num_attention_heads", format!("a divisor of `hidden_size`, {hidden_size}"))
            );
        }
        None => hidden_size / q_heads,
    };
    if !head_dim.is_multiple_of(2) || head_dim > rope::MAX_HEAD_DIM {
        let derived = if fields.get("head_dim").is_some() { "head_dim" } else { "hidden_size" };
        return Err(fields.invalid(
            derived,
            format!("heads of an even number of dimensions, at most {}", rope::MAX_HEAD_DIM),
        ));
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
    // Qwen3's MLP has no biases in transformers, whatever the key says.
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

/// Before there was `layer_types`, a window applied from layer `max_window_layers` on.
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

/// `eos_token_id`: absent, one id, or a list.
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

/// A drafter's configuration.
#[derive(Clone, Debug, PartialEq)]
pub struct DrafterConfig {
    /// N, the number of tail layers.
    pub tail_layers: usize,
    /// S as trained, 1..=[`MAX_BLOCK_SIZE`](crate::layout::MAX_BLOCK_SIZE).
    pub block_size: usize,
}

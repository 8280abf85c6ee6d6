//! Writes a pretrained model as a Hugging Face directory.

use std::collections::HashMap;
use std::path::Path;

use candle_core::{DType, Device, Result as TensorResult, Tensor};
use flexdraft::model::ModelConfig;
use serde_json::json;

use super::model::PretrainModel;
use super::settings::Shape;
use crate::checkpoint::write_whole;
use crate::error::{Result, TuneError};

/// Epsilon of every norm, as in Qwen3.
const EPS: f64 = 1e-6;

/// Writes `config.json` and `generation_config.json` into `dir`, and returns the configuration that the runner reads
/// from them, so that training and running use the same configuration.
///
/// # Errors
/// [`TuneError::Io`]; [`TuneError::Runner`] for an impossible shape.
pub fn write_config(dir: &Path, shape: &Shape, vocab_size: usize) -> Result<ModelConfig> {
    let config = json!({
        "architectures": ["Qwen3ForCausalLM"],
        "attention_bias": false,
        "attention_dropout": 0.0,
        "bos_token_id": null,
        "dtype": "bfloat16",
        "eos_token_id": 0,
        "head_dim": shape.head_dim,
        "hidden_act": "silu",
        "hidden_size": shape.hidden_size,
        "initializer_range": 0.02,
        "intermediate_size": shape.intermediate_size,
        "max_position_embeddings": shape.context_len,
        "max_window_layers": shape.layers,
        "model_type": "qwen3",
        "num_attention_heads": shape.q_heads,
        "num_hidden_layers": shape.layers,
        "num_key_value_heads": shape.kv_heads,
        "rms_norm_eps": EPS,
        "rope_scaling": null,
        "rope_theta": shape.rope_theta,
        "sliding_window": null,
        "tie_word_embeddings": true,
        "torch_dtype": "bfloat16",
        "use_cache": true,
        "use_sliding_window": false,
        "vocab_size": vocab_size,
    });
    let generation = json!({ "eos_token_id": 0, "pad_token_id": 0 });
    for (name, value) in [("config.json", config), ("generation_config.json", generation)] {
        write_whole(&dir.join(name), format!("{value:#}\n").as_bytes())?;
    }
    let config = ModelConfig::read(dir)?;
    config.validate()?;
    Ok(config)
}

/// Writes `model.safetensors` into `dir`, with the tensor names of transformers, rounded to `dtype`.
///
/// # Errors
/// [`TuneError::Io`], or [`TuneError::Tensor`] if memory runs out.
pub fn export(dir: &Path, model: &PretrainModel, config: &ModelConfig, dtype: DType) -> Result<()> {
    let path = dir.join("model.safetensors");
    let tensors = tensors(model, config, dtype)?;
    let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    let bytes = safetensors::serialize(tensors, Some(metadata))
        .map_err(|error| TuneError::File { path: path.clone(), reason: error.to_string() })?;
    write_whole(&path, &bytes)
}

fn tensors(model: &PretrainModel, config: &ModelConfig, dtype: DType) -> TensorResult<Vec<(String, Tensor)>> {
    let stored = |x: &Tensor| x.detach().to_device(&Device::Cpu)?.to_dtype(dtype)?.contiguous();
    let shape = config.attention;
    let (q, kv) = (shape.q_heads * shape.head_dim, shape.kv_heads * shape.head_dim);
    let intermediate = config.intermediate_size;
    let mut tensors = vec![
        ("model.embed_tokens.weight".to_owned(), stored(&model.embedding)?),
        ("model.norm.weight".to_owned(), stored(&model.norm)?),
    ];
    for (i, layer) in model.layers.iter().enumerate() {
        let parts = [
            ("input_layernorm", layer.input_norm.as_detached_tensor()),
            ("self_attn.q_proj", layer.qkv.narrow(0, 0, q)?),
            ("self_attn.k_proj", layer.qkv.narrow(0, q, kv)?),
            ("self_attn.v_proj", layer.qkv.narrow(0, q + kv, kv)?),
            ("self_attn.q_norm", layer.q_norm.as_detached_tensor()),
            ("self_attn.k_norm", layer.k_norm.as_detached_tensor()),
            ("self_attn.o_proj", layer.o.as_detached_tensor()),
            ("post_attention_layernorm", layer.post_attention_norm.as_detached_tensor()),
            ("mlp.gate_proj", layer.gate_up.narrow(0, 0, intermediate)?),
            ("mlp.up_proj", layer.gate_up.narrow(0, intermediate, intermediate)?),
            ("mlp.down_proj", layer.down.as_detached_tensor()),
        ];
        for (name, tensor) in parts {
            tensors.push((format!("model.layers.{i}.{name}.weight"), stored(&tensor)?));
        }
    }
    Ok(tensors)
}

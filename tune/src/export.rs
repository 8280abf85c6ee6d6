//! Writes a trained drafter as a directory, in the layout of the released checkpoint.

use std::collections::HashMap;
use std::fs;
use std::path::Path;

use candle_core::{DType, Device, Tensor};
use flexdraft::model::ModelConfig;
use serde_json::json;

use crate::checkpoint::write_whole;
use crate::drafter::DrafterShape;
use crate::error::{Result, TuneError};
use crate::shortlist::{Shortlist, UNLISTED_BIAS};

/// Writes `config.json` and `model.safetensors` (bf16) of a drafter into `dir`, which is created if it does not
/// exist. `target` is the configuration of its target; `tensors` are the drafter's parameters by name.
///
/// # Errors
/// [`TuneError::Setting`] for a tail or an id that the target does not have; [`TuneError::Io`]; [`TuneError::File`]
/// if `tensors` lacks a parameter; candle's errors.
pub fn export(
    dir: &Path,
    target: &ModelConfig,
    shape: DrafterShape,
    shortlist: &Shortlist,
    tensors: &HashMap<String, Tensor>,
) -> Result<()> {
    if shape.tail_layers > target.layers {
        return Err(TuneError::setting(
            "tail_layers",
            shape.tail_layers,
            format!("at most the target's {} layers", target.layers),
        ));
    }
    if let Shortlist::Some { ids, .. } = shortlist
        && let Some(id) = ids.iter().find(|&&id| id as usize >= target.vocab_size)
    {
        return Err(TuneError::setting("a shortlisted id", id, format!("below {}", target.vocab_size)));
    }
    fs::create_dir_all(dir).map_err(TuneError::io("create", dir))?;
    let path = dir.join("model.safetensors");
    let tensors = checkpoint_tensors(&path, target, shape, shortlist, tensors)?;
    let bytes = safetensors::serialize(&tensors, None)
        .map_err(|error| TuneError::File { path: path.clone(), reason: error.to_string() })?;
    write_whole(&path, &bytes)?;
    let path = dir.join("config.json");
    let config = serde_json::to_string_pretty(&config(target, shape))
        .map_err(|error| TuneError::File { path: path.clone(), reason: error.to_string() })?;
    write_whole(&path, (config + "\n").as_bytes())
}

fn config(target: &ModelConfig, shape: DrafterShape) -> serde_json::Value {
    let first = target.layers - shape.tail_layers;
    json!({
        "architectures": ["FlexDraftBiasModel"],
        "attention_bias": target.attention_bias,
        "block_size": shape.block_size,
        "dtype": "bfloat16",
        "flexdraft_config": {
            "anchor_bias_rank": shape.rank,
            "enable_anchor_bias_logits": shape.rank > 0,
            "target_layer_ids": (first..target.layers).collect::<Vec<_>>(),
        },
        "head_dim": target.attention.head_dim,
        "hidden_act": "silu",
        "hidden_size": target.hidden_size,
        "intermediate_size": target.intermediate_size,
        "max_position_embeddings": target.context_len,
        "model_type": target.architecture.model_type(),
        "num_attention_heads": target.attention.q_heads,
        "num_hidden_layers": shape.tail_layers,
        "num_key_value_heads": target.attention.kv_heads,
        "num_target_layers": target.layers,
        "rms_norm_eps": target.rms_norm_eps,
        "tie_word_embeddings": target.tied_embeddings,
        "vocab_size": target.vocab_size,
    })
}

fn checkpoint_tensors(
    path: &Path,
    target: &ModelConfig,
    shape: DrafterShape,
    shortlist: &Shortlist,
    tensors: &HashMap<String, Tensor>,
) -> Result<HashMap<String, Tensor>> {
    let find = |name: &str| {
        let missing = || TuneError::File { path: path.into(), reason: format!("tensor `{name}` is missing") };
        tensors.get(name).ok_or_else(missing)?.to_device(&Device::Cpu).map_err(TuneError::from)
    };
    let attention = target.attention;
    let (q, kv) = (attention.q_heads * attention.head_dim, attention.kv_heads * attention.head_dim);
    let mut out = HashMap::new();
    let mut put = |name: String, tensor: Tensor| -> Result<()> {
        out.insert(name, tensor.to_dtype(DType::BF16)?.force_contiguous()?);
        Ok(())
    };
    for layer in 0..shape.tail_layers {
        let name = |part: &str| format!("layers.{layer}.self_attn.{part}");
        let kinds: &[&str] = if target.attention_bias { &["weight", "bias"] } else { &["weight"] };
        for kind in kinds {
            let qkv = find(&name(&format!("qkv_proj.{kind}")))?;
            for (part, first, rows) in [("q_proj", 0, q), ("k_proj", q, kv), ("v_proj", q + kv, kv)] {
                put(name(&format!("{part}.{kind}")), qkv.narrow(0, first, rows)?)?;
            }
            // Some models have biases on q, k and v but not on o, so the bias of o may be missing.
            if tensors.contains_key(&name(&format!("o_proj.{kind}"))) {
                put(name(&format!("o_proj.{kind}")), find(&name(&format!("o_proj.{kind}")))?)?;
            }
        }
        if target.architecture.has_qk_norms() {
            for part in ["q_norm.weight", "k_norm.weight"] {
                put(name(part), find(&name(part))?)?;
            }
        }
    }
    put("mask_embedding".into(), find("mask_embedding")?.flatten_all()?)?;
    if shape.rank > 0 {
        let halves = [find("calibrator.bonus_half")?, find("calibrator.hidden_half")?];
        put("anchor_bias_mlp.0.weight".into(), Tensor::cat(&halves, 1)?)?;
        put("anchor_bias_mlp.0.bias".into(), find("calibrator.bias")?)?;
        let output = whole_vocabulary(&find("calibrator.output")?, shortlist, target.vocab_size)?;
        put("anchor_bias_mlp.2.weight".into(), output.narrow(1, 0, shape.rank)?)?;
        put("anchor_bias_mlp.2.bias".into(), output.narrow(1, shape.rank, 1)?.flatten_all()?)?;
    }
    Ok(out)
}

/// Expands W2 and b2 of the calibrator from the shortlisted ids to the whole vocabulary.
fn whole_vocabulary(listed: &Tensor, shortlist: &Shortlist, vocab_size: usize) -> Result<Tensor> {
    let Shortlist::Some { ids, .. } = shortlist else { return Ok(listed.clone()) };
    let columns = listed.dim(1)?;
    let mut values = vec![0f32; vocab_size * columns];
    values.iter_mut().skip(columns - 1).step_by(columns).for_each(|bias| *bias = UNLISTED_BIAS);
    for (&id, row) in ids.iter().zip(listed.to_dtype(DType::F32)?.to_vec2::<f32>()?) {
        values[id as usize * columns..][..columns].copy_from_slice(&row);
    }
    Ok(Tensor::from_vec(values, (vocab_size, columns), &Device::Cpu)?)
}

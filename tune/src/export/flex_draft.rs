//! The layout of a FlexDraft drafter: a directory of its own, as the released checkpoint has.

use std::collections::HashMap;
use std::fs;
use std::path::Path;

use candle_core::{DType, Device, Tensor};
use flexdraft::model::ModelConfig;
use serde_json::json;

use super::{Parameters, Stored, write_json};
use crate::drafter::DrafterShape;
use crate::error::{Result, TuneError};
use crate::shortlist::{Shortlist, UNLISTED_BIAS};

/// Writes `config.json` and `model.safetensors` (bf16) of a FlexDraft drafter into `dir`, which is created if it does not
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
    let mut stored = Stored::default();
    add_tensors(&Parameters { path: &path, tensors }, target, shape, shortlist, &mut stored)?;
    stored.write(&path)?;
    write_json(&dir.join("config.json"), &config(target, shape))
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

fn add_tensors(
    parameters: &Parameters<'_>,
    target: &ModelConfig,
    shape: DrafterShape,
    shortlist: &Shortlist,
    out: &mut Stored,
) -> Result<()> {
    parameters.projectors(target, shape.tail_layers, ["", ""], out)?;
    out.put("mask_embedding".into(), &parameters.find("mask_embedding")?.flatten_all()?)?;
    if shape.rank > 0 {
        let halves = [parameters.find("calibrator.bonus_half")?, parameters.find("calibrator.hidden_half")?];
        out.put("anchor_bias_mlp.0.weight".into(), &Tensor::cat(&halves, 1)?)?;
        out.put("anchor_bias_mlp.0.bias".into(), &parameters.find("calibrator.bias")?)?;
        let output = whole_vocabulary(&parameters.find("calibrator.output")?, shortlist, target.vocab_size)?;
        out.put("anchor_bias_mlp.2.weight".into(), &output.narrow(1, 0, shape.rank)?)?;
        out.put("anchor_bias_mlp.2.bias".into(), &output.narrow(1, shape.rank, 1)?.flatten_all()?)?;
    }
    Ok(())
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

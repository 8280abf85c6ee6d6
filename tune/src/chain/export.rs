//! Adds a chain to a drafter's directory.

use std::fs;
use std::path::Path;

use candle_core::DType;
use flexdraft::model::DrafterCard;
use half::bf16;
use safetensors::tensor::{Dtype, SafeTensors, TensorView, serialize};
use serde_json::{Map, Value, json};

use super::heads::ChainHeads;
use crate::checkpoint::{write_json, write_whole};
use crate::error::{Result, TuneError};

/// The names of a configuration's object with a drafter's own keys; the released checkpoint uses the second.
const OBJECTS: [&str; 2] = ["flexdraft_config", "dflash_config"];

/// The beginning of the names of a chain's tensors.
const TENSORS: &str = "chain.";

/// Copies the drafter in `from` to `dir`, which is created if it does not exist, and adds a chain (bf16) in place of the
/// chain that the drafter may have. All other tensors and keys stay as they are, except for the drafter's card, whose
/// acceptance lengths were measured without this chain.
///
/// # Errors
/// [`TuneError::Io`] if a file cannot be read or written; [`TuneError::File`] for a `config.json` without an object for the
/// drafter's own keys, or a damaged `model.safetensors`; candle's errors.
pub fn export_chain(from: &Path, dir: &Path, chain: &ChainHeads) -> Result<()> {
    let [tensors, config] = ["model.safetensors", "config.json"].map(|name| from.join(name));
    let bytes = fs::read(&tensors).map_err(TuneError::io("read", &tensors))?;
    let checkpoint = with_tensors(&tensors, &bytes, chain)?;
    let text = fs::read(&config).map_err(TuneError::io("read", &config))?;
    let config = with_keys(&config, &text, chain)?;
    fs::create_dir_all(dir).map_err(TuneError::io("create", dir))?;
    write_whole(&dir.join("model.safetensors"), &checkpoint)?;
    write_json(&dir.join("config.json"), &config)
}

/// Returns the drafter's checkpoint with the chain's tensors.
fn with_tensors(path: &Path, bytes: &[u8], chain: &ChainHeads) -> Result<Vec<u8>> {
    let invalid = |error: safetensors::SafeTensorError| TuneError::File {
        path: path.into(),
        reason: error.to_string(),
    };
    let (_, header) = SafeTensors::read_metadata(bytes).map_err(invalid)?;
    let found = SafeTensors::deserialize(bytes).map_err(invalid)?;
    let mut own = Vec::new();
    for (name, tensor) in chain.tensors()? {
        let values = tensor.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?;
        let values: Vec<u8> = values.iter().flat_map(|&x| bf16::from_f32(x).to_le_bytes()).collect();
        own.push((name, tensor.dims().to_vec(), values));
    }
    let mut tensors: Vec<(&str, TensorView<'_>)> =
        found.iter().filter(|(name, _)| !name.starts_with(TENSORS)).collect();
    for (name, shape, values) in &own {
        tensors.push((name, TensorView::new(Dtype::BF16, shape.clone(), values).map_err(invalid)?));
    }
    serialize(tensors, header.metadata().clone()).map_err(invalid)
}

/// Returns the drafter's configuration with the chain's keys.
fn with_keys(path: &Path, text: &[u8], chain: &ChainHeads) -> Result<Map<String, Value>> {
    let invalid = |reason: String| TuneError::File { path: path.into(), reason };
    let mut config: Map<String, Value> =
        serde_json::from_slice(text).map_err(|error| invalid(error.to_string()))?;
    let name = OBJECTS.into_iter().find(|name| config.get(*name).is_some_and(Value::is_object));
    let own = name.and_then(|name| config.get_mut(name)).and_then(Value::as_object_mut);
    let expected = || invalid(format!("expected an object `{}` or `{}`, found none", OBJECTS[0], OBJECTS[1]));
    let own = own.ok_or_else(expected)?;
    own.insert("chain_kind".into(), chain.config().kind.name().into());
    own.insert("chain_top_k".into(), json!(chain.config().top_k));
    config.remove(DrafterCard::KEY);
    Ok(config)
}

//! Checkpoints: the tensors and the description of a run, in one safetensors file.

use std::collections::HashMap;
use std::fs;
use std::path::Path;

use candle_core::{Device, Tensor};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::error::{Result, TuneError};

/// The metadata key of a checkpoint file that holds the run's description.
const KEY: &str = "flexdraft_tune";

/// Writes the tensors and the description of a run to a checkpoint file. The file at `path` is replaced in one step
/// when the new file is complete, so a run that is killed leaves either the old or the new file whole.
///
/// # Errors
/// [`TuneError::Io`] if the file cannot be written, [`TuneError::File`] if it cannot be made.
pub fn save(path: &Path, tensors: &HashMap<String, Tensor>, description: &impl Serialize) -> Result<()> {
    let wrong = |reason: String| TuneError::File { path: path.into(), reason };
    let description = serde_json::to_string(description).map_err(|error| wrong(error.to_string()))?;
    let metadata = HashMap::from([(KEY.to_owned(), description)]);
    let bytes = safetensors::serialize(tensors, Some(metadata)).map_err(|error| wrong(error.to_string()))?;
    write_whole(path, &bytes)
}

/// Reads a checkpoint file that [`save`] wrote; the tensors are placed on the CPU.
///
/// # Errors
/// [`TuneError::Io`], or [`TuneError::File`] if the file is damaged or not of this kind.
pub fn load<T: DeserializeOwned>(path: &Path) -> Result<(HashMap<String, Tensor>, T)> {
    let wrong = |reason: String| TuneError::File { path: path.into(), reason };
    let bytes = fs::read(path).map_err(TuneError::io("read", path))?;
    let (_, header) =
        safetensors::SafeTensors::read_metadata(&bytes).map_err(|error| wrong(error.to_string()))?;
    let description = header.metadata().as_ref().and_then(|metadata| metadata.get(KEY));
    let description = description.ok_or_else(|| {
        wrong(format!("expected a checkpoint of flexdraft-tune, found no metadata key `{KEY}`"))
    })?;
    let description = serde_json::from_str(description).map_err(|error| wrong(error.to_string()))?;
    let tensors = candle_core::safetensors::load_buffer(&bytes, &Device::Cpu)
        .map_err(|error| wrong(error.to_string()))?;
    Ok((tensors, description))
}

/// Writes a value as JSON, with [`write_whole`].
///
/// # Errors
/// [`TuneError::File`] for a value that JSON cannot hold; [`TuneError::Io`].
pub fn write_json(path: &Path, value: &impl Serialize) -> Result<()> {
    let json = serde_json::to_string_pretty(value)
        .map_err(|error| TuneError::File { path: path.into(), reason: error.to_string() })?;
    write_whole(path, (json + "\n").as_bytes())
}

/// Writes a file under a temporary name next to `path`, and renames it to `path` once it is complete.
///
/// # Errors
/// [`TuneError::Io`].
pub fn write_whole(path: &Path, bytes: &[u8]) -> Result<()> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".new");
    let new = path.with_file_name(name);
    fs::write(&new, bytes).map_err(TuneError::io("write", &new))?;
    fs::rename(&new, path).map_err(TuneError::io("write", path))
}

//! The layout of an Orthrus model: the files of its target, with the drafter's tensors added to the target's.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};

use candle_core::Tensor;
use flexdraft::model::ModelConfig;
use flexdraft::model::config::Architecture;
use serde_json::{Map, Value, json};

use super::{Parameters, Stored, invalid, write_json};
use crate::error::{Result, TuneError};

/// The suffix of the drafter's modules; the target's own modules have none.
const SUFFIX: &str = "_diff";

/// The index of a model with several weight files.
const INDEX: &str = "model.safetensors.index.json";

/// A directory that holds a target and gets its Orthrus drafters, one after the other.
#[derive(Debug)]
pub struct OrthrusExport {
    dir: PathBuf,
    /// The configuration of target and drafter.
    config: Map<String, Value>,
    /// The file of each of the target's tensors.
    weight_map: BTreeMap<String, String>,
    /// The name of the file of the drafter's tensors.
    drafter_file: String,
    /// The start of every tensor's name.
    prefix: &'static str,
}

impl OrthrusExport {
    /// Copies the target's files from the directory `source` to `dir`, which is created if it does not exist. The drafter
    /// will have blocks of `block_size` slots, and the mask rows start from the embedding of the token `mask_token`.
    ///
    /// # Errors
    /// [`TuneError::Setting`] if `source` is not the directory of a Qwen3; [`TuneError::Io`]; [`TuneError::File`] for a
    /// file of the target that cannot be understood.
    pub fn begin(
        dir: &Path,
        source: &Path,
        target: &ModelConfig,
        block_size: usize,
        mask_token: u32,
    ) -> Result<Self> {
        check_source(source, target)?;
        fs::create_dir_all(dir).map_err(TuneError::io("create", dir))?;
        let files = WeightFiles::read(source)?;
        let count = files.0.len() + 1;
        let name = |index: usize| format!("model-{index:05}-of-{count:05}.safetensors");
        let mut weight_map = BTreeMap::new();
        for (index, (file, tensors)) in files.0.iter().enumerate() {
            let copy = name(index + 1);
            copy_whole(&source.join(file), &dir.join(&copy))?;
            weight_map.extend(tensors.iter().map(|tensor| (tensor.clone(), copy.clone())));
        }
        copy_side_files(source, dir)?;
        let mut config: Map<String, Value> = read_json(&source.join("config.json"))?;
        config.insert("architectures".into(), json!(["OrthrusLM"]));
        config.insert("model_type".into(), json!("orthrus"));
        config.insert("block_size".into(), json!(block_size));
        config.insert("mask_token_id".into(), json!(mask_token));
        let prefixed = weight_map.keys().any(|name| name.starts_with("model.layers."));
        Ok(Self {
            dir: dir.into(),
            config,
            weight_map,
            drafter_file: name(count),
            prefix: if prefixed { "model." } else { "" },
        })
    }

    /// Returns the path of the file of the drafter's tensors.
    pub fn drafter_path(&self) -> PathBuf {
        self.dir.join(&self.drafter_file)
    }

    /// Writes a drafter (bf16) beside the target's files, in place of the drafter before. `tensors` are the drafter's
    /// parameters by name.
    ///
    /// # Errors
    /// [`TuneError::Io`]; [`TuneError::File`] if `tensors` lacks a parameter; candle's errors.
    pub fn write(&self, target: &ModelConfig, tensors: &HashMap<String, Tensor>) -> Result<()> {
        let path = self.drafter_path();
        let mut stored = Stored::default();
        let names = [self.prefix, SUFFIX];
        Parameters { path: &path, tensors }.projectors(target, target.layers, names, &mut stored)?;
        stored.write(&path)?;
        let mut weight_map = self.weight_map.clone();
        weight_map.extend(stored.0.keys().map(|name| (name.clone(), self.drafter_file.clone())));
        let files: BTreeSet<&String> = weight_map.values().collect();
        let size = |file: &&String| fs::metadata(self.dir.join(file)).map_or(0, |metadata| metadata.len());
        let total: u64 = files.iter().map(size).sum();
        let index = json!({ "metadata": { "total_size": total }, "weight_map": weight_map });
        write_json(&self.dir.join(INDEX), &index)?;
        write_json(&self.dir.join("config.json"), &Value::Object(self.config.clone()))
    }
}

/// Checks that `source` is a directory with a Qwen3, the only family of Orthrus targets.
fn check_source(source: &Path, target: &ModelConfig) -> Result<()> {
    if target.architecture != Architecture::Qwen3 {
        let found = format!("a {} model", target.architecture.model_type());
        return Err(TuneError::setting("the target of an Orthrus drafter", found, "a Qwen3 model"));
    }
    if !source.is_dir() {
        let expected =
            "a directory with config.json and safetensors, because the drafter is stored with its target";
        return Err(TuneError::setting("the target of an Orthrus drafter", source.display(), expected));
    }
    let path = source.join("config.json");
    let config: Map<String, Value> = read_json(&path)?;
    match config.get("model_type").and_then(Value::as_str) {
        Some("orthrus") => {
            let expected = "a Qwen3 model without a drafter";
            Err(TuneError::setting("the target of an Orthrus drafter", "an Orthrus model", expected))
        }
        _ => Ok(()),
    }
}

/// The target's weight files, with the names of the tensors that each of them holds.
struct WeightFiles(BTreeMap<String, Vec<String>>);

impl WeightFiles {
    fn read(source: &Path) -> Result<Self> {
        let single = "model.safetensors";
        if source.join(single).is_file() {
            let tensors = tensor_names(&source.join(single))?;
            return Ok(Self(BTreeMap::from([(single.to_owned(), tensors)])));
        }
        /// The part of an index that names files.
        #[derive(serde::Deserialize)]
        struct Index {
            weight_map: BTreeMap<String, String>,
        }
        let index: Index = read_json(&source.join(INDEX))?;
        let files: BTreeSet<String> = index.weight_map.into_values().collect();
        // An index may list tensors that nothing needs, so files are the authority. Loading the target has refused
        // files outside its directory.
        let present = files.into_iter().filter(|file| source.join(file).is_file());
        present
            .map(|file| Ok((file.clone(), tensor_names(&source.join(&file))?)))
            .collect::<Result<_>>()
            .map(Self)
    }
}

/// Returns the names of the tensors in a safetensors file, from its header: a length of 8 bytes and a JSON object.
fn tensor_names(path: &Path) -> Result<Vec<String>> {
    let mut file = File::open(path).map_err(TuneError::io("open", path))?;
    let mut length = [0; 8];
    file.read_exact(&mut length).map_err(TuneError::io("read", path))?;
    let mut header = Vec::new();
    file.take(u64::from_le_bytes(length)).read_to_end(&mut header).map_err(TuneError::io("read", path))?;
    let header: Map<String, Value> = serde_json::from_slice(&header).map_err(invalid(path))?;
    Ok(header.into_iter().map(|(name, _)| name).filter(|name| name != "__metadata__").collect())
}

/// Copies the tokenizer's files, the chat template and the generation settings.
fn copy_side_files(source: &Path, dir: &Path) -> Result<()> {
    let entries = fs::read_dir(source).map_err(TuneError::io("list", source))?;
    for entry in entries {
        let path = entry.map_err(TuneError::io("list", source))?.path();
        let Some(name) = path.file_name().and_then(|name| name.to_str()) else { continue };
        let is_side_file = [".json", ".jinja", ".txt", ".model"].iter().any(|end| name.ends_with(end))
            && name != "config.json"
            && !name.ends_with(".index.json");
        if is_side_file && path.is_file() {
            copy_whole(&path, &dir.join(name))?;
        }
    }
    Ok(())
}

/// Copies a file so that the copy is complete or absent, whenever the process ends.
fn copy_whole(from: &Path, to: &Path) -> Result<()> {
    let part = to.with_extension("part");
    fs::copy(from, &part).map_err(TuneError::io("copy", from))?;
    fs::rename(&part, to).map_err(TuneError::io("write", to))
}

fn read_json<T: serde::de::DeserializeOwned>(path: &Path) -> Result<T> {
    let bytes = fs::read(path).map_err(TuneError::io("read", path))?;
    serde_json::from_slice(&bytes).map_err(invalid(path))
}

//! Models in the cache of the Hugging Face Hub. Each model has a folder `models--OWNER--NAME` with `refs/REVISION`,
//! `snapshots/COMMIT/FILE` and `blobs`.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use hf_hub::Cache;

use super::files::{INDEX, WEIGHTS};
use super::id::RepoId;
use super::settings::Settings;
use crate::error::{CliError, Result};

/// Returns the directory of a model in the cache, if all of its files are there.
pub fn find(id: &RepoId, settings: &Settings) -> Option<PathBuf> {
    let snapshot = snapshot(id, settings)?;
    let has = |file: &str| snapshot.join(file).is_file();
    (has("config.json") && weight_files(&snapshot)?.iter().all(|file| has(file))).then_some(snapshot)
}

/// Returns the directory of a model in the cache, or an error that says that `HF_HUB_OFFLINE` forbids to download it.
pub fn offline(id: &RepoId, settings: &Settings) -> Result<PathBuf> {
    find(id, settings).ok_or_else(|| {
        let lack = if snapshot(id, settings).is_some() { "is not complete" } else { "is not" };
        let cache = settings.cache.display();
        CliError::Usage(format!("{id} {lack} in the cache {cache}, and HF_HUB_OFFLINE forbids downloads"))
    })
}

/// Returns the names of the files with the tensors in a model's directory; `None` if the directory has neither a file
/// with all tensors nor an index of shards.
pub fn weight_files(dir: &Path) -> Option<BTreeSet<String>> {
    if dir.join(WEIGHTS).is_file() {
        return Some([WEIGHTS.to_owned()].into());
    }
    let index: serde_json::Value = serde_json::from_slice(&fs::read(dir.join(INDEX)).ok()?).ok()?;
    Some(shards(&index))
}

/// Returns the names of the files (shards) that the index of a checkpoint in several files lists.
pub fn shards(index: &serde_json::Value) -> BTreeSet<String> {
    let files = index["weight_map"].as_object().into_iter().flat_map(|map| map.values());
    files.filter_map(|file| file.as_str()).map(str::to_owned).collect()
}

/// Returns the directory of a model's revision in the cache, if the cache has the revision.
fn snapshot(id: &RepoId, settings: &Settings) -> Option<PathBuf> {
    let cache = Cache::new(settings.cache.clone());
    let folder = settings.cache.join(id.repo().folder_name());
    let commit = match fs::read_to_string(folder.join("refs").join(&id.revision)) {
        Ok(commit) => commit.trim().to_owned(),
        Err(_) if id.is_commit() => id.revision.clone(),
        Err(_) => return None,
    };
    let snapshot = cache.repo(id.repo()).pointer_path(&commit);
    snapshot.is_dir().then_some(snapshot)
}

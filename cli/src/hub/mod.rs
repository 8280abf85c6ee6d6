//! Models by the id of a repository on the Hugging Face Hub: finds them in the cache that Python's `huggingface_hub` uses,
//! and downloads what is missing.

mod cached;
mod download;
mod files;
mod id;
mod settings;

use std::path::{Path, PathBuf};

use self::id::RepoId;
use self::settings::Settings;
use crate::error::Result;

/// Returns the local path of a model: `path` itself, if it exists or is no id, or else the directory with the files of the
/// repository `path`, which may be `OWNER/NAME` or `OWNER/NAME@REVISION`.
pub fn local(path: &Path) -> Result<PathBuf> {
    let id = path.to_str().filter(|_| !path.exists()).and_then(RepoId::parse);
    match id {
        None => Ok(path.into()),
        Some(id) => {
            let settings = Settings::from_env();
            if settings.offline {
                cached::offline(&id, &settings)
            } else {
                download::download(&id, &settings)
            }
        }
    }
}

//! Copies of fixture directories that tests damage.

use std::fs;
use std::path::{Path, PathBuf};

use flexdraft::model::{DrafterWeights, LoadError, ModelConfig, ModelWeights, TargetWeights};
use serde_json::{Map, Value};
use tempfile::TempDir;

pub fn fixture(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(path)
}

/// A copy of a fixture's directory that a test can damage.
pub struct Copy(pub TempDir);

impl Copy {
    pub fn of(path: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        for entry in fs::read_dir(fixture(path)).unwrap() {
            let from = entry.unwrap().path();
            fs::copy(&from, dir.path().join(from.file_name().unwrap())).unwrap();
        }
        Self(dir)
    }

    pub fn path(&self) -> &Path {
        self.0.path()
    }

    pub fn edit(&self, file: &str, edit: impl FnOnce(&mut Value)) -> &Self {
        let path = self.path().join(file);
        let mut value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        edit(&mut value);
        self.write(file, value.to_string())
    }

    pub fn set(&self, key: &str, value: Value) -> &Self {
        self.edit("config.json", |config| config[key] = value)
    }

    pub fn write(&self, file: &str, content: impl AsRef<[u8]>) -> &Self {
        fs::write(self.path().join(file), content).unwrap();
        self
    }

    /// Edits the header of `model.safetensors`; the data stay unchanged.
    pub fn edit_header(&self, edit: impl FnOnce(&mut Map<String, Value>)) -> &Self {
        let path = self.path().join("model.safetensors");
        let (mut header, data) = split(&fs::read(&path).unwrap());
        edit(&mut header);
        fs::write(path, join(&serde_json::to_vec(&header).unwrap(), &data)).unwrap();
        self
    }

    /// Returns the error message of loading the directory as a target, without the directory's path.
    pub fn target_error(&self) -> String {
        self.message(TargetWeights::read(self.path()).unwrap_err())
    }

    /// Returns the error message of loading the directory as a drafter for the tiny target.
    pub fn drafter_error(&self) -> String {
        let target = ModelConfig::read(&fixture("tiny/target")).unwrap();
        self.message(DrafterWeights::read(self.path(), &target).unwrap_err())
    }

    /// Returns the error message of loading this model with the drafter in its directory.
    pub fn model_error(&self) -> String {
        self.message(ModelWeights::read(self.path()).unwrap_err())
    }

    pub fn message(&self, error: LoadError) -> String {
        error.to_string().replace(&format!("{}{}", self.path().display(), std::path::MAIN_SEPARATOR), "")
    }
}

pub fn split(file: &[u8]) -> (Map<String, Value>, Vec<u8>) {
    let end = 8 + u64::from_le_bytes(file[..8].try_into().unwrap()) as usize;
    (serde_json::from_slice(&file[8..end]).unwrap(), file[end..].to_vec())
}

pub fn join(header: &[u8], data: &[u8]) -> Vec<u8> {
    [&(header.len() as u64).to_le_bytes(), header, data].concat()
}

pub const LLAMA: &str = "transformers/models/llama";
pub const QWEN3: &str = "transformers/models/qwen3";
pub const YARN: &str = "transformers/models/llama-yarn";
pub const SHARDED: &str = "transformers/models/llama-llama3";
pub const DRAFT: &str = "tiny/draft";
pub const ORTHRUS: &str = "orthrus";

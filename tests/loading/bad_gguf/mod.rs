//! Tests with GGUF files that are damaged, hostile or unsupported: loading gives an error that names the key or the
//! tensor, never panics, and never allocates memory out of proportion to the file.

mod damage;
mod file;
mod metadata;
mod tensors;
mod tokenizers;

use std::path::{Path, PathBuf};

use flexdraft::model::{LoadError, QuantizedWeights};

use crate::support::gguf::File;

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/gguf").join(format!("{name}.gguf"))
}

/// Returns the error message about a file, without the file's name.
fn message(result: Result<impl Sized, LoadError>) -> String {
    match result {
        Ok(_) => "no error".into(),
        Err(error) => error.to_string().replace("model.gguf: ", "").replace("model.gguf ", ""),
    }
}

/// Returns the error message about a file's target, which does not depend on what becomes of quantised weights.
fn target(file: &File) -> String {
    let found = message(file.open().and_then(|gguf| gguf.target()));
    let kept = message(file.open().and_then(|gguf| gguf.target_with(QuantizedWeights::Keep)));
    assert_eq!(found, kept);
    found
}

fn tokenizer(file: &File) -> String {
    message(file.open().and_then(|gguf| gguf.tokenizer()))
}

fn little_endian(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|x| x.to_le_bytes()).collect()
}

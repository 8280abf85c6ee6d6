//! Tests of errors of a GGUF file as a whole: its first bytes, and its end.

use std::path::{Path, PathBuf};

use flexdraft::model::{Gguf, TargetWeights};

use super::{message, target, tokenizer};
use crate::support::gguf::File;

#[test]
fn the_sound_file() {
    let file = File::llama();
    assert_eq!((target(&file), tokenizer(&file)), ("no error".into(), "no error".into()));
    let version_2 = File { version: 2, ..file };
    assert_eq!(target(&version_2), "no error");
}

#[test]
fn files_that_are_not_gguf() {
    let bytes = File::llama().bytes();
    let open = |bytes: Vec<u8>| message(Gguf::from_bytes(Path::new("model.gguf"), bytes));
    let invalid = |reason: &str| format!("is not a valid GGUF file: {reason}");
    let truncated = invalid("its header goes beyond the end of the file; it may be truncated");
    assert_eq!(open(Vec::new()), truncated);
    assert_eq!(open(b"{ }\n".to_vec()), invalid(r"it starts with the bytes `{ }\n`, expected `GGUF`"));
    let version = |version: u32| target(&File { version, ..File::llama() });
    assert_eq!(version(1), invalid("it is of version 1; supported: 2, 3"));
    assert_eq!(version(4), invalid("it is of version 4; supported: 2, 3"));
    assert_eq!(version(3 << 24), invalid("it is big-endian; supported: little-endian"));
    // The file is cut off at every length, in the header and in the data, and never opens.
    for len in 0..bytes.len() {
        let error = open(bytes[..len].to_vec());
        let in_data = error.starts_with("is not a valid GGUF file: tensor `")
            && error.ends_with("` goes beyond the end of the file; it may be truncated");
        assert!(in_data || error == truncated, "{len}: {error}");
    }
    assert!(
        message(TargetWeights::read(&PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml")))
            .ends_with("expected `GGUF`")
    );
}

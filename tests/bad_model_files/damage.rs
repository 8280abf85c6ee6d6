//! Bytes changed at random: an error or harmless, never a panic.

use std::fs;

use flexdraft::model::{Checkpoint, DrafterWeights, ModelConfig, TargetWeights, Tokenizer};
use proptest::prelude::*;
use proptest::test_runner::FileFailurePersistence;

use crate::directory::{Copy, DRAFT, LLAMA, QWEN3, YARN, fixture, split};

fn keep_seeds(cases: u32) -> ProptestConfig {
    ProptestConfig {
        cases,
        failure_persistence: Some(Box::new(FileFailurePersistence::WithSource("proptest-regressions"))),
        ..ProptestConfig::default()
    }
}

/// Flips, overwrites, inserts or removes bytes.
fn mutate(bytes: &mut Vec<u8>, edits: &[(u8, usize, u8)], within: usize) {
    for &(kind, at, byte) in edits {
        let at = at % within.min(bytes.len()).max(1);
        match kind {
            0 => bytes[at] ^= 1 << (byte % 8),
            1 => bytes[at] = byte,
            2 => bytes.insert(at, byte),
            _ => drop(bytes.remove(at)),
        }
    }
}

/// Bytes that headers and configs are made of come up often.
fn edits() -> impl Strategy<Value = Vec<(u8, usize, u8)>> {
    let byte = prop_oneof![any::<u8>(), prop::sample::select(b"0123456789[]{},:\"-eE.\\ntf".to_vec())];
    prop::collection::vec((0u8..4, any::<usize>(), byte), 1..6)
}

proptest! {
    #![proptest_config(keep_seeds(400))]

    #[test]
    fn a_damaged_header_is_an_error_or_harmless(edits in edits()) {
        let copy = Copy::of(LLAMA);
        let path = copy.path().join("model.safetensors");
        let mut file = fs::read(&path).unwrap();
        let header_end = file.len() - split(&file).1.len();
        mutate(&mut file, &edits, header_end);
        fs::write(&path, file).unwrap();
        if let Ok(weights) = TargetWeights::read(copy.path()) {
            weights.layers.iter().for_each(|layer| drop(layer.down.weight.to_f32()));
        }
        if let Ok(checkpoint) = Checkpoint::read(copy.path()) {
            checkpoint.names().for_each(|name| drop(checkpoint.tensor(name).map(|tensor| tensor.to_f32())));
        }
    }

    #[test]
    fn a_damaged_config_is_an_error_or_harmless(edits in edits(), model in prop::sample::select(vec![LLAMA, YARN, QWEN3])) {
        let copy = Copy::of(model);
        let path = copy.path().join("config.json");
        let mut file = fs::read(&path).unwrap();
        let len = file.len();
        mutate(&mut file, &edits, len);
        fs::write(&path, file).unwrap();
        if let Ok(weights) = TargetWeights::read(copy.path()) {
            prop_assert!(weights.config.validate().is_ok());
        }
    }

    #[test]
    fn a_damaged_drafter_config_is_an_error_or_harmless(edits in edits()) {
        let target = ModelConfig::read(&fixture("tiny/target")).unwrap();
        let copy = Copy(tempfile::tempdir().unwrap());
        let mut file = fs::read(fixture(DRAFT).join("config.json")).unwrap();
        let len = file.len();
        mutate(&mut file, &edits, len);
        copy.write("config.json", file);
        // There are no weights: a config that passes ends there.
        prop_assert!(DrafterWeights::read(copy.path(), &target).is_err());
    }

    #[test]
    fn a_damaged_tokenizer_is_an_error_or_harmless(edits in edits()) {
        let copy = Copy(tempfile::tempdir().unwrap());
        let mut file = fs::read(fixture("tiny/target/tokenizer.json")).unwrap();
        let len = file.len();
        mutate(&mut file, &edits, len);
        copy.write("tokenizer.json", file);
        if let Ok(tokenizer) = Tokenizer::read(copy.path(), 384)
            && let Ok(ids) = tokenizer.encode("def f(x): return 'é😀'", true)
        {
            let _ = tokenizer.decode(&ids, true);
        }
    }
}

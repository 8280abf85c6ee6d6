//! Tests of errors in GGUF metadata: invalid keys and values, and unsupported configurations.

use flexdraft::model::ModelConfig;

use super::{little_endian, target};
use crate::support::gguf::{File, Value};

#[test]
fn metadata_that_make_no_sense() {
    let set = |key: &str, value: Value| {
        let mut file = File::llama();
        file.set(key, value);
        target(&file)
    };
    let invalid = |reason: &str| format!("is not a valid GGUF file: {reason}");
    assert_eq!(set("x", Value::Raw(13, vec![])), invalid("key `x` has value type 13, expected 0 to 12"));
    assert_eq!(set("x", Value::Raw(7, vec![2])), invalid("a flag is 2, expected 0 or 1"));
    let text = |bytes: &[u8]| [&(bytes.len() as u64).to_le_bytes()[..], bytes].concat();
    assert_eq!(set("x", Value::Raw(8, text(b"a\xff"))), invalid("`a\u{fffd}` is not UTF-8"));
    // GGUF arrays of arrays are supported up to a depth of 4.
    let nested = |depth: usize| {
        let mut bytes = Vec::new();
        for _ in 1..depth {
            bytes.extend(9u32.to_le_bytes());
            bytes.extend(1u64.to_le_bytes());
        }
        bytes.extend(0u32.to_le_bytes());
        bytes.extend(3u64.to_le_bytes());
        bytes.extend([1, 2, 3]);
        Value::Raw(9, bytes)
    };
    assert_eq!(set("x", nested(4)), "no error");
    assert_eq!(set("x", nested(5)), invalid("key `x` nests arrays more than 4 levels deep"));
    assert_eq!(set("x", nested(100_000)), invalid("key `x` nests arrays more than 4 levels deep"));
    // The counts in these headers are larger than the rest of the file.
    let truncated = invalid("its header goes beyond the end of the file; it may be truncated");
    for element in [0u32, 4, 8, 9, 12] {
        for len in [1u64 << 20, 1 << 40, 1 << 61, u64::MAX] {
            let bytes = [&element.to_le_bytes()[..], &len.to_le_bytes()].concat();
            assert_eq!(set("x", Value::Raw(9, bytes)), truncated, "{len} of type {element}");
        }
    }
    assert_eq!(set("x", Value::Raw(8, u64::MAX.to_le_bytes().to_vec())), truncated);

    let mut twice = File::llama();
    twice.pairs.push(("general.architecture".into(), "llama".into()));
    assert_eq!(target(&twice), invalid("key `general.architecture` occurs more than once"));
    for (alignment, found) in [
        (Value::U32(0), "0"),
        (Value::U32(24), "24"),
        (Value::U32(1 << 30), "1073741824"),
        ("32".into(), "\"32\""),
        (Value::F32(f32::NAN), "\"NaN\""),
    ] {
        assert_eq!(
            set("general.alignment", alignment),
            invalid(&format!("`general.alignment` is {found}, expected a power of two up to 1048576"))
        );
    }
}

#[test]
fn configurations_that_are_wrong_or_not_supported() {
    let refused = |key: &str, value: Value, problem: String| {
        let mut file = File::llama();
        file.set(key, value);
        assert_eq!(target(&file), format!("`{key}` is {problem}"));
    };
    // Each case has a key and an invalid value, the value as the error shows it, and what the error expects.
    let epsilon = "llama.attention.layer_norm_rms_epsilon";
    let six = Value::I32s(vec![1, 2, 3, 4, 5, 6]);
    let nan = Value::F32(f32::NAN);
    let heads = "an even number of dimensions per head, at most 4096";
    for (key, value, shown, expected) in [
        ("general.architecture", Value::U32(3), "3", "a string"),
        ("llama.block_count", Value::U32(0), "0", "a whole number from 1 to 4096"),
        ("llama.block_count", Value::I32(-1), "-1", "a whole number from 1 to 4096"),
        ("llama.block_count", Value::U32(2), "2", "at most 1, because the file has only 11 tensors"),
        ("llama.embedding_length", nan, "\"NaN\"", "a whole number from 1 to 16777216"),
        ("llama.attention.head_count", Value::U32(3), "3", "a divisor of `llama.embedding_length`, 8"),
        ("llama.attention.head_count_kv", Value::U32(3), "3", "a divisor of the number of query heads, 2"),
        ("llama.attention.head_count_kv", six, "[1,2,3,4,\"2 more\"]", "a whole number from 1 to 16384"),
        ("llama.attention.key_length", Value::U32(3), "3", heads),
        (epsilon, Value::F32(0.0), "0.0", "a finite number above 0"),
        ("llama.rope.freq_base", Value::F32(-1.0), "-1.0", "a finite number above 0"),
        ("tokenizer.ggml.eos_token_id", Value::I32(-1), "-1", "a token id"),
    ] {
        refused(key, value, format!("{shown}, expected {expected}"));
    }
    // Each case has a key and an unsupported value, the value as the error shows it, and the supported values.
    let dense = "0: dense models only, no mixture of experts";
    let window = "llama.attention.sliding_window";
    for (key, value, shown, supported) in [
        ("general.architecture", "gemma".into(), "\"gemma\"", "llama, qwen2, qwen3, smollm3"),
        ("llama.expert_count", Value::U32(8), "8", dense),
        (window, Value::U32(63), "63", "0: full attention in every layer"),
        ("llama.attention.scale", Value::F32(0.5), "0.5", "0, which stands for 1/√head_dim"),
        ("llama.attention.causal", Value::Bool(false), "false", "true"),
        ("llama.attention.value_length", Value::U32(8), "8", "4, the size of a head"),
        ("llama.rope.dimension_count", Value::U32(2), "2", "4, the size of a head"),
        ("llama.rope.scaling.type", "longrope".into(), "\"longrope\"", "none, linear, yarn"),
        ("llama.rope.scaling.yarn_ext_factor", Value::F32(0.5), "0.5", "1"),
    ] {
        refused(key, value, format!("{shown}, which is not supported; supported: {supported}"));
    }
    for key in [
        "general.architecture",
        "llama.block_count",
        "llama.context_length",
        "llama.embedding_length",
        "llama.feed_forward_length",
        "llama.attention.head_count",
        "llama.attention.layer_norm_rms_epsilon",
    ] {
        let mut file = File::llama();
        file.remove(key);
        assert_eq!(target(&file), format!("key `{key}` is missing"));
    }
}

#[test]
fn rope_scalings() {
    let frequencies = |pairs: &[(&str, Value)]| {
        let mut file = File::llama();
        pairs.iter().for_each(|(key, value)| file.set(key, value.clone()));
        file.open().unwrap().config().unwrap().rope
    };
    let (kind, factor) = ("llama.rope.scaling.type", "llama.rope.scaling.factor");
    let plain = frequencies(&[]);
    assert_eq!(plain.inv_freq, [1.0, 0.01]);
    assert_eq!(frequencies(&[(kind, "none".into()), (factor, Value::F32(4.0))]), plain);
    assert_eq!(frequencies(&[(kind, "linear".into())]), plain);
    assert_eq!(frequencies(&[(kind, "yarn".into()), (factor, Value::F32(0.0))]), plain);
    for pairs in [
        vec![(kind, "linear".into()), (factor, Value::F32(4.0))],
        vec![(factor, Value::F32(4.0))],
        vec![("llama.rope.scale_linear", Value::F32(4.0))],
    ] {
        assert_eq!(frequencies(&pairs).inv_freq, [0.25, 0.0025]);
    }
    let yarn = frequencies(&[(kind, "yarn".into()), (factor, Value::F32(4.0))]);
    assert!((yarn.scale - (1.0 + 0.1 * 4f32.ln())).abs() < 1e-6);
    assert_ne!(yarn.inv_freq, plain.inv_freq);
    let base = frequencies(&[("llama.rope.freq_base", Value::F32(100.0))]);
    assert!((base.inv_freq[1] - 0.1).abs() < 1e-7);
}

#[test]
fn rope_factors() {
    let mut file = File::llama();
    file.add("rope_freqs.weight", &[2]);
    let zero = "tensor `rope_freqs.weight` has the element 0, expected numbers above 0";
    assert_eq!(target(&file), format!("is not a valid GGUF file: {zero}"));
    let start = file.tensor("rope_freqs.weight").offset as usize;
    file.data[start..start + 8].copy_from_slice(little_endian(&[1.0, 8.0]).as_slice());
    assert_eq!(file.open().unwrap().config().unwrap().rope.inv_freq, [1.0, 0.00125]);
    // The configuration can be read from the file without reading the weights.
    let path = tempfile::tempdir().unwrap();
    let path = path.path().join("model.gguf");
    std::fs::write(&path, file.bytes()).unwrap();
    assert_eq!(ModelConfig::read(&path).unwrap().rope.inv_freq, [1.0, 0.00125]);
    file.tensor("rope_freqs.weight").shape = vec![2, 1];
    assert_eq!(target(&file), "tensor `rope_freqs.weight` has shape [2, 1], expected [2]");
}

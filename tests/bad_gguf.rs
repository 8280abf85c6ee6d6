//! GGUF files that are damaged, hostile or ask for something unsupported: an error that names the key
//! or the tensor, never a panic, never memory out of proportion to the file.

#![cfg(feature = "runner")]
#![allow(clippy::unwrap_used, clippy::panic)]

mod common;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use common::gguf::{File, Value};
use flexdraft::model::{ChatMessage, Gguf, LoadError, ModelConfig, TargetWeights};
use proptest::prelude::*;
use proptest::test_runner::FileFailurePersistence;

/// The system's allocator, remembering the largest request of each thread.
struct Watched;

thread_local! {
    static LARGEST_REQUEST: Cell<usize> = const { Cell::new(0) };
}

/// Nothing is remembered while a thread ends.
fn remember(size: usize) {
    let _ = LARGEST_REQUEST.try_with(|largest| largest.set(largest.get().max(size)));
}

// SAFETY: every call is passed on to the system's allocator as it is.
unsafe impl GlobalAlloc for Watched {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        remember(layout.size());
        // SAFETY: the caller keeps the contract of `alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        remember(layout.size());
        // SAFETY: the caller keeps the contract of `alloc_zeroed`.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        remember(new_size);
        // SAFETY: the caller keeps the contract of `realloc`.
        unsafe { System.realloc(pointer, layout, new_size) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller keeps the contract of `dealloc`.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Watched = Watched;

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/gguf").join(format!("{name}.gguf"))
}

/// The message about a file, without the file's name.
fn message(result: Result<impl Sized, LoadError>) -> String {
    match result {
        Ok(_) => "no error".into(),
        Err(error) => error.to_string().replace("model.gguf: ", "").replace("model.gguf ", ""),
    }
}

fn target(file: &File) -> String {
    message(file.open().and_then(|gguf| gguf.target()))
}

fn tokenizer(file: &File) -> String {
    message(file.open().and_then(|gguf| gguf.tokenizer()))
}

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
    assert_eq!(open(b"{\"a\": 1}".to_vec()), invalid("it does not begin with `GGUF`"));
    let version = |version: u32| target(&File { version, ..File::llama() });
    assert_eq!(version(1), invalid("it is of version 1; supported: 2, 3"));
    assert_eq!(version(4), invalid("it is of version 4; supported: 2, 3"));
    assert_eq!(version(3 << 24), invalid("it is big-endian, which is not supported"));
    // Every truncation: in the header, and in the data.
    for len in 0..bytes.len() {
        let error = open(bytes[..len].to_vec());
        let in_data = error.starts_with("is not a valid GGUF file: tensor `")
            && error.ends_with("` goes beyond the end of the file; it may be truncated");
        assert!(in_data || error == truncated, "{len}: {error}");
    }
    assert!(
        message(TargetWeights::read(&PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml")))
            .ends_with("it does not begin with `GGUF`")
    );
}

#[test]
fn metadata_that_make_no_sense() {
    let set = |key: &str, value: Value| {
        let mut file = File::llama();
        file.set(key, value);
        target(&file)
    };
    let invalid = |reason: &str| format!("is not a valid GGUF file: {reason}");
    assert_eq!(
        set("x", Value::Raw(13, vec![])),
        invalid("key `x` has a value of type 13, which there is not")
    );
    assert_eq!(set("x", Value::Raw(7, vec![2])), invalid("a flag has the value 2"));
    let text = |bytes: &[u8]| [&(bytes.len() as u64).to_le_bytes()[..], bytes].concat();
    assert_eq!(set("x", Value::Raw(8, text(b"a\xff"))), invalid("`a\u{fffd}` is not UTF-8"));
    // Arrays of arrays: a little is legal, a lot is not.
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
    assert_eq!(set("x", nested(5)), invalid("key `x` nests arrays more than 4 deep"));
    assert_eq!(set("x", nested(100_000)), invalid("key `x` nests arrays more than 4 deep"));
    // Counts that the file has no room for.
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
    for alignment in [Value::U32(0), Value::U32(24), Value::U32(1 << 30), "32".into(), Value::F32(f32::NAN)] {
        assert_eq!(
            set("general.alignment", alignment),
            invalid("`general.alignment` is not a power of two up to 1048576")
        );
    }
}

#[test]
fn configurations_that_are_wrong_or_not_supported() {
    let cases: Vec<(&str, Value, &str)> = vec![
        (
            "general.architecture",
            "gemma".into(),
            "is \"gemma\", which is not supported; supported: llama, qwen3",
        ),
        ("general.architecture", Value::U32(3), "is 3, expected a string"),
        ("llama.block_count", Value::U32(0), "is 0, expected a whole number in 1..=4096"),
        ("llama.block_count", Value::I32(-1), "is -1, expected a whole number in 1..=4096"),
        ("llama.block_count", Value::U32(2), "is 2, expected at most 1, the layers that 11 tensors make"),
        (
            "llama.embedding_length",
            Value::F32(f32::NAN),
            "is \"NaN\", expected a whole number in 1..=16777216",
        ),
        (
            "llama.expert_count",
            Value::U32(8),
            "is 8, which is not supported; supported: 0: dense models only, no mixture of experts",
        ),
        (
            "llama.attention.sliding_window",
            Value::U32(4096),
            "is 4096, which is not supported; supported: 0: full attention in every layer",
        ),
        (
            "llama.attention.scale",
            Value::F32(0.5),
            "is 0.5, which is not supported; supported: 0, which stands for 1/√head_dim",
        ),
        ("llama.attention.causal", Value::Bool(false), "is false, which is not supported; supported: true"),
        (
            "llama.attention.head_count",
            Value::U32(3),
            "is 3, expected a divisor of `llama.embedding_length`, 8",
        ),
        ("llama.attention.head_count_kv", Value::U32(3), "is 3, expected a divisor of 2 query heads"),
        (
            "llama.attention.head_count_kv",
            Value::I32s(vec![1, 2, 3, 4, 5, 6]),
            "is [1,2,3,4,\"2 more\"], expected a whole number in 1..=16384",
        ),
        (
            "llama.attention.key_length",
            Value::U32(3),
            "is 3, expected heads of an even number of dimensions, at most 4096",
        ),
        (
            "llama.attention.value_length",
            Value::U32(8),
            "is 8, which is not supported; supported: 4, the dimensions of a head",
        ),
        (
            "llama.rope.dimension_count",
            Value::U32(2),
            "is 2, which is not supported; supported: 4, the dimensions of a head",
        ),
        (
            "llama.attention.layer_norm_rms_epsilon",
            Value::F32(0.0),
            "is 0.0, expected a finite number above 0",
        ),
        ("llama.rope.freq_base", Value::F32(-1.0), "is -1.0, expected a finite number above 0"),
        (
            "llama.rope.scaling.type",
            "longrope".into(),
            "is \"longrope\", which is not supported; supported: none, linear, yarn",
        ),
        (
            "llama.rope.scaling.yarn_ext_factor",
            Value::F32(0.5),
            "is 0.5, which is not supported; supported: 1",
        ),
        ("tokenizer.ggml.eos_token_id", Value::I32(-1), "is -1, expected a token id"),
    ];
    for (key, value, expected) in cases {
        let mut file = File::llama();
        file.set(key, value);
        assert_eq!(target(&file), format!("`{key}` {expected}"));
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
    let zero = "tensor `rope_freqs.weight` has the element 0, which cannot divide a frequency";
    assert_eq!(target(&file), format!("is not a valid GGUF file: {zero}"));
    let start = file.tensor("rope_freqs.weight").offset as usize;
    file.data[start..start + 8].copy_from_slice(little_endian(&[1.0, 8.0]).as_slice());
    assert_eq!(file.open().unwrap().config().unwrap().rope.inv_freq, [1.0, 0.00125]);
    // From the file, without reading the weights.
    let path = tempfile::tempdir().unwrap();
    let path = path.path().join("model.gguf");
    std::fs::write(&path, file.bytes()).unwrap();
    assert_eq!(ModelConfig::read(&path).unwrap().rope.inv_freq, [1.0, 0.00125]);
    file.tensor("rope_freqs.weight").shape = vec![2, 1];
    assert_eq!(target(&file), "tensor `rope_freqs.weight` has shape [2, 1], expected [2]");
}

fn little_endian(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|x| x.to_le_bytes()).collect()
}

#[test]
fn tensors_that_do_not_fit() {
    let edit = |name: &str, edit: &dyn Fn(&mut common::gguf::TensorInfo)| {
        let mut file = File::llama();
        edit(file.tensor(name));
        target(&file)
    };
    let invalid = |reason: &str| format!("is not a valid GGUF file: tensor `blk.0.ffn_up.weight` {reason}");
    let up = "blk.0.ffn_up.weight";
    assert_eq!(
        edit(up, &|t| t.shape = vec![8, 12]),
        "tensor `blk.0.ffn_up.weight` has shape [8, 12], expected [12, 8]"
    );
    assert_eq!(edit(up, &|t| t.shape = vec![1; 5]), invalid("has 5 dimensions"));
    let beyond = invalid("goes beyond the end of the file; it may be truncated");
    assert_eq!(edit(up, &|t| t.shape = vec![1 << 30, 8]), beyond);
    assert_eq!(edit(up, &|t| t.offset = 1 << 40), beyond);
    assert_eq!(edit(up, &|t| t.offset = u64::MAX - 31), beyond);
    let too_large = invalid("has more elements than there can be");
    assert_eq!(edit(up, &|t| t.shape = vec![u64::MAX, 8]), too_large);
    assert_eq!(edit(up, &|t| t.shape = vec![1 << 40, 1 << 40, 8]), too_large);
    assert_eq!(edit(up, &|t| t.offset = 33), invalid("begins at byte 33, which is not aligned"));
    assert_eq!(edit(up, &|t| t.kind = 8), invalid("has rows of 8 elements, not whole blocks"));
    let overlap = "is not a valid GGUF file: tensors `token_embd.weight` and `blk.0.ffn_up.weight` overlap";
    assert_eq!(edit(up, &|t| t.offset = 0), overlap);

    let supported = "supported: F32, F16, BF16, Q8_0, Q4_0, Q4_1, Q4_K, Q6_K";
    for (kind, name) in [
        (6, "Q5_0"),
        (13, "Q5_K"),
        (23, "IQ4_XS"),
        (26, "I32"),
        (4, "number 4"),
        (u32::MAX, "number 4294967295"),
    ] {
        let expected = format!("tensor `blk.0.ffn_up.weight` has type {name}; {supported}");
        assert_eq!(edit(up, &|t| t.kind = kind), expected);
    }

    assert_eq!(
        edit(up, &|t| t.name = "blk.0.ffn_gate.weight".into()),
        "tensor `blk.0.ffn_gate.weight` occurs more than once"
    );
    assert_eq!(edit(up, &|t| t.name = "up".into()), "tensor `blk.0.ffn_up.weight` is missing");
    assert_eq!(edit("token_embd.weight", &|t| t.name = "e".into()), "tensor `token_embd.weight` is missing");
    assert_eq!(
        edit("token_embd.weight", &|t| t.shape = vec![32]),
        "is not a valid GGUF file: tensor `token_embd.weight` has shape [32], which no embedding has"
    );
    for extra in ["blk.0.attn_output.bias", "blk.0.ffn_gate_inp.weight", "blk.1.attn_q.weight"] {
        let mut file = File::llama();
        file.add(extra, &[8]);
        assert_eq!(target(&file), format!("tensor `{extra}` is not part of a llama model"));
    }
}

#[test]
fn tokenizers_that_are_wrong_or_not_supported() {
    let cases: Vec<(&str, Value, &str)> = vec![
        (
            "tokenizer.ggml.model",
            "llama".into(),
            "`tokenizer.ggml.model` is \"llama\", which is not supported; supported: gpt2 (byte-level BPE)",
        ),
        (
            "tokenizer.ggml.pre",
            "deepseek-llm".into(),
            "`tokenizer.ggml.pre` is \"deepseek-llm\", which is not supported; supported: smollm, gpt-2, llama-bpe, qwen2",
        ),
        (
            "tokenizer.ggml.tokens",
            Value::I32s(vec![1, 2]),
            "`tokenizer.ggml.tokens` is [1,2], expected an array of strings",
        ),
        (
            "tokenizer.ggml.tokens",
            Value::texts(&["a", "b", "a", "ab"]),
            "tokenizer ids 0 and 2 have the same token, `a`",
        ),
        (
            "tokenizer.ggml.token_type",
            Value::I32s(vec![1, 1]),
            "`tokenizer.ggml.token_type` is [1,1], expected 4 of them, one a token",
        ),
        (
            "tokenizer.ggml.token_type",
            Value::I32s(vec![1, 1, 7, 1]),
            "`tokenizer.ggml.token_type` is [1,1,7,1], expected numbers in 1..=6",
        ),
        ("tokenizer.ggml.merges", Value::texts(&["ab"]), "tokenizer merge `ab` is not two tokens"),
        (
            "tokenizer.ggml.merges",
            Value::texts(&["a c"]),
            "tokenizer merge `a c` needs `c`, which is not a token",
        ),
        (
            "tokenizer.ggml.tokens",
            Value::texts(&["a", "b", "c", "d"]),
            "tokenizer merge `a b` needs `ab`, which is not a token",
        ),
        ("tokenizer.ggml.add_bos_token", Value::Bool(true), "key `tokenizer.ggml.bos_token_id` is missing"),
        (
            "tokenizer.ggml.add_bos_token",
            Value::U32(1),
            "`tokenizer.ggml.add_bos_token` is 1, expected true or false",
        ),
    ];
    for (key, value, expected) in cases {
        let mut file = File::llama();
        file.set(key, value);
        let error = tokenizer(&file);
        assert!(error.starts_with(expected), "{error}, expected {expected}");
    }
    for key in
        ["tokenizer.ggml.model", "tokenizer.ggml.pre", "tokenizer.ggml.tokens", "tokenizer.ggml.merges"]
    {
        let mut file = File::llama();
        file.remove(key);
        assert_eq!(tokenizer(&file), format!("key `{key}` is missing"));
    }
    let mut file = File::llama();
    file.set("tokenizer.ggml.pre", "llama-bpe");
    file.set("tokenizer.ggml.bos_token_id", Value::U32(4));
    assert_eq!(tokenizer(&file), "`tokenizer.ggml.bos_token_id` is 4, expected one of 4 tokens");
}

#[test]
fn what_is_put_around_a_text() {
    let encode = |pairs: &[(&str, bool)]| {
        let mut file = File::llama();
        file.set("tokenizer.ggml.bos_token_id", Value::U32(1));
        pairs.iter().for_each(|(key, value)| file.set(key, Value::Bool(*value)));
        file.open().unwrap().tokenizer().unwrap().encode("ab<end>a", true).unwrap()
    };
    let (bos, eos) = ("tokenizer.ggml.add_bos_token", "tokenizer.ggml.add_eos_token");
    assert_eq!(encode(&[]), [2, 3, 0]);
    assert_eq!(encode(&[(bos, true)]), [1, 2, 3, 0]);
    assert_eq!(encode(&[(bos, true), (eos, true)]), [1, 2, 3, 0, 3]);
    assert_eq!(encode(&[(bos, false), (eos, true)]), [2, 3, 0, 3]);
}

/// A change to a file; positions are taken modulo what there is.
#[derive(Clone, Debug)]
enum Edit {
    Flip(usize, u8),
    Set(usize, u8),
    Insert(usize, u8),
    Remove(usize),
    /// Four bytes that may be a type, a rank or a number.
    Word(usize, u32),
    /// Eight bytes that may be a length, a dimension or an offset.
    Long(usize, u64),
    /// Some bytes, repeated elsewhere.
    Copy(usize, usize, usize),
    Truncate(usize),
}

/// Numbers at which something begins to go wrong.
fn long() -> impl Strategy<Value = u64> {
    prop_oneof![
        any::<u64>(),
        (0u32..64, -1i64..2).prop_map(|(shift, off)| (1u64 << shift).wrapping_add_signed(off)),
        0u64..200,
    ]
}

fn edit() -> impl Strategy<Value = Edit> {
    // Most of it where the header is: the first kilobytes, or nearly all of a tokenizer's file.
    let at = || prop_oneof![6 => 0usize..3000, 3 => 0usize..12_000, 1 => any::<usize>()];
    prop_oneof![
        4 => (at(), 0u8..8).prop_map(|(at, bit)| Edit::Flip(at, bit)),
        4 => (at(), any::<u8>()).prop_map(|(at, byte)| Edit::Set(at, byte)),
        1 => (at(), any::<u8>()).prop_map(|(at, byte)| Edit::Insert(at, byte)),
        1 => at().prop_map(Edit::Remove),
        3 => (at(), prop_oneof![any::<u32>(), 0u32..40]).prop_map(|(at, word)| Edit::Word(at, word)),
        3 => (at(), long()).prop_map(|(at, long)| Edit::Long(at, long)),
        2 => (at(), at(), 1usize..64).prop_map(|(from, to, len)| Edit::Copy(from, to, len)),
        1 => at().prop_map(Edit::Truncate),
    ]
}

fn apply(bytes: &mut Vec<u8>, edit: &Edit) {
    let len = bytes.len().max(1);
    let mut overwrite = |at: usize, new: &[u8]| {
        bytes.iter_mut().skip(at % len).zip(new).for_each(|(old, new)| *old = *new);
    };
    match *edit {
        Edit::Flip(at, bit) => {
            let old = bytes.get(at % len).copied().unwrap_or(0);
            bytes.iter_mut().skip(at % len).take(1).for_each(|byte| *byte = old ^ 1 << bit);
        }
        Edit::Set(at, byte) => overwrite(at, &[byte]),
        Edit::Word(at, word) => overwrite(at, &word.to_le_bytes()),
        Edit::Long(at, long) => overwrite(at, &long.to_le_bytes()),
        Edit::Copy(from, to, count) => {
            let copied: Vec<u8> = bytes.iter().skip(from % len).take(count).copied().collect();
            bytes.iter_mut().skip(to % len).zip(copied).for_each(|(old, new)| *old = new);
        }
        Edit::Insert(at, byte) => bytes.insert(at % len % (bytes.len() + 1), byte),
        Edit::Remove(at) if !bytes.is_empty() => drop(bytes.remove(at % len)),
        Edit::Remove(_) => {}
        Edit::Truncate(at) => bytes.truncate(at % len),
    }
}

/// Metadata and tensor infos that are well formed, with any contents.
fn any_file() -> impl Strategy<Value = File> {
    let base = File::llama();
    let keys: Vec<String> =
        base.pairs.iter().map(|(key, _)| key.clone()).chain(MORE_KEYS.map(String::from)).collect();
    let text = || {
        prop_oneof![
            prop::sample::select(vec![
                "llama",
                "qwen3",
                "gpt2",
                "smollm",
                "llama-bpe",
                "yarn",
                "linear",
                "",
                "a b",
                "é"
            ])
            .prop_map(String::from),
            any::<String>(),
        ]
    };
    let value = prop_oneof![
        prop_oneof![any::<u32>(), 0u32..20].prop_map(Value::U32),
        any::<i32>().prop_map(Value::I32),
        any::<f32>().prop_map(Value::F32),
        any::<bool>().prop_map(Value::Bool),
        text().prop_map(Value::Text),
        prop::collection::vec(text(), 0..8).prop_map(Value::Texts),
        prop::collection::vec(0i32..8, 0..8).prop_map(Value::I32s),
        (0u32..15, prop::collection::vec(any::<u8>(), 0..40))
            .prop_map(|(kind, bytes)| Value::Raw(kind, bytes)),
    ];
    let pairs = prop::collection::vec((prop::sample::select(keys), value), 0..4);
    let names: Vec<String> = base.tensors.iter().map(|tensor| tensor.name.clone()).collect();
    let info = (prop::sample::select(names), prop::collection::vec(long(), 0..5), 0u32..32, long());
    (pairs, prop::collection::vec(info, 0..3)).prop_map(move |(pairs, infos)| {
        let mut file = base.clone();
        pairs.into_iter().for_each(|(key, value)| file.set(&key, value));
        for (name, shape, kind, offset) in infos {
            let tensor = file.tensor(&name);
            (tensor.shape, tensor.kind, tensor.offset) = (shape, kind, offset & !31);
        }
        file
    })
}

const MORE_KEYS: [&str; 8] = [
    "general.alignment",
    "llama.rope.scaling.type",
    "llama.rope.scaling.factor",
    "llama.attention.key_length",
    "tokenizer.ggml.bos_token_id",
    "tokenizer.ggml.add_bos_token",
    "tokenizer.chat_template",
    "qwen3.block_count",
];

/// Panics of the `tokenizers` crate are caught and become errors; reporting them with a backtrace would
/// allocate megabytes for the symbols, which are not the file's doing.
fn quieten_tokenizers() {
    static ONCE: std::sync::Once = std::sync::Once::new();
    ONCE.call_once(|| {
        let report = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            if !panic.location().is_some_and(|location| location.file().contains("tokenizers-")) {
                report(panic);
            }
        }));
    });
}

/// Everything that can be asked of a file. In a thread of its own: the `tokenizers` crate keeps a cache
/// for every tokenizer that a thread ever used.
fn read_all(bytes: Vec<u8>) {
    quieten_tokenizers();
    if let Err(panic) = std::thread::spawn(|| read_all_here(bytes)).join() {
        std::panic::resume_unwind(panic);
    }
}

fn read_all_here(bytes: Vec<u8>) {
    let file_len = bytes.len();
    let start = Instant::now();
    if let Ok(gguf) = Gguf::from_bytes(Path::new("model.gguf"), bytes) {
        for name in gguf.names() {
            let _ = gguf.tensor(name);
        }
        if let Ok(config) = gguf.config() {
            assert!(config.validate().is_ok());
        }
        let _ = gguf.target();
        if let Ok(tokenizer) = gguf.tokenizer()
            && let Ok(ids) = tokenizer.encode("The end ab 12345\n\t é😀<|im_end|>", true)
        {
            let _ = tokenizer.decode(&ids, false);
        }
        if let Ok(template) = gguf.chat_template() {
            let _ = template.render(&[ChatMessage::new("user", "a")], true);
        }
    }
    // A tokenizer's tables, hashed, take a multiple of its texts; weights in 4 bits become 16.
    let (largest, bound) = (LARGEST_REQUEST.get(), (1 << 20) + 16 * file_len);
    assert!(largest <= bound, "{largest} bytes at once for a file of {file_len}");
    assert!(
        start.elapsed() < Duration::from_secs(20),
        "a file of {file_len} bytes took {:?}",
        start.elapsed()
    );
}

/// 256 cases a test, or as many as `PROPTEST_CASES` says.
fn config() -> ProptestConfig {
    ProptestConfig {
        failure_persistence: Some(Box::new(FileFailurePersistence::WithSource("proptest-regressions"))),
        ..ProptestConfig::default()
    }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn a_damaged_file_is_an_error_or_harmless(
        name in prop::sample::select(vec![
            "llama", "qwen3", "llama-llama3", "llama-quantized", "llama-biases", "blocks",
            "tokenizer-smollm", "tokenizer-llama-bpe", "tokenizer-qwen2",
        ]),
        edits in prop::collection::vec(edit(), 1..4),
    ) {
        let mut bytes = std::fs::read(fixture(name)).unwrap();
        edits.iter().for_each(|edit| apply(&mut bytes, edit));
        read_all(bytes);
    }

    #[test]
    fn any_contents_are_an_error_or_harmless(
        file in any_file(),
        edits in prop::collection::vec(edit(), 0..2),
    ) {
        let mut bytes = file.bytes();
        edits.iter().for_each(|edit| apply(&mut bytes, edit));
        read_all(bytes);
    }
}

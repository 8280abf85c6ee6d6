//! Tests with randomly damaged GGUF files, and well-formed GGUF files with random contents: reading them gives an error
//! or does no harm.

use std::path::Path;

use flexdraft::model::{ChatMessage, Gguf, QuantizedWeights, TemplateVariables};
use proptest::prelude::*;

use super::fixture;
use crate::support::bounds::within_bounds;
use crate::support::gguf::{File, Value};
use crate::support::properties::properties;

/// A random change to a GGUF file; positions are taken modulo the length of the file.
#[derive(Clone, Debug)]
enum Edit {
    Flip(usize, u8),
    Set(usize, u8),
    Insert(usize, u8),
    Remove(usize),
    /// Overwrites four bytes, which may hold a type, a rank or a number.
    Word(usize, u32),
    /// Overwrites eight bytes, which may hold a length, a dimension or an offset.
    Long(usize, u64),
    /// Copies some bytes of the file to another place.
    Copy(usize, usize, usize),
    Truncate(usize),
}

/// Returns numbers near powers of two, where errors in bounds checks show, and also small and random numbers.
fn long() -> impl Strategy<Value = u64> {
    prop_oneof![
        any::<u64>(),
        (0u32..64, -1i64..2).prop_map(|(shift, off)| (1u64 << shift).wrapping_add_signed(off)),
        0u64..200,
    ]
}

fn edit() -> impl Strategy<Value = Edit> {
    // Most random changes are in the header: the first kilobytes of a model, or nearly all of a tokenizer's file.
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

/// Generates well-formed metadata and tensor descriptions with random contents.
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
                "llama",
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
        prop::collection::vec(any::<f32>(), 0..8).prop_map(Value::F32s),
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

const MORE_KEYS: [&str; 10] = [
    "tokenizer.ggml.scores",
    "tokenizer.ggml.add_space_prefix",
    "general.alignment",
    "llama.rope.scaling.type",
    "llama.rope.scaling.factor",
    "llama.attention.key_length",
    "tokenizer.ggml.bos_token_id",
    "tokenizer.ggml.add_bos_token",
    "tokenizer.chat_template",
    "qwen3.block_count",
];

/// Reads everything that the library can read from a GGUF file.
fn read_all(bytes: Vec<u8>) {
    within_bounds(bytes.len(), move || {
        let Ok(gguf) = Gguf::from_bytes(Path::new("model.gguf"), bytes) else { return };
        for name in gguf.names() {
            let _ = gguf.tensor(name);
        }
        if let Ok(config) = gguf.config() {
            assert!(config.validate().is_ok());
        }
        let _ = gguf.target();
        if let Ok(target) = gguf.target_with(QuantizedWeights::Keep) {
            let _ = target.embed.to_f32();
        }
        if let Ok(tokenizer) = gguf.tokenizer()
            && let Ok(ids) = tokenizer.encode("The end ab 12345\n\t é😀<|im_end|>", true)
        {
            let _ = tokenizer.decode(&ids, false);
        }
        if let Ok(template) = gguf.chat_template() {
            let _ = template.render(&TemplateVariables::new(&[ChatMessage::new("user", "a")], true));
        }
    });
}

proptest! {
    #![proptest_config(properties(64))]

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

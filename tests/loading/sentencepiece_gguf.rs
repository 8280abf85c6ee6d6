//! Tests that GGUF files with a SentencePiece tokenizer, which has scores in place of merges, give the ids and the
//! texts that transformers gives for the same tokenizer.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use flexdraft::model::{TextStream, Tokenizer};
use proptest::prelude::*;
use serde_json::Value as Json;

use crate::support::bounds::within_bounds;
use crate::support::gguf::{File, Value};
use crate::support::properties::properties;

fn recorded(path: &str) -> Json {
    let path =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/transformers/tokenizers").join(path);
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

/// Returns the recorded tokenizer as a GGUF file stores it: a token's score falls with the rank of the merge that makes
/// it.
fn file() -> File {
    let recorded = recorded("byte-fallback/tokenizer.json");
    let vocab: BTreeMap<String, u64> = serde_json::from_value(recorded["model"]["vocab"].clone()).unwrap();
    let mut tokens: Vec<(u64, String)> = vocab.into_iter().map(|(token, id)| (id, token)).collect();
    tokens.sort();
    let merged: Vec<String> = recorded["model"]["merges"]
        .as_array()
        .unwrap()
        .iter()
        .map(|pair| pair[0].as_str().unwrap().to_owned() + pair[1].as_str().unwrap())
        .collect();
    let rank = |token: &str| merged.iter().position(|other| other == token);
    let score = |token: &str| rank(token).map_or(-1000.0, |rank| -(rank as f32));
    let kind = |token: &str| match token {
        "<unk>" => 2,
        "<s>" | "</s>" => 3,
        token if token.starts_with("<0x") => 6,
        _ => 1,
    };
    let mut file = File::llama();
    file.set("tokenizer.ggml.model", "llama");
    file.remove("tokenizer.ggml.merges");
    file.remove("tokenizer.ggml.pre");
    file.set("tokenizer.ggml.scores", Value::F32s(tokens.iter().map(|(_, token)| score(token)).collect()));
    file.set("tokenizer.ggml.token_type", Value::I32s(tokens.iter().map(|(_, token)| kind(token)).collect()));
    file.set("tokenizer.ggml.bos_token_id", Value::U32(1));
    file.set("tokenizer.ggml.eos_token_id", Value::U32(2));
    let texts: Vec<&str> = tokens.iter().map(|(_, token)| token.as_str()).collect();
    file.set("tokenizer.ggml.tokens", Value::texts(&texts));
    file.tensor("token_embd.weight").shape = vec![tokens.len() as u64, 8];
    file.data.resize(1 << 16, 0);
    let end = file.data.len() as u64;
    file.tensor("token_embd.weight").offset = end;
    file.data.resize(file.data.len() + tokens.len() * 32, 0);
    file
}

fn tokenizer(file: &File) -> Tokenizer {
    file.open().unwrap().tokenizer().unwrap()
}

#[test]
fn ids_and_texts_are_those_of_transformers() {
    let tokenizer = tokenizer(&file());
    for case in recorded("byte-fallback.json").as_array().unwrap() {
        let text = case["text"].as_str().unwrap();
        let ids = |key: &str| serde_json::from_value::<Vec<u32>>(case[key].clone()).unwrap();
        assert_eq!(tokenizer.encode(text, false).unwrap(), ids("ids"), "{text:?}");
        let ids = ids("ids_with_special");
        assert_eq!(tokenizer.encode(text, true).unwrap(), ids, "{text:?}");
        for (skip, key) in [(false, "decoded"), (true, "decoded_without_special")] {
            assert_eq!(tokenizer.decode(&ids, skip).unwrap(), case[key].as_str().unwrap());
        }
    }
    assert_eq!(tokenizer.special_ids(), [0, 1, 2]);
}

/// A text that continues a prompt keeps its leading space; a text at the beginning does not have one.
#[test]
fn a_continuation_begins_with_its_space() {
    let tokenizer = Arc::new(tokenizer(&file()));
    let ids = tokenizer.encode("a in", false).unwrap();
    let streamed = |context: &[u32], ids: &[u32]| {
        let mut stream = TextStream::after(tokenizer.clone(), true, context).unwrap();
        let mut text: String = ids.iter().map(|&id| stream.push(&[id]).unwrap()).collect();
        text.push_str(&stream.finish().unwrap());
        text
    };
    let (first, second) = ids.split_at(ids.len() - 1);
    assert_eq!(streamed(&[], &ids), "a in");
    assert_eq!(streamed(&[1], &ids), "a in");
    assert_eq!(streamed(first, second), " in");
    let mut bare = file();
    bare.set("tokenizer.ggml.add_space_prefix", Value::Bool(false));
    let bare = self::tokenizer(&bare);
    assert_eq!(bare.decode(&bare.encode(" a", false).unwrap(), true).unwrap(), " a");
}

#[test]
fn scores_that_do_not_fit() {
    let error = |key: &str, value: Option<Value>| {
        let mut file = file();
        match value {
            Some(value) => file.set(key, value),
            None => file.remove(key),
        }
        file.open().unwrap().tokenizer().unwrap_err().to_string().replace("model.gguf: ", "")
    };
    assert_eq!(error("tokenizer.ggml.scores", None), "key `tokenizer.ggml.scores` is missing");
    assert_eq!(
        error("tokenizer.ggml.scores", Some(Value::F32s(vec![1.0]))),
        "`tokenizer.ggml.scores` is [1.0], expected one number per token, 277 in total"
    );
    assert_eq!(
        error("tokenizer.ggml.scores", Some(Value::I32s(vec![1]))),
        "`tokenizer.ggml.scores` is [1], expected an array of 32-bit floats"
    );
    assert_eq!(error("tokenizer.ggml.bos_token_id", None), "key `tokenizer.ggml.bos_token_id` is missing");
}

proptest! {
    #![proptest_config(properties(64))]

    /// The streamed text after a prompt is what decoding prompt and continuation adds to decoding the prompt, wherever
    /// the prompt ends.
    #[test]
    fn a_continuation_is_the_rest_of_the_whole(text in "[a-f in\u{e9}\u{1f600}]{1,20}", at: prop::sample::Index) {
        let tokenizer = Arc::new(tokenizer(&file()));
        let ids = tokenizer.encode(&text, true).unwrap();
        let (prompt, rest) = ids.split_at(at.index(ids.len()) + 1);
        let before = tokenizer.decode(prompt, true).unwrap();
        prop_assume!(!before.contains('\u{fffd}'));
        let mut stream = TextStream::after(tokenizer.clone(), true, prompt).unwrap();
        let mut streamed: String = rest.iter().map(|&id| stream.push(&[id]).unwrap()).collect();
        streamed.push_str(&stream.finish().unwrap());
        prop_assert_eq!(before + &streamed, tokenizer.decode(&ids, true).unwrap());
    }

    #[test]
    fn damaged_files_are_an_error_or_harmless(edits in prop::collection::vec((any::<usize>(), any::<u8>()), 1..4)) {
        let mut bytes = file().bytes();
        for (at, byte) in edits {
            // The damage is within the first 9000 bytes, which are most of the header.
            let len = bytes.len().min(9000);
            bytes[at % len] = byte;
        }
        within_bounds(bytes.len(), move || {
            let Ok(gguf) = flexdraft::model::Gguf::from_bytes(Path::new("model.gguf"), bytes) else { return };
            if let Ok(tokenizer) = gguf.tokenizer()
                && let Ok(ids) = tokenizer.encode("in a tea\u{e9} <s>", true)
            {
                let _ = tokenizer.decode(&ids, false);
            }
        });
    }
}

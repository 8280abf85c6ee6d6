//! Tests of errors in the tokenizer of a GGUF file, and in the tokens that it adds around a text.

use super::tokenizer;
use crate::support::gguf::{File, Value};

#[test]
fn tokenizers_that_are_wrong_or_not_supported() {
    let cases: Vec<(&str, Value, &str)> = vec![
        (
            "tokenizer.ggml.model",
            "bert".into(),
            "`tokenizer.ggml.model` is \"bert\", which is not supported; supported: gpt2 (byte-level BPE), llama (SentencePiece)",
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
            "tokenizer ids 0 and 2 have the same token `a`, expected different tokens",
        ),
        (
            "tokenizer.ggml.token_type",
            Value::I32s(vec![1, 1]),
            "`tokenizer.ggml.token_type` is [1,1], expected one number per token, 4 in total",
        ),
        (
            "tokenizer.ggml.token_type",
            Value::I32s(vec![1, 1, 7, 1]),
            "`tokenizer.ggml.token_type` is [1,1,7,1], expected numbers from 1 to 6",
        ),
        (
            "tokenizer.ggml.merges",
            Value::texts(&["ab"]),
            "tokenizer merge `ab` must be two tokens with a space between them",
        ),
        (
            "tokenizer.ggml.merges",
            Value::texts(&["a c"]),
            "tokenizer merge `a c` needs the token `c`, which is missing",
        ),
        (
            "tokenizer.ggml.tokens",
            Value::texts(&["a", "b", "c", "d"]),
            "tokenizer merge `a b` needs the token `ab`, which is missing",
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
    assert_eq!(
        tokenizer(&file),
        "`tokenizer.ggml.bos_token_id` is 4, expected an id below 4, the number of tokens"
    );
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

//! Tests with randomly damaged model files: reading them gives an error or does no harm, and never panics.

use std::fs;
use std::path::Path;

use flexdraft::model::{
    ChatMessage, ChatTemplate, Checkpoint, DrafterWeights, ModelConfig, ModelWeights, TargetWeights,
    TemplateVariables, Tokenizer,
};
use proptest::prelude::*;

use super::directory::{Copy, DRAFT, LLAMA, ORTHRUS, QWEN3, YARN, fixture, split};
use crate::support::bounds::within_bounds;
use crate::support::properties::properties;

/// A random edit, which flips, overwrites, inserts or removes bytes.
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

/// Generates edits of a file; bytes that are common in headers, configs and templates come up often.
fn edits() -> impl Strategy<Value = Vec<(u8, usize, u8)>> {
    let byte = prop_oneof![any::<u8>(), prop::sample::select(b"0123456789[]{}(),:|%\"-+*eE.\\ntf".to_vec())];
    prop::collection::vec((0u8..4, any::<usize>(), byte), 1..6)
}

/// Writes the damaged `file` to `copy`, and reads the directory within the limits on memory and time for its size.
fn read_damaged(
    copy: Copy,
    name: &str,
    mut file: Vec<u8>,
    edits: &[(u8, usize, u8)],
    within: usize,
    read: impl FnOnce(&Path) + Send + 'static,
) {
    mutate(&mut file, edits, within);
    copy.write(name, file);
    let bytes =
        fs::read_dir(copy.path()).unwrap().map(|entry| entry.unwrap().metadata().unwrap().len()).sum::<u64>();
    within_bounds(bytes as usize, move || read(copy.path()));
}

proptest! {
    #![proptest_config(properties(64))]

    #[test]
    fn a_damaged_header_is_an_error_or_harmless(edits in edits()) {
        let copy = Copy::of(LLAMA);
        let file = fs::read(copy.path().join("model.safetensors")).unwrap();
        let header_end = file.len() - split(&file).1.len();
        read_damaged(copy, "model.safetensors", file, &edits, header_end, |path| {
            if let Ok(weights) = TargetWeights::read(path) {
                weights.layers.iter().for_each(|layer| drop(layer.down.weight.to_f32()));
            }
            if let Ok(checkpoint) = Checkpoint::read(path) {
                checkpoint.names().for_each(|name| drop(checkpoint.tensor(name).map(|tensor| tensor.to_f32())));
            }
        });
    }

    #[test]
    fn a_damaged_config_is_an_error_or_harmless(edits in edits(), model in prop::sample::select(vec![LLAMA, YARN, QWEN3, ORTHRUS])) {
        let copy = Copy::of(model);
        let file = fs::read(copy.path().join("config.json")).unwrap();
        let len = file.len();
        read_damaged(copy, "config.json", file, &edits, len, |path| {
            if let Ok(weights) = ModelWeights::read(path) {
                assert!(weights.target.config.validate().is_ok());
                assert!(weights.drafter.is_none_or(|drafter| drafter.attention.len() == weights.target.layers.len()));
            }
        });
    }

    #[test]
    fn a_damaged_drafter_config_is_an_error_or_harmless(edits in edits()) {
        let target = ModelConfig::read(&fixture("tiny/target")).unwrap();
        let copy = Copy(tempfile::tempdir().unwrap());
        let file = fs::read(fixture(DRAFT).join("config.json")).unwrap();
        let len = file.len();
        // The directory has no weights, so reading fails even if the damaged config is valid.
        read_damaged(copy, "config.json", file, &edits, len, move |path| {
            assert!(DrafterWeights::read(path, &target).is_err());
        });
    }

    #[test]
    fn a_damaged_tokenizer_is_an_error_or_harmless(edits in edits()) {
        let copy = Copy(tempfile::tempdir().unwrap());
        let file = fs::read(fixture("tiny/target/tokenizer.json")).unwrap();
        let len = file.len();
        read_damaged(copy, "tokenizer.json", file, &edits, len, |path| {
            if let Ok(tokenizer) = Tokenizer::read(path, 384)
                && let Ok(ids) = tokenizer.encode("def f(x): return 'é😀'", true)
            {
                let _ = tokenizer.decode(&ids, true);
            }
        });
    }

    /// The files beside `tokenizer.json` add tokens to it and change their flags.
    #[test]
    fn damaged_files_beside_a_tokenizer_are_an_error_or_harmless(edits in edits(), file in prop::sample::select(SIDE_FILES.to_vec())) {
        let copy = Copy::of("loading/added-tokens/in-tokenizer-config");
        let (name, text) = file;
        if name != "tokenizer_config.json" {
            // The other files are read only without `added_tokens_decoder`.
            copy.write("tokenizer_config.json", r#"{"bos_token": "<s>"}"#);
        }
        read_damaged(copy, name, text.into(), &edits, text.len(), |path| {
            if let Ok(tokenizer) = Tokenizer::read(path, 300)
                && let Ok(ids) = tokenizer.encode("hi <think>é</think><|turn|>", true)
            {
                let _ = tokenizer.decode(&ids, true);
            }
            let _ = ChatTemplate::read(path).and_then(|template| template.render(&TemplateVariables::new(&[], true)));
        });
    }

    #[test]
    fn a_damaged_template_is_an_error_or_harmless(edits in edits()) {
        let copy = Copy(tempfile::tempdir().unwrap());
        copy.write("tokenizer_config.json", "{}");
        read_damaged(copy, "chat_template.jinja", TEMPLATE.into(), &edits, TEMPLATE.len(), |path| {
            if let Ok(template) = ChatTemplate::read(path) {
                let turns = [ChatMessage::new("system", "s"), ChatMessage::new("user", "é"), ChatMessage::new("assistant", "")];
                let _ = template.render(&TemplateVariables::new(&turns, true));
            }
        });
    }
}

/// The files beside `tokenizer.json`, with tokens in every form that they may have.
const SIDE_FILES: [(&str, &str); 3] = [
    (
        "tokenizer_config.json",
        r#"{"bos_token": "<s>", "eos_token": {"content": "<|end|>", "lstrip": true}, "extra_special_tokens": ["<x>"],
            "added_tokens_decoder": {"260": {"content": "<|turn|>", "special": true}, "261": {"content": "<|end|>"},
            "262": {"content": "<think>", "special": false, "normalized": true, "single_word": true, "rstrip": true}},
            "chat_template": [{"name": "default", "template": "{{ bos_token }}{{ extra }}"}]}"#,
    ),
    (
        "special_tokens_map.json",
        r#"{"eos_token": {"content": "<|end|>"}, "additional_special_tokens": ["<|turn|>", "<y>"]}"#,
    ),
    ("added_tokens.json", r#"{"<|turn|>": 260, "<|end|>": 261, "<think>": 262}"#),
];

/// A chat template with the usual elements: loops, ranges, filters, namespaces, slices, macros, arithmetic.
const TEMPLATE: &str = r#"{%- set ns = namespace(n=0, last='') -%}
{%- macro turn(role, text) -%}<|{{ role }}|>{{ text | trim }}{{ '\n' }}{%- endmacro -%}
{%- for message in messages[::-1][0:9] -%}
{%- if loop.first and message['role'] == 'user' or not loop.last -%}
{%- set ns.n = ns.n + loop.index0 * 2 ** 3 - 1 % 7 -%}
{{- turn(message.role, message.content.split('</think>')[-1].lstrip('\n')) -}}
{%- else -%}{{ raise_exception('no ' ~ message.role) if ns.n < 0 else message | tojson(indent=2) }}{%- endif -%}
{%- endfor -%}
{%- for i in range(3) -%}{{ '%s' | replace('s', i | string) }}{{ 'a' * 2 }}{%- endfor -%}
{%- macro list(a, b=a, c=[]) -%}{{ a ~ b ~ c }}{{ varargs | length }}{{ kwargs }}{%- endmacro -%}
{{ list(messages, none, 1, 2, x={'k': 1.5}) }}{{ '%5.2f|%s' % (1.5, messages[0].role) }}{{ messages | map(attribute='role') | join(', ') }}
{{ 'a-b'.rsplit('-', 1) | last }}{{ 7 // 2 % 3 }}{{ 'x'.center(9, '*') }}{{ messages[0].items() | list | indent(2) }}{{ undefined | length }}
{%- if add_generation_prompt -%}<|assistant|>{{ strftime_now('%d') if false else '' }}{%- endif -%}"#;

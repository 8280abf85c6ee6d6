//! Tests that the loader of GGUF files agrees with ggml's own package: blocks, models and tokenizers.
//! `tests/record/gguf_files.py` wrote the files of `tests/fixtures/gguf`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use flexdraft::model::inspect::Report;
use flexdraft::model::weights::LinearWeights;
use flexdraft::model::{
    Architecture, ChatMessage, ChatTemplate, Gguf, ModelConfig, TargetWeights, TemplateVariables, Tokenizer,
};
use flexdraft::tensor::{DType, Elements, Tensor};
use serde::Deserialize;

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures")
}

fn file(name: &str) -> PathBuf {
    fixtures().join("gguf").join(format!("{name}.gguf"))
}

fn directory(name: &str) -> PathBuf {
    fixtures().join("transformers/models").join(name)
}

fn bits(tensor: &Tensor) -> Vec<u32> {
    match tensor.elements() {
        Elements::F32(x) => x.iter().map(|x| x.to_bits()).collect(),
        Elements::F16(x) => x.iter().map(|x| x.to_bits().into()).collect(),
        Elements::Bf16(x) => x.iter().map(|x| x.to_bits().into()).collect(),
    }
}

#[track_caller]
fn assert_same(found: &Tensor, expected: &Tensor, name: &str) {
    assert_eq!((found.dtype(), found.shape()), (expected.dtype(), expected.shape()), "{name}");
    assert!(bits(found) == bits(expected), "{name} has other elements");
}

/// Dequantised blocks of every type agree with the `gguf` package's values, rounded to bf16 by PyTorch.
#[test]
fn blocks_of_every_quantization() {
    let files = [
        ("blocks", vec!["Q4_0", "Q4_1", "Q8_0", "Q4_K", "Q6_K"]),
        ("blocks-2", vec!["Q5_0", "Q5_1", "Q2_K", "Q3_K", "Q5_K", "IQ4_NL", "IQ4_XS"]),
    ];
    for (name, types) in files {
        let blocks = Gguf::read(&file(name)).unwrap();
        for name in types {
            let tensor = blocks.tensor(name).unwrap();
            assert_eq!((tensor.dtype(), tensor.shape()), (DType::Bf16, [4, 1024].as_slice()));
            assert_same(&tensor, &blocks.tensor(&format!("{name}.expected")).unwrap(), name);
        }
    }
}

fn tensors(weights: &TargetWeights) -> BTreeMap<String, &Tensor> {
    fn linear<'a>(out: &mut BTreeMap<String, &'a Tensor>, name: String, linear: &'a LinearWeights) {
        if let Some(bias) = &linear.bias {
            out.insert(format!("{name}.bias"), bias);
        }
        out.insert(name, &linear.weight);
    }
    let mut out = BTreeMap::from([
        ("embed".to_owned(), &weights.embed),
        ("norm".to_owned(), &weights.norm),
        ("lm_head".to_owned(), &weights.lm_head),
    ]);
    for (i, layer) in weights.layers.iter().enumerate() {
        out.insert(format!("{i}.input_norm"), &layer.input_norm);
        out.insert(format!("{i}.post_attention_norm"), &layer.post_attention_norm);
        for (name, part) in [
            ("q", &layer.attention.q),
            ("k", &layer.attention.k),
            ("v", &layer.attention.v),
            ("o", &layer.attention.o),
            ("gate", &layer.gate),
            ("up", &layer.up),
            ("down", &layer.down),
        ] {
            linear(&mut out, format!("{i}.{name}"), part);
        }
        if let Some((q, k)) = &layer.attention.qk_norms {
            out.insert(format!("{i}.q_norm"), q);
            out.insert(format!("{i}.k_norm"), k);
        }
    }
    out
}

#[track_caller]
fn assert_same_weights(found: &TargetWeights, expected: &TargetWeights, name: &str) {
    let (found, expected) = (tensors(found), tensors(expected));
    assert_eq!(found.keys().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>(), "{name}");
    for (part, tensor) in found {
        assert_same(tensor, expected[&part], &format!("{name}: {part}"));
    }
}

/// GGUF models equal the directories from which they were converted, and those directories' logits are tested against
/// transformers.
#[test]
fn models_equal_the_directories_that_they_were_converted_from() {
    for name in [
        "llama",
        "llama-linear",
        "llama-llama3",
        "llama-yarn",
        "llama-biases",
        "mistral",
        "qwen2",
        "qwen3",
        "smollm3",
    ] {
        let mut expected = TargetWeights::read(&directory(name)).unwrap();
        if name == "mistral" {
            // GGUF files store Mistral's models with the architecture `llama`.
            expected.config.architecture = Architecture::Llama;
        }
        let found = TargetWeights::read(&file(name)).unwrap();
        assert_same_weights(&found, &expected, name);
        // SAFETY: no process changes the file.
        let mapped = unsafe { TargetWeights::map(&file(name)) }.unwrap();
        assert_same_weights(&mapped, &expected, name);

        assert_eq!(found.config.eos_ids, [2, 5], "{name}");
        let mut config = ModelConfig { eos_ids: expected.config.eos_ids.clone(), ..found.config.clone() };
        if name == "llama-llama3" {
            // GGUF stores the rotary frequencies as factors, which are exact except for rounding.
            for (found, expected) in config.rope.inv_freq.iter().zip(&expected.config.rope.inv_freq) {
                assert!((found / expected - 1.0).abs() < 3e-7, "{found}, expected {expected}");
            }
            config.rope.inv_freq.clone_from(&expected.config.rope.inv_freq);
        }
        assert_eq!(config, expected.config, "{name}");
        assert_eq!(ModelConfig::read(&file(name)).unwrap(), found.config, "{name}");
        assert_eq!(Gguf::read(&file(name)).unwrap().config().unwrap(), mapped.config, "{name}");
    }
}

/// The rows of quantised query and key projections are put back into transformers' order, as rows of other projections
/// are.
#[test]
fn quantized_models() {
    let raw = Gguf::read(&file("llama-quantized")).unwrap();
    let found = raw.target().unwrap();
    let plain = TargetWeights::read(&directory("llama")).unwrap();
    let mut quantized = 0;
    for (name, tensor) in tensors(&found) {
        let expected = tensors(&plain)[&name];
        if tensor.dtype() != DType::Bf16 {
            assert_same(tensor, expected, &name);
            continue;
        }
        quantized += 1;
        assert_eq!(tensor.shape(), expected.shape(), "{name}");
        let (found, expected) = (tensor.to_f32(), expected.to_f32());
        let norm = |x: &mut dyn Iterator<Item = f32>| x.map(|x| x * x).sum::<f32>().sqrt();
        let difference = norm(&mut found.iter().zip(&expected).map(|(a, b)| a - b));
        let relative = difference / norm(&mut expected.iter().copied());
        assert!(relative < 0.15, "{name}: {relative}");
    }
    assert_eq!(quantized, 2 + 2 * 6, "the embedding, twice, and all but ffn_down of two layers");
    // One projection must be exactly equal: row 2·i + s of a stored head is row i + s·head_dim/2 of the loaded head.
    let (stored, q) = (raw.tensor("blk.1.attn_q.weight").unwrap(), &found.layers[1].attention.q.weight);
    assert_eq!(stored.shape(), [32, 32]);
    let (stored, q) = (stored.to_f32(), q.to_f32());
    for (row, found) in q.chunks_exact(32).enumerate() {
        let (head, within) = (row / 8, row % 8);
        let from = 8 * head + 2 * (within % 4) + within / 4;
        assert_eq!(found, &stored[32 * from..][..32], "row {row}");
    }
}

#[derive(Deserialize)]
struct Case {
    text: String,
    ids: Vec<u32>,
    ids_with_special: Vec<u32>,
    decoded: String,
    decoded_without_special: String,
}

/// The token ids of texts agree with transformers for every pre-tokenizer, which splits a text before it is encoded.
#[test]
fn tokenizers_give_the_recorded_ids() {
    let recorded = std::fs::read_to_string(fixtures().join("gguf/tokenizers.json")).unwrap();
    let recorded: BTreeMap<String, Vec<Case>> = serde_json::from_str(&recorded).unwrap();
    assert_eq!(recorded.len(), 4);
    for (pre, cases) in recorded {
        let path = file(&format!("tokenizer-{pre}"));
        let tokenizer = Gguf::read(&path).unwrap().tokenizer().unwrap();
        for case in &cases {
            let name = format!("{pre}: {:?}", case.text);
            assert_eq!(tokenizer.encode(&case.text, false).unwrap(), case.ids, "{name}");
            let ids = tokenizer.encode(&case.text, true).unwrap();
            assert_eq!(ids, case.ids_with_special, "{name}");
            assert_eq!(tokenizer.decode(&ids, false).unwrap(), case.decoded, "{name}");
            assert_eq!(tokenizer.decode(&ids, true).unwrap(), case.decoded_without_special, "{name}");
        }
        let end = tokenizer.id("<|im_end|>").unwrap();
        assert_eq!(tokenizer.special_ids(), [0, 1, end]);
        assert_eq!(tokenizer.token(end + 2).as_deref(), Some("</tool_call>"));
        assert_eq!(tokenizer.token(end + 3), None, "an unused id has a token");
        assert_eq!(tokenizer.vocab_size(), end as usize + 4);
        let ids = Tokenizer::read(&path, end as usize + 4).unwrap().encode(&cases[3].text, true).unwrap();
        assert_eq!(ids, cases[3].ids_with_special);
    }
}

#[test]
fn chat_templates() {
    let messages = [ChatMessage::new("user", "hi"), ChatMessage::new("assistant", "<ho>")];
    let expected = "<|endoftext|>user: hi<|im_end|>assistant: <ho><|im_end|>";
    let path = file("tokenizer-qwen2");
    assert_eq!(
        ChatTemplate::read(&path).unwrap().render(&TemplateVariables::new(&messages, true)).unwrap(),
        expected
    );
    let gguf = Gguf::read(&path).unwrap();
    assert_eq!(
        gguf.chat_template().unwrap().render(&TemplateVariables::new(&messages, false)).unwrap(),
        expected
    );
    let error = ChatTemplate::read(&file("llama")).unwrap_err().to_string();
    assert!(
        error.ends_with("has no chat template (no `tokenizer.chat_template` in its metadata)"),
        "{error}"
    );
}

#[test]
fn reports_show_what_is_stored() {
    for name in ["llama", "llama-biases", "llama-llama3", "llama-quantized", "qwen3"] {
        let path = file(name);
        let report = Report::read(&path, None).unwrap();
        assert!(report.is_sound(), "{report}");
        let target = Gguf::read(&path).unwrap().target().unwrap();
        assert_eq!(report.config, target.config);
        let first = &report.target.parts[0];
        assert_eq!((first.name.as_str(), first.parameters), ("token_embd", target.embed.elements().len()));
        assert!(report.target.parts.iter().any(|part| part.name == "output_norm"), "{report}");
        let layers = report.target.parts.iter().filter(|part| part.name.starts_with("blk."));
        assert_eq!(layers.count(), target.config.layers);
    }
    let quantized = Report::read(&file("llama-quantized"), None).unwrap();
    assert!(quantized.to_string().contains("Q4_"), "{quantized}");
    let parameters = quantized.target.parameters();
    assert!(quantized.target.bytes() < 2 * parameters, "{} bytes", quantized.target.bytes());
}

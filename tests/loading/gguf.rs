//! Tests that the loader of GGUF files agrees with ggml's own package: blocks, models and tokenizers.
//! `tests/record/gguf_files.py` wrote the files of `tests/fixtures/gguf`.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use flexdraft::model::inspect::Report;
use flexdraft::model::weights::LinearWeights;
use flexdraft::model::{
    Architecture, ChatMessage, ChatTemplate, Gguf, ModelConfig, QuantizedWeights, TargetWeights,
    TemplateVariables, Tokenizer,
};
use flexdraft::tensor::{DType, Elements, Tensor};
use half::bf16;
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
        Elements::Blocks(x) => x.bytes().iter().map(|&x| x.into()).collect(),
    }
}

/// Returns the address of a tensor's elements.
fn address(tensor: &Tensor) -> *const u8 {
    match tensor.elements() {
        Elements::F32(x) => x.as_ptr().cast(),
        Elements::F16(x) => x.as_ptr().cast(),
        Elements::Bf16(x) => x.as_ptr().cast(),
        Elements::Blocks(x) => x.bytes().as_ptr(),
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

/// Kept blocks stand for the numbers that become bf16 otherwise, in the same rows, and take no more memory than the file.
#[test]
fn kept_blocks_are_the_files_own() {
    for name in ["llama-quantized", "llama", "qwen3"] {
        let path = file(name);
        let expected = TargetWeights::read(&path).unwrap();
        // SAFETY: no process changes the file.
        let mapped = unsafe { TargetWeights::map_with(&path, QuantizedWeights::Keep) }.unwrap();
        let read = TargetWeights::read_with(&path, QuantizedWeights::Keep).unwrap();
        assert_same_weights(&read, &mapped, name);
        let (mut kept, mut formats) = (0, BTreeSet::new());
        for (part, tensor) in tensors(&mapped) {
            let expected = tensors(&expected)[&part];
            let Some(format) = tensor.block_format() else {
                assert_same(tensor, expected, &part);
                continue;
            };
            assert_eq!((tensor.shape(), expected.dtype()), (expected.shape(), DType::Bf16), "{part}");
            let rounded = tensor.to_f32().into_iter().map(bf16::from_f32).collect();
            assert_same(&Tensor::from_bf16(tensor.shape(), rounded).unwrap(), expected, &part);
            (kept, _) = (kept + 1, formats.insert(format.to_string()));
        }
        // Tensors that share their bytes count once.
        let held = tensors(&mapped);
        let addresses: BTreeMap<_, _> =
            held.values().map(|tensor| (address(tensor), tensor.byte_len())).collect();
        let bytes: usize = addresses.values().sum();
        assert!(bytes <= std::fs::metadata(&path).unwrap().len() as usize, "{name}: {bytes} bytes");
        let quantized = name == "llama-quantized";
        assert_eq!(kept, if quantized { 2 + 2 * 6 } else { 0 }, "{name}");
        assert!(!quantized || formats.len() > 1, "{formats:?}");
        assert!(!quantized || addresses.len() == held.len() - 1, "the tied head has blocks of its own");
    }
}

/// A format that no device computes with becomes bf16 also where blocks are kept, and the report says so.
#[test]
fn formats_that_are_always_converted_are_reported() {
    let (q4_0, iq4_nl) = (2u32.to_le_bytes(), 20u32.to_le_bytes());
    let mut bytes = std::fs::read(file("llama-quantized")).unwrap();
    let name = b"blk.0.attn_v.weight";
    let start = bytes.windows(name.len()).position(|window| window == name).unwrap();
    // The number of dimensions and two dimensions come before the type. The two formats have blocks of one size.
    let kind = &mut bytes[start + name.len() + 4 + 2 * 8..][..4];
    assert_eq!(kind, q4_0);
    kind.copy_from_slice(&iq4_nl);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    std::fs::write(&path, bytes).unwrap();

    let target = TargetWeights::read_with(&path, QuantizedWeights::Keep).unwrap();
    let attention = &target.layers[0].attention;
    assert_eq!((attention.v.weight.block_format(), attention.v.weight.dtype()), (None, DType::Bf16));
    assert!(attention.q.weight.block_format().is_some());
    let report = Report::read(&path, None).unwrap();
    assert_eq!(report.target.converted, ["IQ4_NL"]);
    assert!(report.to_string().contains("\n  become bf16 when loaded: tensors of IQ4_NL\n"), "{report}");
    let kept = Report::read(&file("llama-quantized"), None).unwrap();
    assert!(kept.target.converted.is_empty() && !kept.to_string().contains("become bf16"));
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

//! Tests that models written by transformers load as in transformers: configuration, rotary frequencies, tensors,
//! tokens and chat prompts.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use flexdraft::model::inspect::Report;
use flexdraft::model::{
    Architecture, ChatMessage, ChatTemplate, Checkpoint, DrafterWeights, LoadWarning, ModelConfig,
    StopStrings, TargetWeights, TemplateVariables, TextStream, Tokenizer, rope,
};
use flexdraft::tensor::{DType, Tensor};
use proptest::prelude::*;
use serde_json::Value;

use crate::support::properties::properties;

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures")
}

fn recorded(path: &str) -> PathBuf {
    fixtures().join("transformers").join(path)
}

fn json(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

fn model(name: &str) -> (PathBuf, ModelConfig) {
    let dir = recorded("models").join(name);
    let config = ModelConfig::read(&dir).unwrap();
    (dir, config)
}

#[test]
fn configurations() {
    let (_, llama) = model("llama");
    assert_eq!(llama.architecture, Architecture::Llama);
    assert_eq!((llama.hidden_size, llama.intermediate_size, llama.layers), (32, 40, 2));
    let heads = llama.attention;
    assert_eq!((heads.q_heads, heads.kv_heads, heads.head_dim), (4, 2, 8));
    assert_eq!((llama.vocab_size, llama.context_len, llama.rms_norm_eps), (64, 128, 1e-6));
    assert!(llama.tied_embeddings && !llama.attention_bias && !llama.mlp_bias);
    assert_eq!(llama.eos_ids, [2], "from config.json: there is no generation_config.json");

    let (_, biases) = model("llama-biases");
    assert!(!biases.tied_embeddings && biases.attention_bias && biases.mlp_bias);
    assert_eq!(model("llama-linear").1.eos_ids, [2, 5]);
    assert_eq!(model("llama-yarn").1.eos_ids, [7]);

    let (_, qwen) = model("qwen3");
    assert_eq!((qwen.architecture, qwen.attention.head_dim), (Architecture::Qwen3, 16));
    assert!(model("qwen3-biases").1.attention_bias);
}

/// Linear scaling stretches the stated context, unless the configuration also states the context before stretching.
#[test]
fn a_context_that_is_already_stretched() {
    let (dir, _) = model("llama-linear");
    let context = |original: Option<u32>| {
        let mut config = json(&dir.join("config.json"));
        config["rope_scaling"]["original_max_position_embeddings"] = original.into();
        let copy = tempfile::tempdir().unwrap();
        fs::write(copy.path().join("config.json"), config.to_string()).unwrap();
        ModelConfig::read(copy.path()).unwrap().context_len
    };
    assert_eq!((context(None), context(Some(32)), context(Some(64))), (512, 128, 256));
}

/// The tolerance of the rotary frequencies allows for PyTorch's power function, which may be an ulp off; the arithmetic
/// after it is the same.
#[test]
fn rotary_frequencies_are_those_of_transformers() {
    let mut scaled = 0;
    for entry in fs::read_dir(recorded("models")).unwrap() {
        let dir = entry.unwrap().path();
        let recording = json(&dir.join("recording.json"));
        let config = ModelConfig::read(&dir).unwrap();
        let expected: Vec<f32> =
            recording["inv_freq"].as_array().unwrap().iter().map(|x| x.as_f64().unwrap() as f32).collect();
        assert_eq!(config.rope.inv_freq.len(), expected.len());
        for (found, expected) in config.rope.inv_freq.iter().zip(&expected) {
            let ulps = (i64::from(found.to_bits()) - i64::from(expected.to_bits())).abs();
            assert!(ulps <= 3, "{}: {found} is {ulps} ulps from {expected}", dir.display());
        }
        assert_eq!(config.rope.scale, recording["rope_scale"].as_f64().unwrap() as f32, "{}", dir.display());
        let plain = rope::rope(config.attention.head_dim, 1e4, &rope::RopeScaling::Default).unwrap();
        scaled += usize::from(config.rope != plain);
    }
    assert!(scaled >= 5, "only {scaled} recordings exercise a scaling");
}

#[test]
fn recorded_models_load_read_or_mapped() {
    let cases = [
        ("llama", DType::F32),
        ("llama-linear", DType::Bf16),
        ("llama-llama3", DType::F16),
        ("llama-yarn", DType::Bf16),
        ("llama-biases", DType::F32),
        ("qwen3", DType::F32),
        ("qwen3-biases", DType::Bf16),
        ("qwen3-yarn-v5", DType::F16),
    ];
    for (name, dtype) in cases {
        let (dir, config) = model(name);
        let read = TargetWeights::read(&dir).unwrap();
        // SAFETY: no process writes to the fixtures while the tests run.
        let mapped = unsafe { TargetWeights::map(&dir) }.unwrap();
        assert_eq!(read.config, config);
        assert_eq!(mapped.config, config);
        assert_eq!(read.embed.shape(), [64, 32]);
        assert_eq!((read.embed.dtype(), read.lm_head.dtype()), (dtype, dtype));
        assert_eq!(read.embed.to_f32() == read.lm_head.to_f32(), config.tied_embeddings);
        assert_eq!(read.layers.len(), 2);
        for (a, b) in read.layers.iter().zip(&mapped.layers) {
            assert_eq!(a.down.weight.to_f32(), b.down.weight.to_f32());
            assert_eq!(a.attention.q.bias.is_some(), config.attention_bias);
            assert_eq!(a.attention.o.bias.is_some(), config.attention_bias);
            assert_eq!(a.gate.bias.is_some(), config.mlp_bias);
            assert_eq!(a.attention.qk_norms.is_some(), config.architecture == Architecture::Qwen3);
        }
    }
}

/// Checks that loading puts every tensor of a checkpoint into the weights' field of the same name.
#[test]
fn tensors_are_where_they_belong() {
    for name in ["llama-biases", "qwen3", "llama-llama3"] {
        let (dir, config) = model(name);
        let checkpoint = Checkpoint::read(&dir).unwrap();
        let weights = TargetWeights::from_checkpoint(config, &checkpoint).unwrap();
        let same = |found: &Tensor, name: &str| {
            let expected = checkpoint.tensor(name).unwrap();
            assert_eq!((found.shape(), found.to_f32()), (expected.shape(), expected.to_f32()), "{name}");
        };
        same(&weights.embed, "model.embed_tokens.weight");
        same(&weights.norm, "model.norm.weight");
        same(&weights.lm_head, if name == "qwen3" { "model.embed_tokens.weight" } else { "lm_head.weight" });
        for (i, layer) in weights.layers.iter().enumerate() {
            let prefix = format!("model.layers.{i}");
            same(&layer.input_norm, &format!("{prefix}.input_layernorm.weight"));
            same(&layer.post_attention_norm, &format!("{prefix}.post_attention_layernorm.weight"));
            let attention = &layer.attention;
            let linears = [
                ("self_attn.q_proj", &attention.q),
                ("self_attn.k_proj", &attention.k),
                ("self_attn.v_proj", &attention.v),
                ("self_attn.o_proj", &attention.o),
                ("mlp.gate_proj", &layer.gate),
                ("mlp.up_proj", &layer.up),
                ("mlp.down_proj", &layer.down),
            ];
            for (module, linear) in linears {
                same(&linear.weight, &format!("{prefix}.{module}.weight"));
                if let Some(bias) = &linear.bias {
                    same(bias, &format!("{prefix}.{module}.bias"));
                }
            }
            if let Some((q_norm, k_norm)) = &attention.qk_norms {
                same(q_norm, &format!("{prefix}.self_attn.q_norm.weight"));
                same(k_norm, &format!("{prefix}.self_attn.k_norm.weight"));
            }
        }
    }
}

/// Returns the header and the data of a fixture's tensors.
fn header_of(dir: &Path) -> (serde_json::Map<String, Value>, Vec<u8>) {
    let bytes = fs::read(dir.join("model.safetensors")).unwrap();
    let end = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    (serde_json::from_slice(&bytes[8..end]).unwrap(), bytes[end..].to_vec())
}

/// Returns a copy of a fixture's directory with other tensors.
fn with_tensors(dir: &Path, header: &serde_json::Map<String, Value>, data: &[u8]) -> tempfile::TempDir {
    let copy = tempfile::tempdir().unwrap();
    fs::copy(dir.join("config.json"), copy.path().join("config.json")).unwrap();
    let header = serde_json::to_vec(header).unwrap();
    let file = [&(header.len() as u64).to_le_bytes(), &header[..], data].concat();
    fs::write(copy.path().join("model.safetensors"), file).unwrap();
    copy
}

/// Returns a copy of a fixture's directory with renamed tensors in its safetensors header; the order of the names is
/// kept.
fn with_renamed_tensors(dir: &Path, rename: impl Fn(&str) -> String) -> tempfile::TempDir {
    let (header, data) = header_of(dir);
    let renamed = header.into_iter().map(|(name, tensor)| (rename(&name), tensor)).collect();
    with_tensors(dir, &renamed, &data)
}

#[test]
fn names_without_the_model_prefix() {
    let (dir, _) = model("qwen3");
    let bare = with_renamed_tensors(&dir, |name| name.strip_prefix("model.").unwrap_or(name).into());
    let (a, b) = (TargetWeights::read(bare.path()).unwrap(), TargetWeights::read(&dir).unwrap());
    assert_eq!(a.embed.to_f32(), b.embed.to_f32());
    assert_eq!(a.layers[1].down.weight.to_f32(), b.layers[1].down.weight.to_f32());
}

/// An LM head in the checkpoint that differs from the embedding is used even if the configuration ties the two, and a
/// warning says so.
#[test]
fn the_tensors_decide_whether_the_head_is_tied() {
    let tie = |dir: &Path| {
        let path = dir.join("config.json");
        let config = fs::read_to_string(&path).unwrap();
        fs::write(path, config.replace("\"tie_word_embeddings\": false", "\"tie_word_embeddings\": true"))
            .unwrap();
    };
    let (dir, _) = model("llama-biases");
    let copy = with_renamed_tensors(&dir, str::to_owned);
    tie(copy.path());
    let (weights, own) = (TargetWeights::read(copy.path()).unwrap(), TargetWeights::read(&dir).unwrap());
    assert_eq!(weights.lm_head.to_f32(), own.lm_head.to_f32());
    assert_ne!(weights.lm_head.to_f32(), weights.embed.to_f32());
    assert!(!weights.config.tied_embeddings && own.warnings.is_empty());
    assert_eq!(weights.warnings, [LoadWarning::OwnHead]);
    let report = Report::read(copy.path(), None).unwrap();
    assert_eq!((report.target.unused.len(), report.warnings.len()), (0, 1));
    let shown = report.to_string();
    assert!(shown.contains("lm_head: its own;") && shown.contains("  warnings: 1\n"), "{shown}");

    // An LM head in the checkpoint that equals the embedding counts as tied.
    let (dir, _) = model("llama");
    let (mut header, data) = header_of(&dir);
    let embedding = header["model.embed_tokens.weight"].clone();
    let len = data.len();
    let (from, to) =
        (embedding["data_offsets"][0].as_u64().unwrap(), embedding["data_offsets"][1].as_u64().unwrap());
    let mut head = embedding;
    head["data_offsets"] = serde_json::json!([len, len as u64 + to - from]);
    header.insert("lm_head.weight".into(), head);
    let data = [&data[..], &data[from as usize..to as usize]].concat();
    let copy = with_tensors(&dir, &header, &data);
    let weights = TargetWeights::read(copy.path()).unwrap();
    assert!(weights.config.tied_embeddings && weights.warnings.is_empty());
}

/// transformers saves a tied embedding and LM head once, under either name.
#[test]
fn a_tied_pair_under_the_head_s_name() {
    let (dir, _) = model("qwen3");
    let rename = |name: &str| match name {
        "model.embed_tokens.weight" => "lm_head.weight".to_owned(),
        name => name.to_owned(),
    };
    let copy = with_renamed_tensors(&dir, rename);
    let (found, expected) = (TargetWeights::read(copy.path()).unwrap(), TargetWeights::read(&dir).unwrap());
    assert_eq!(found.embed.to_f32(), expected.embed.to_f32());
    assert_eq!(found.lm_head.to_f32(), expected.embed.to_f32());
    assert!(found.warnings.is_empty() && found.config.tied_embeddings);
}

#[test]
fn the_fixture_pair() {
    let target = TargetWeights::read(&fixtures().join("tiny/target")).unwrap();
    let drafter = DrafterWeights::read(&fixtures().join("tiny/draft"), &target.config).unwrap();
    assert_eq!((drafter.config.tail_layers, drafter.config.block_size), (2, 8));
    assert_eq!(drafter.attention.len(), 2);
    assert!(drafter.attention.iter().all(|a| a.qk_norms.is_some() && a.q.bias.is_none()));
    assert_eq!(drafter.attention[0].q.weight.shape(), [128, 64]);
    assert_eq!(drafter.attention[0].o.weight.shape(), [64, 128]);
    assert_eq!(drafter.mask_embedding.shape(), [64]);
    let calibrator = drafter.calibrator.unwrap();
    assert_eq!(calibrator.hidden.weight.shape(), [32, 128]);
    assert_eq!(calibrator.output.weight.shape(), [384, 32]);
    // SAFETY: no process writes to the fixtures while the tests run.
    let mapped = unsafe { DrafterWeights::map(&fixtures().join("tiny/draft"), &target.config) }.unwrap();
    assert_eq!(mapped.mask_embedding.to_f32(), drafter.mask_embedding.to_f32());
    assert_eq!(target.config.eos_ids, [0u32; 0]);
}

#[test]
fn drafters_under_the_released_key_and_without_a_calibrator() {
    let target = ModelConfig::read(&fixtures().join("tiny/target")).unwrap();
    let draft = fixtures().join("tiny/draft");
    let copy = with_renamed_tensors(&draft, str::to_owned);
    let config =
        fs::read_to_string(draft.join("config.json")).unwrap().replace("flexdraft_config", "dflash_config");
    fs::write(copy.path().join("config.json"), &config).unwrap();
    assert!(DrafterWeights::read(copy.path(), &target).unwrap().calibrator.is_some());
    let config =
        config.replace("\"enable_anchor_bias_logits\": true", "\"enable_anchor_bias_logits\": false");
    fs::write(copy.path().join("config.json"), &config).unwrap();
    assert!(DrafterWeights::read(copy.path(), &target).unwrap().calibrator.is_none());
}

#[test]
fn random_models_have_the_shapes_of_loaded_ones() {
    for name in ["llama", "llama-biases", "qwen3", "qwen3-biases"] {
        let (_, config) = model(name);
        for dtype in [DType::F32, DType::F16, DType::Bf16] {
            let a = TargetWeights::random(&config, dtype, 1).unwrap();
            assert_eq!((a.embed.dtype(), a.layers.len()), (dtype, 2));
            assert_eq!(a.layers[0].attention.qk_norms.is_some(), config.architecture == Architecture::Qwen3);
            assert_eq!(a.layers[0].gate.bias.is_some(), config.mlp_bias);
            assert_eq!(a.embed.to_f32() == a.lm_head.to_f32(), config.tied_embeddings);
            assert_eq!(a.norm.to_f32(), TargetWeights::random(&config, dtype, 1).unwrap().norm.to_f32());
            assert_ne!(a.norm.to_f32(), TargetWeights::random(&config, dtype, 2).unwrap().norm.to_f32());
            let drafter = DrafterWeights::random(&config, 1, 4, 6, dtype, 1).unwrap();
            assert_eq!(drafter.attention[0].k.weight.shape()[1], 32);
            assert_eq!(drafter.calibrator.unwrap().output.weight.shape(), [64, 6]);
            assert!(DrafterWeights::random(&config, 2, 64, 0, dtype, 1).unwrap().calibrator.is_none());
        }
        let error = |tail, block| {
            DrafterWeights::random(&config, tail, block, 6, DType::F32, 1).unwrap_err().to_string()
        };
        assert_eq!(error(3, 4), "model configuration: `tail_layers` is 3, expected 1 to 2");
        assert_eq!(error(0, 4), "model configuration: `tail_layers` is 0, expected 1 to 2");
        assert_eq!(error(1, 0), "model configuration: `block_size` is 0, expected 1 to 64");
        assert_eq!(error(1, 65), "model configuration: `block_size` is 65, expected 1 to 64");
        let mut odd = config.clone();
        odd.attention.kv_heads = 3;
        assert_eq!(
            TargetWeights::random(&odd, DType::F32, 1).unwrap_err().to_string(),
            "model configuration: `attention.kv_heads` is 3, expected a divisor of the number of query heads, 4"
        );
    }
}

#[test]
fn a_report_on_the_fixture_pair() {
    let tiny = fixtures().join("tiny");
    let report = Report::read(&tiny.join("target"), Some(&tiny.join("draft"))).unwrap();
    assert!(report.is_sound());
    assert_eq!(
        report.target.parameters(),
        384 * 64 + 4 * (64 * (128 + 64 + 64 + 128 + 3 * 160 + 2) + 128) + 64
    );
    assert_eq!(report.target.parts.len(), 6);
    assert_eq!(report.drafter.as_ref().unwrap().calibrator_rank, Some(32));
    let expected = [
        "target   ",
        "  Qwen3ForCausalLM: 4 layers, hidden 64, intermediate 160, vocabulary 384, context 1024",
        "  attention: 2 query and 1 KV heads, head_dim 64, q and k norms",
        "  lm_head: the embedding (tied); end-of-sequence ids: none",
        "  tokenizer: 383 ids",
        "  chat template: none",
        "  246,848 parameters, 964.2 KiB, 1 file",
        "    model.embed_tokens    1 tensor            24,576  f32",
        "    model.layers.0       11 tensors           55,552  f32",
        "    model.layers.1       11 tensors           55,552  f32",
        "    model.layers.2       11 tensors           55,552  f32",
        "    model.layers.3       11 tensors           55,552  f32",
        "    model.norm            1 tensor                64  f32",
        "  missing or misshapen: none",
        "  not finite: none",
        "  unused: none",
        "",
        "drafter  ",
        "  last 2 layers, block size 8, calibrator of rank 32",
        "  66,272 parameters, 258.9 KiB, 1 file",
        "    mask_embedding     1 tensor                64  f32",
        "    layers.0           6 tensors           24,704  f32",
        "    layers.1           6 tensors           24,704  f32",
        "    anchor_bias_mlp    4 tensors           16,800  f32",
        "  missing or misshapen: none",
        "  not finite: none",
        "  unused: 11 (a drafter uses the target's own MLPs and norms)",
        "    layers.*.input_layernorm.weight (2 layers)",
        "    layers.*.mlp.down_proj.weight (2 layers)",
        "    layers.*.mlp.gate_proj.weight (2 layers)",
        "    layers.*.mlp.up_proj.weight (2 layers)",
        "    layers.*.post_attention_layernorm.weight (2 layers)",
        "    norm.weight",
    ];
    let shown = report.to_string();
    let dirs = [tiny.join("target"), tiny.join("draft")].map(|dir| dir.display().to_string());
    let shown = shown.replace(&dirs[0], "").replace(&dirs[1], "");
    assert_eq!(shown.lines().collect::<Vec<_>>(), expected, "\n{shown}");
}

#[test]
fn token_ids_are_those_of_transformers() {
    let cases = [
        (fixtures().join("tiny/target"), 384, "tokenizers/tiny.json"),
        (recorded("tokenizers/byte-fallback"), 277, "tokenizers/byte-fallback.json"),
    ];
    for (dir, vocab_size, recording) in cases {
        let tokenizer = Arc::new(Tokenizer::read(&dir, vocab_size).unwrap());
        for case in json(&recorded(recording)).as_array().unwrap() {
            let ids = |key: &str| -> Vec<u32> { serde_json::from_value(case[key].clone()).unwrap() };
            let text = case["text"].as_str().unwrap();
            assert_eq!(tokenizer.encode(text, false).unwrap(), ids("ids"), "{text:?}");
            let ids = ids("ids_with_special");
            assert_eq!(tokenizer.encode(text, true).unwrap(), ids, "{text:?}");
            for (skip, key) in [(false, "decoded"), (true, "decoded_without_special")] {
                assert_eq!(tokenizer.decode(&ids, skip).unwrap(), case[key].as_str().unwrap());
                assert_eq!(streamed(&tokenizer, &ids, skip), case[key].as_str().unwrap(), "{text:?}");
            }
        }
    }
}

/// transformers 5.24 gives these ids for every tokenizer class but CodeLlama's; 4.57 followed `add_bos_token` and
/// `add_eos_token` for the classes of Llama and Gemma.
#[test]
fn tokenizer_json_alone_decides_which_tokens_surround_a_text() {
    let file = fs::read(recorded("tokenizers/byte-fallback").join("tokenizer.json")).unwrap();
    for class in ["LlamaTokenizer", "GemmaTokenizerFast", "PreTrainedTokenizerFast"] {
        for (bos, eos) in [(true, true), (false, false), (false, true)] {
            let dir = tempfile::tempdir().unwrap();
            fs::write(dir.path().join("tokenizer.json"), &file).unwrap();
            let config = serde_json::json!({
                "tokenizer_class": class, "add_bos_token": bos, "add_eos_token": eos,
                "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>",
            });
            fs::write(dir.path().join("tokenizer_config.json"), config.to_string()).unwrap();
            let tokenizer = Tokenizer::read(dir.path(), 277).unwrap();
            let plain = tokenizer.encode("a", false).unwrap();
            assert_eq!(tokenizer.encode("a", true).unwrap(), [&[1], &plain[..]].concat(), "{class}");
        }
    }
}

fn tiny_tokenizer() -> Arc<Tokenizer> {
    Arc::new(Tokenizer::read(&fixtures().join("tiny/target"), 384).unwrap())
}

fn streamed(tokenizer: &Arc<Tokenizer>, ids: &[u32], skip_special_tokens: bool) -> String {
    let mut stream = TextStream::new(tokenizer.clone(), skip_special_tokens);
    let mut text: String = ids.iter().map(|&id| stream.push(&[id]).unwrap()).collect();
    text.push_str(&stream.finish().unwrap());
    text
}

#[test]
fn a_stream_holds_back_incomplete_characters_only() {
    let tokenizer = tiny_tokenizer();
    let ids = tokenizer.encode("é😀a", false).unwrap();
    assert_eq!(ids.len(), 7, "one token a byte");
    let mut stream = TextStream::new(tokenizer.clone(), true);
    let pieces: Vec<String> = ids.iter().map(|&id| stream.push(&[id]).unwrap()).collect();
    assert_eq!(pieces, ["", "é", "", "", "", "😀", "a"]);
    assert_eq!(stream.push(&ids[..1]).unwrap(), "");
    assert_eq!(stream.push(&[]).unwrap(), "");
    assert_eq!(stream.finish().unwrap(), "\u{fffd}");

    // An end-of-text token between two halves of a character has no text.
    let mut stream = TextStream::new(tokenizer.clone(), true);
    assert_eq!(stream.push(&[ids[0], 0, 999, ids[1]]).unwrap(), "é");
    assert_eq!(tokenizer.special_ids(), [0, 382]);
    assert_eq!((tokenizer.id("<|MASK|>"), tokenizer.len()), (Some(382), 383));
}

/// A stream that a server stores: it owns its tokenizer, and may be sent to another thread.
#[test]
fn streams_are_owned() {
    let mut stream = TextStream::new(tiny_tokenizer(), true);
    let text = std::thread::spawn(move || stream.push(&[66, 67]).unwrap()).join().unwrap();
    assert_eq!(text.chars().count(), 2);
}

/// The text ends before a stop string, wherever tokens and pushes divide the string.
#[test]
fn a_stop_string_ends_the_text() {
    let tokenizer = tiny_tokenizer();
    let ids = tokenizer.encode("né😀\n\nUser: no", false).unwrap();
    let stops = StopStrings::new(["\n\nUser:", "😀\n!", "<|MASK|>"]).unwrap();
    let until = tokenizer.encode("né😀\n\nUser:", false).unwrap().len();
    for run in 1..=ids.len() {
        let mut stream = TextStream::new(tokenizer.clone(), true).with_stop_strings(&stops);
        let mut text = String::new();
        for ids in ids.chunks(run) {
            text += &stream.push(ids).unwrap();
            assert!("né😀".starts_with(&text), "{text:?}");
        }
        assert!(stream.is_stopped());
        assert_eq!(stream.tokens(), until, "runs of {run}");
        assert_eq!(text + &stream.finish().unwrap(), "né😀");
    }

    // Without a stop string, the end of the stream returns the text that was held back.
    let mut stream = TextStream::new(tokenizer.clone(), true).with_stop_strings(&stops);
    let ids = tokenizer.encode("a\n\nUse", false).unwrap();
    assert_eq!(stream.push(&ids).unwrap(), "a");
    assert_eq!((stream.is_stopped(), stream.tokens()), (false, ids.len()));
    assert_eq!(stream.finish().unwrap(), "\n\nUse");

    // A special token has no text, but its spelling stops the stream. The pending text remains.
    let mut stream = TextStream::new(tokenizer.clone(), true).with_stop_strings(&stops);
    assert_eq!(stream.push(&[&ids[..3], &[382, 66]].concat()).unwrap(), "a");
    assert_eq!((stream.is_stopped(), stream.tokens()), (true, 4));
    assert_eq!(stream.finish().unwrap(), "\n\n");
}

#[test]
fn ids_that_the_model_lacks() {
    let dir = fixtures().join("tiny/target");
    let tokenizer = Tokenizer::read(&dir, 382).unwrap();
    assert!(tokenizer.encode("a", true).is_ok());
    assert_eq!(
        tokenizer.encode("a<|MASK|>", true).unwrap_err().to_string(),
        format!(
            "tokenizer {}: token `<|MASK|>` has id 382, expected ids below 382, the model's vocabulary size",
            dir.join("tokenizer.json").display()
        )
    );
}

proptest! {
    #![proptest_config(properties(200))]

    /// Text that is streamed token by token equals the decoded whole; the tokens are mostly bytes that are not UTF-8,
    /// with some text, special tokens, and ids without a token.
    #[test]
    fn streamed_pieces_join_to_the_whole(
        ids in prop::collection::vec(prop_oneof![4 => 1u32..257, 2 => 257u32..384, 1 => Just(0), 1 => Just(4000)], 0..60),
        skip: bool,
    ) {
        let tokenizer = tiny_tokenizer();
        prop_assert_eq!(streamed(&tokenizer, &ids, skip), tokenizer.decode(&ids, skip).unwrap());
    }

    /// A stop string cuts the whole text before its first occurrence, and the tokens after the token that completes it.
    #[test]
    fn stop_strings_cut_alike_in_all_runs(
        ids in prop::collection::vec(prop_oneof![4 => 66u32..70, 1 => 195u32..198, 2 => 257u32..384], 1..40),
        stop in "[a-d]{1,3}",
        runs in prop::collection::vec(1usize..6, 40),
    ) {
        let tokenizer = tiny_tokenizer();
        let whole = tokenizer.decode(&ids, true).unwrap();
        let stops = StopStrings::new([stop.clone()]).unwrap();
        let (mut rest, mut text) = (&ids[..], String::new());
        let mut stream = TextStream::new(tokenizer.clone(), true).with_stop_strings(&stops);
        for run in runs {
            let (now, later) = rest.split_at(run.min(rest.len()));
            rest = later;
            text += &stream.push(now).unwrap();
        }
        let (stopped, tokens) = (stream.is_stopped(), stream.tokens());
        text += &stream.finish().unwrap();
        prop_assert_eq!(stopped, whole.contains(&stop));
        prop_assert_eq!(text.as_str(), whole.split(&stop).next().unwrap());
        if stopped {
            prop_assert!(tokenizer.decode(&ids[..tokens], true).unwrap().contains(&stop));
            prop_assert!(!tokenizer.decode(&ids[..tokens - 1], true).unwrap().contains(&stop));
        } else {
            prop_assert_eq!(tokens, ids.len());
        }
    }

    /// Any text survives encoding and streaming byte for byte.
    #[test]
    fn text_survives(text: String) {
        let tokenizer = tiny_tokenizer();
        let ids = tokenizer.encode(&text, false).unwrap();
        prop_assert_eq!(streamed(&tokenizer, &ids, false), text);
    }

    /// With byte fallback, no sequence of tokens gives an error or a panic.
    #[test]
    fn byte_fallback_streams(ids in prop::collection::vec(0u32..280, 0..40)) {
        let tokenizer = Arc::new(Tokenizer::read(&recorded("tokenizers/byte-fallback"), 277).unwrap());
        streamed(&tokenizer, &ids, true);
    }
}

#[test]
fn chat_prompts_are_those_of_transformers() {
    let recording = json(&recorded("chat/cases.json"));
    let time = recording["unix_seconds"].as_u64().unwrap();
    let cases = recording["cases"].as_array().unwrap();
    assert!(cases.len() >= 50);
    for case in cases {
        let name = case["template"].as_str().unwrap();
        let template = ChatTemplate::read(&recorded("chat").join(name)).unwrap();
        let messages: Vec<ChatMessage> = case["messages"]
            .as_array()
            .unwrap()
            .iter()
            .map(|m| ChatMessage::new(m["role"].as_str().unwrap(), m["content"].as_str().unwrap()))
            .collect();
        let found = template.render_at(
            &TemplateVariables::new(&messages, case["add_generation_prompt"].as_bool().unwrap()),
            time,
        );
        match (found, case["text"].as_str()) {
            (Ok(found), Some(expected)) => assert_eq!(found, expected, "{name}"),
            (Err(error), None) => {
                assert!(error.to_string().contains(case["error"].as_str().unwrap()), "{name}: {error}");
            }
            (found, expected) => panic!("{name}: {found:?}, expected {expected:?}"),
        }
    }
}

//! Files that are damaged, or of another model: an error that says which file, key or tensor, and
//! never a panic.
#![cfg(feature = "runner")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

use std::fs;
use std::path::{Path, PathBuf};

use flexdraft::model::inspect::Report;
use flexdraft::model::{
    ChatMessage, ChatTemplate, Checkpoint, DrafterWeights, LoadError, ModelConfig, TargetWeights, Tokenizer,
};
use proptest::prelude::*;
use proptest::test_runner::FileFailurePersistence;
use serde_json::{Map, Value, json};
use tempfile::TempDir;

fn fixture(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(path)
}

/// A copy of a fixture's directory, to be damaged.
struct Copy(TempDir);

impl Copy {
    fn of(path: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        for entry in fs::read_dir(fixture(path)).unwrap() {
            let from = entry.unwrap().path();
            fs::copy(&from, dir.path().join(from.file_name().unwrap())).unwrap();
        }
        Self(dir)
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    fn edit(&self, file: &str, edit: impl FnOnce(&mut Value)) -> &Self {
        let path = self.path().join(file);
        let mut value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        edit(&mut value);
        self.write(file, value.to_string())
    }

    fn set(&self, key: &str, value: Value) -> &Self {
        self.edit("config.json", |config| config[key] = value)
    }

    fn write(&self, file: &str, content: impl AsRef<[u8]>) -> &Self {
        fs::write(self.path().join(file), content).unwrap();
        self
    }

    /// Edits the header of `model.safetensors`; the data stay as they are.
    fn edit_header(&self, edit: impl FnOnce(&mut Map<String, Value>)) -> &Self {
        let path = self.path().join("model.safetensors");
        let (mut header, data) = split(&fs::read(&path).unwrap());
        edit(&mut header);
        fs::write(path, join(&serde_json::to_vec(&header).unwrap(), &data)).unwrap();
        self
    }

    /// The message of the error that loading this target ends with, without the directory.
    fn target_error(&self) -> String {
        self.message(TargetWeights::read(self.path()).unwrap_err())
    }

    /// The same for a drafter of the tiny target.
    fn drafter_error(&self) -> String {
        let target = ModelConfig::read(&fixture("tiny/target")).unwrap();
        self.message(DrafterWeights::read(self.path(), &target).unwrap_err())
    }

    fn message(&self, error: LoadError) -> String {
        error.to_string().replace(&format!("{}{}", self.path().display(), std::path::MAIN_SEPARATOR), "")
    }
}

fn split(file: &[u8]) -> (Map<String, Value>, Vec<u8>) {
    let end = 8 + u64::from_le_bytes(file[..8].try_into().unwrap()) as usize;
    (serde_json::from_slice(&file[8..end]).unwrap(), file[end..].to_vec())
}

fn join(header: &[u8], data: &[u8]) -> Vec<u8> {
    [&(header.len() as u64).to_le_bytes(), header, data].concat()
}

const LLAMA: &str = "transformers/models/llama";
const QWEN3: &str = "transformers/models/qwen3";
const YARN: &str = "transformers/models/llama-yarn";
const SHARDED: &str = "transformers/models/llama-llama3";
const DRAFT: &str = "tiny/draft";

#[test]
fn missing_files() {
    let empty = Copy(tempfile::tempdir().unwrap());
    assert_eq!(empty.target_error(), "cannot read config.json: No such file or directory (os error 2)");
    fs::copy(fixture(LLAMA).join("config.json"), empty.path().join("config.json")).unwrap();
    assert_eq!(
        TargetWeights::read(empty.path()).unwrap_err().to_string(),
        format!("{} has neither model.safetensors nor model.safetensors.index.json", empty.path().display())
    );
    let error = Tokenizer::read(empty.path(), 64).unwrap_err();
    assert_eq!(empty.message(error), "cannot read tokenizer.json: No such file or directory (os error 2)");
    assert_eq!(
        ChatTemplate::read(empty.path()).unwrap_err().to_string(),
        format!(
            "{} has no chat template (neither chat_template.jinja nor `chat_template` in tokenizer_config.json)",
            empty.path().display()
        )
    );

    let copy = Copy::of(SHARDED);
    fs::remove_file(copy.path().join("model-00002-of-00002.safetensors")).unwrap();
    assert_eq!(
        copy.target_error(),
        "cannot read model-00002-of-00002.safetensors: No such file or directory (os error 2)"
    );
    fs::remove_file(copy.path().join("config.json")).unwrap();
    fs::create_dir(copy.path().join("config.json")).unwrap();
    assert_eq!(copy.target_error(), "config.json is not a regular file");
}

#[test]
fn truncated_at_any_point() {
    let copy = Copy::of(LLAMA);
    let file = fs::read(copy.path().join("model.safetensors")).unwrap();
    let header_end = file.len() - split(&file).1.len();
    let cuts =
        (0..32).chain((32..file.len()).step_by(797)).chain([header_end - 1, header_end, file.len() - 1]);
    for cut in cuts {
        copy.write("model.safetensors", &file[..cut]);
        let error = copy.target_error();
        let expected = match cut {
            0..8 => format!(
                "model.safetensors is not a valid safetensors file: it has {cut} bytes, too few for a header"
            ),
            _ if cut < header_end => format!(
                "model.safetensors is not a valid safetensors file: its header should have {} bytes, and the file has {cut}; it may be truncated",
                header_end - 8
            ),
            _ => format!("of the data, which has {}; it may be truncated", cut - header_end),
        };
        assert!(error.contains(&expected), "cut at {cut}: {error}");
        // SAFETY: the file is not written to while it is mapped.
        let mapped = unsafe { TargetWeights::map(copy.path()) }.unwrap_err();
        assert_eq!(copy.message(mapped), error);
    }
    copy.write("model.safetensors", [&file[..], &[0]].concat());
    assert_eq!(
        copy.target_error(),
        "model.safetensors is not a valid safetensors file: incomplete metadata, file not fully covered"
    );
}

#[test]
fn shapes_and_tensors() {
    let copy = Copy::of(LLAMA);
    copy.edit_header(|header| header["model.layers.1.mlp.up_proj.weight"]["shape"] = json!([32, 40]));
    assert_eq!(
        copy.target_error(),
        "model.safetensors: tensor `model.layers.1.mlp.up_proj.weight` has shape [32, 40], expected [40, 32]"
    );
    let copy = Copy::of(LLAMA);
    copy.edit_header(|header| {
        let tensor = header.remove("model.layers.0.input_layernorm.weight").unwrap();
        header.insert("something.else".into(), tensor);
    });
    let dir = copy.path().display();
    assert_eq!(
        copy.target_error(),
        format!("{dir}: tensor `model.layers.0.input_layernorm.weight` is missing")
    );
    // Where the config promises more than the checkpoint has.
    let copy = Copy::of(LLAMA);
    copy.set("attention_bias", json!(true));
    let dir = copy.path().display();
    assert_eq!(
        copy.target_error(),
        format!("{dir}: tensor `model.layers.0.self_attn.q_proj.bias` is missing")
    );
    let copy = Copy::of(LLAMA);
    copy.set("vocab_size", json!(65));
    assert_eq!(
        copy.target_error(),
        "model.safetensors: tensor `model.embed_tokens.weight` has shape [64, 32], expected [65, 32]"
    );
}

#[test]
fn element_types() {
    for (found, size) in [("I32", 1), ("F64", 2), ("Q4_0", 1)] {
        let copy = Copy::of(LLAMA);
        copy.edit_header(|header| {
            let norm = &mut header["model.norm.weight"];
            norm["dtype"] = json!(found);
            norm["shape"] = json!([32 / size]);
        });
        assert_eq!(
            copy.target_error(),
            format!(
                "model.safetensors: tensor `model.norm.weight` has element type {found}; supported: F32, F16, BF16"
            )
        );
    }
    // Not a problem in a tensor that is not used.
    let copy = Copy::of(LLAMA);
    copy.set("num_hidden_layers", json!(1));
    copy.edit_header(|header| header["model.layers.1.input_layernorm.weight"]["dtype"] = json!("I32"));
    assert!(TargetWeights::read(copy.path()).is_ok());
}

#[test]
fn headers_that_do_not_describe_the_file() {
    let file = fs::read(fixture(LLAMA).join("model.safetensors")).unwrap();
    let (header, data) = split(&file);
    let text = serde_json::to_string(&header).unwrap();
    let copy = Copy::of(LLAMA);
    let error_with = |header: &str| {
        copy.write("model.safetensors", join(header.as_bytes(), &data));
        copy.target_error()
    };
    let invalid = "model.safetensors is not a valid safetensors file: ";

    let norm = serde_json::to_string(&header["model.norm.weight"]).unwrap();
    let twice = format!("{{\"model.norm.weight\":{norm},{}", &text[1..]);
    assert_eq!(error_with(&twice), "model.safetensors: tensor `model.norm.weight` occurs more than once");

    let mut overlapping = header.clone();
    overlapping["model.norm.weight"]["data_offsets"] = json!([0, 128]);
    let error = error_with(&serde_json::to_string(&overlapping).unwrap());
    assert!(error.starts_with(&format!("{invalid}invalid offset for tensor")), "{error}");

    let mut backwards = header.clone();
    backwards["model.norm.weight"]["data_offsets"] = json!([128, 0]);
    assert!(error_with(&serde_json::to_string(&backwards).unwrap()).starts_with(invalid));

    let mut huge = header.clone();
    huge["model.norm.weight"]["data_offsets"] = json!([0, u64::MAX]);
    assert_eq!(
        error_with(&serde_json::to_string(&huge).unwrap()),
        format!(
            "{invalid}tensor `model.norm.weight` ends at byte {} of the data, which has {}; it may be truncated",
            u64::MAX,
            data.len()
        )
    );

    let mut wide = header;
    wide["model.norm.weight"]["shape"] = json!([u64::MAX, 2]);
    assert_eq!(
        error_with(&serde_json::to_string(&wide).unwrap()),
        format!("{invalid}overflow computing buffer size from shape and/or element type")
    );

    for wrong in ["[]", "{", "{\"a\": 1}", "{\"a\": {\"dtype\": \"F32\"}}", "\u{0}"] {
        let error = error_with(wrong);
        assert!(error.starts_with(&format!("{invalid}its header is not as it should be: ")), "{error}");
    }
    copy.write("model.safetensors", [&u64::MAX.to_le_bytes()[..], &data].concat());
    assert_eq!(
        copy.target_error(),
        format!(
            "{invalid}its header should have {} bytes, and the file has {}; it may be truncated",
            u64::MAX,
            data.len() + 8
        )
    );
}

#[test]
fn shards() {
    let index = "model.safetensors.index.json";
    let first = "model-00001-of-00002.safetensors";
    for outside in ["../model-00001-of-00002.safetensors", "/etc/passwd", "a/../../b", ""] {
        let copy = Copy::of(SHARDED);
        copy.edit(index, |index| index["weight_map"]["model.norm.weight"] = json!(outside));
        assert_eq!(
            copy.target_error(),
            format!("{index}: `{outside}` is not a path within the model's directory")
        );
    }
    let copy = Copy::of(SHARDED);
    copy.edit(index, |index| index["weight_map"]["lm_head.bias"] = json!(first));
    assert_eq!(copy.target_error(), format!("{first}: tensor `lm_head.bias` is missing"));
    copy.edit(index, |index| index["weight_map"]["lm_head.bias"] = json!(1));
    assert_eq!(copy.target_error(), format!("{index}: `weight_map.lm_head.bias` is 1, expected a file name"));
    copy.write(index, "{}");
    assert_eq!(copy.target_error(), format!("{index}: key `weight_map` is missing"));

    let copy = Copy::of(SHARDED);
    fs::copy(copy.path().join(first), copy.path().join("again.safetensors")).unwrap();
    copy.edit(index, |index| index["weight_map"]["model.embed_tokens.weight"] = json!("again.safetensors"));
    let error = copy.target_error();
    assert!(
        error.starts_with(&format!("{first}: tensor `")) && error.ends_with("occurs more than once"),
        "{error}"
    );
}

/// Each key and value, and what the error says of it.
#[test]
fn configurations_that_are_not_supported() {
    let cases = [
        (
            LLAMA,
            "architectures",
            json!(["MistralForCausalLM"]),
            "`architectures` is [\"MistralForCausalLM\"], which is not supported; supported: LlamaForCausalLM, Qwen3ForCausalLM",
        ),
        (
            QWEN3,
            "architectures",
            json!(["Qwen3MoeForCausalLM"]),
            "`architectures` is [\"Qwen3MoeForCausalLM\"], which is not supported; supported: LlamaForCausalLM, Qwen3ForCausalLM",
        ),
        (
            LLAMA,
            "model_type",
            json!("mistral"),
            "`model_type` is \"mistral\", which is not supported; supported: llama for LlamaForCausalLM",
        ),
        (
            QWEN3,
            "num_experts",
            json!(128),
            "`num_experts` is 128, which is not supported; supported: dense models only, no mixture of experts",
        ),
        (
            QWEN3,
            "layer_types",
            json!(["full_attention", "sliding_attention"]),
            "`layer_types` is [\"full_attention\",\"sliding_attention\"], which is not supported; supported: full_attention in every layer",
        ),
        (
            LLAMA,
            "hidden_act",
            json!("gelu"),
            "`hidden_act` is \"gelu\", which is not supported; supported: silu",
        ),
        (
            LLAMA,
            "quantization_config",
            json!({"bits": 4}),
            "`quantization_config` is {\"bits\":4}, which is not supported; supported: weights stored as F32, F16 or BF16",
        ),
        (
            QWEN3,
            "mlp_bias",
            json!(true),
            "`mlp_bias` is true, which is not supported; supported: false for Qwen3ForCausalLM",
        ),
        (
            LLAMA,
            "partial_rotary_factor",
            json!(0.5),
            "`partial_rotary_factor` is 0.5, which is not supported; supported: 1",
        ),
        (
            LLAMA,
            "rope_scaling",
            json!({"rope_type": "dynamic", "factor": 2.0}),
            "`rope_scaling.rope_type` is \"dynamic\", which is not supported; supported: default, linear, llama3, yarn",
        ),
        (
            LLAMA,
            "rope_scaling",
            json!({"type": "longrope", "factor": 2.0}),
            "`rope_scaling.type` is \"longrope\", which is not supported; supported: default, linear, llama3, yarn",
        ),
        (
            LLAMA,
            "rope_scaling",
            json!({"factor": 2.0}),
            "`rope_scaling.factor` is 2.0, which is not supported; supported: default, linear, llama3, yarn",
        ),
        (
            LLAMA,
            "rope_scaling",
            json!({"rope_type": "linear", "type": "yarn"}),
            "`rope_scaling.type` is \"yarn\", expected \"linear\", as `rope_type`",
        ),
        (LLAMA, "rope_scaling", json!({"rope_type": "linear"}), "key `rope_scaling.factor` is missing"),
        (
            LLAMA,
            "rope_scaling",
            json!({"rope_type": "linear", "factor": 0}),
            "`rope_scaling.factor` is 0, expected a finite number above 0",
        ),
        (
            LLAMA,
            "rope_scaling",
            json!({"rope_type": "llama3", "factor": 2, "low_freq_factor": 4, "high_freq_factor": 4}),
            "`rope_scaling.high_freq_factor` is 4, expected more than `low_freq_factor`, 4",
        ),
        (
            YARN,
            "rope_theta",
            json!(1.0),
            "`rope_scaling` is {\"factor\":4.0,\"original_max_position_embeddings\":16,\"rope_type\":\"yarn\"}, expected parameters that give finite frequencies",
        ),
        (
            LLAMA,
            "rope_parameters",
            json!({"full_attention": {"rope_type": "default"}}),
            "`rope_parameters.full_attention` is {\"rope_type\":\"default\"}, which is not supported; supported: default, linear, llama3, yarn",
        ),
        (
            YARN,
            "rope_parameters",
            json!({"rope_type": "default"}),
            "`rope_scaling` is {\"factor\":4.0,\"original_max_position_embeddings\":16,\"rope_type\":\"yarn\"}, expected the same as `rope_parameters`, or only one of them",
        ),
        (
            LLAMA,
            "num_key_value_heads",
            json!(3),
            "`num_key_value_heads` is 3, expected a divisor of 4 query heads",
        ),
        (
            LLAMA,
            "head_dim",
            json!(7),
            "`head_dim` is 7, expected heads of an even number of dimensions, at most 4096",
        ),
        (LLAMA, "hidden_size", json!(0), "`hidden_size` is 0, expected a whole number in 1..=16777216"),
        (LLAMA, "hidden_size", json!(-1), "`hidden_size` is -1, expected a whole number in 1..=16777216"),
        (
            LLAMA,
            "hidden_size",
            json!("32"),
            "`hidden_size` is \"32\", expected a whole number in 1..=16777216",
        ),
        (LLAMA, "hidden_size", Value::Null, "key `hidden_size` is missing"),
        (
            LLAMA,
            "num_hidden_layers",
            json!(1_000_000_000_000u64),
            "`num_hidden_layers` is 1000000000000, expected a whole number in 1..=4096",
        ),
        (LLAMA, "rms_norm_eps", json!(-1e-6), "`rms_norm_eps` is -1e-6, expected a finite number above 0"),
        (
            LLAMA,
            "tie_word_embeddings",
            json!("yes"),
            "`tie_word_embeddings` is \"yes\", expected true or false",
        ),
        (
            LLAMA,
            "eos_token_id",
            json!([1, "2"]),
            "`eos_token_id` is [1,\"2\"], expected a token id or a list of token ids",
        ),
    ];
    for (model, key, value, expected) in cases {
        let copy = Copy::of(model);
        copy.set(key, value);
        assert_eq!(copy.target_error(), format!("config.json: {expected}"));
    }
}

#[test]
fn sliding_windows_count_where_they_are_used() {
    let windowed = |max_window_layers: Value| {
        let copy = Copy::of(QWEN3);
        copy.edit("config.json", |config| {
            config.as_object_mut().unwrap().remove("layer_types");
            config["use_sliding_window"] = json!(true);
            config["sliding_window"] = json!(16);
            config["max_window_layers"] = max_window_layers;
        });
        copy
    };
    assert_eq!(
        windowed(json!(1)).target_error(),
        "config.json: `use_sliding_window` is true, which is not supported; supported: false, or no layer with a window"
    );
    assert!(TargetWeights::read(windowed(json!(2)).path()).is_ok());
    let unused = windowed(json!(0));
    unused.set("use_sliding_window", json!(false));
    assert!(TargetWeights::read(unused.path()).is_ok());
}

#[test]
fn files_that_are_not_json() {
    let copy = Copy::of(LLAMA);
    copy.write("config.json", "{\"hidden_size\": 32,");
    assert_eq!(
        copy.target_error(),
        "config.json is not valid JSON: EOF while parsing a value at line 1 column 19"
    );
    copy.write("config.json", "[]");
    assert_eq!(
        copy.target_error(),
        "config.json is not valid JSON: invalid type: sequence, expected a map at line 1 column 0"
    );
    copy.write("config.json", "[".repeat(100_000));
    assert!(copy.target_error().starts_with("config.json is not valid JSON: "));

    let copy = Copy::of(YARN);
    copy.write("generation_config.json", "eos: 2");
    assert_eq!(
        copy.target_error(),
        "generation_config.json is not valid JSON: expected value at line 1 column 1"
    );
    copy.write("generation_config.json", "{\"eos_token_id\": -1}");
    assert_eq!(
        copy.target_error(),
        "generation_config.json: `eos_token_id` is -1, expected a token id or a list of token ids"
    );
}

#[test]
fn a_file_too_large_to_be_a_config_is_not_read() {
    let copy = Copy::of(LLAMA);
    fs::File::create(copy.path().join("config.json")).unwrap().set_len(1 << 33).unwrap();
    assert_eq!(
        copy.target_error(),
        "config.json has 8589934592 bytes, more than the 67108864 that are read of such a file"
    );
}

#[test]
fn drafters_for_another_target() {
    let another = "config.json: this drafter is for another target: its ";
    let cases = [
        ("hidden_size", json!(128), "hidden size is 128, the target's 64"),
        ("num_attention_heads", json!(4), "number of query heads is 4, the target's 2"),
        ("num_key_value_heads", json!(2), "number of KV heads is 2, the target's 1"),
        ("head_dim", json!(32), "head dimension is 32, the target's 64"),
        ("vocab_size", json!(151936), "vocabulary size is 151936, the target's 384"),
        ("num_target_layers", json!(36), "number of target layers is 36, the target's 4"),
        ("model_type", json!("llama"), "model family is LlamaForCausalLM, the target's Qwen3ForCausalLM"),
    ];
    for (key, value, expected) in cases {
        let copy = Copy::of(DRAFT);
        copy.set(key, value);
        assert_eq!(copy.drafter_error(), format!("{another}{expected}"));
    }
}

#[test]
fn drafters_that_are_not_a_tail() {
    let ids = |ids: Value| {
        let copy = Copy::of(DRAFT);
        copy.edit("config.json", |config| config["flexdraft_config"]["target_layer_ids"] = ids);
        copy.drafter_error()
    };
    let expected = "expected the target's last 2 layers, 2 to 3, in order";
    for wrong in ["[1,3]", "[1,2]", "[3,2]", "[3]", "[2,3,4]", "[]", "[2,\"3\"]", "[2.5,3]"] {
        let found = ids(serde_json::from_str(wrong).unwrap());
        assert_eq!(found, format!("config.json: `flexdraft_config.target_layer_ids` is {wrong}, {expected}"));
    }
    assert_eq!(ids(Value::Null), "config.json: key `flexdraft_config.target_layer_ids` is missing");

    let cases = [
        (
            "num_hidden_layers",
            json!(5),
            "config.json: `num_hidden_layers` is 5, expected at most the target's 4 layers",
        ),
        ("block_size", json!(0), "config.json: `block_size` is 0, expected a whole number in 1..=64"),
        ("block_size", json!(65), "config.json: `block_size` is 65, expected a whole number in 1..=64"),
        ("flexdraft_config", Value::Null, "config.json: key `flexdraft_config` is missing"),
        ("flexdraft_config", json!([]), "config.json: `flexdraft_config` is [], expected an object"),
    ];
    for (key, value, expected) in cases {
        let copy = Copy::of(DRAFT);
        copy.set(key, value);
        assert_eq!(copy.drafter_error(), expected);
    }
}

#[test]
fn drafters_with_other_tensors() {
    let cases = [
        ("mask_embedding", json!([32, 2]), "[32, 2], expected [64]"),
        ("layers.1.self_attn.q_norm.weight", json!([64, 1]), "[64, 1], expected [64]"),
        ("anchor_bias_mlp.0.weight", json!([64, 64]), "[64, 64], expected [64, 128]"),
        ("anchor_bias_mlp.2.bias", json!([2, 192]), "[2, 192], expected [384]"),
    ];
    for (tensor, shape, expected) in cases {
        let copy = Copy::of(DRAFT);
        copy.edit_header(|header| header[tensor]["shape"] = shape);
        assert_eq!(
            copy.drafter_error(),
            format!("model.safetensors: tensor `{tensor}` has shape {expected}")
        );
    }
    let copy = Copy::of(DRAFT);
    copy.edit_header(|header| {
        let tensor = header.remove("mask_embedding").unwrap();
        header.insert("mask_token".into(), tensor);
    });
    assert_eq!(
        copy.drafter_error(),
        format!("{}: tensor `mask_embedding` is missing", copy.path().display())
    );
}

#[test]
fn a_report_lists_everything_that_is_wrong() {
    let copy = Copy::of(LLAMA);
    copy.edit_header(|header| {
        header["model.layers.1.mlp.up_proj.weight"]["shape"] = json!([32, 40]);
        for name in ["model.layers.0.input_layernorm.weight", "model.norm.weight"] {
            let tensor = header.remove(name).unwrap();
            header.insert(format!("unknown.{name}"), tensor);
        }
    });
    let path = copy.path().join("model.safetensors");
    let mut file = fs::read(&path).unwrap();
    let len = file.len();
    let embed = split(&file).0["model.embed_tokens.weight"]["data_offsets"][0].as_u64().unwrap() as usize;
    let data = len - split(&file).1.len();
    for (i, value) in [f32::NAN, f32::INFINITY].into_iter().enumerate() {
        let at = data + embed + 4 * i;
        file[at..at + 4].copy_from_slice(&value.to_le_bytes());
    }
    fs::write(&path, file).unwrap();

    let report = Report::read(copy.path(), None).unwrap();
    assert!(!report.is_sound());
    assert_eq!(report.target.problems.len(), 3);
    assert_eq!(report.target.non_finite, [("model.embed_tokens.weight".to_owned(), 2)]);
    // SAFETY: the file is not written to while it is mapped.
    let mapped = unsafe { Report::map(copy.path(), None) }.unwrap();
    assert_eq!(mapped.to_string(), report.to_string());
    let dir = copy.path().display();
    let shown = report.to_string();
    let expected = [
        "  missing or misshapen: 3".to_owned(),
        format!("    {dir}: tensor `model.layers.0.input_layernorm.weight` is missing"),
        format!(
            "    {dir}/model.safetensors: tensor `model.layers.1.mlp.up_proj.weight` has shape [32, 40], expected [40, 32]"
        ),
        format!("    {dir}: tensor `model.norm.weight` is missing"),
        "  not finite: 1".to_owned(),
        "    model.embed_tokens.weight: 2 elements".to_owned(),
        "  unused: 2".to_owned(),
        "    unknown.model.layers.*.input_layernorm.weight (1 layer)".to_owned(),
        "    unknown.model.norm.weight".to_owned(),
    ];
    assert!(shown.ends_with(&(expected.join("\n") + "\n")), "{shown}");
}

#[test]
fn tokenizers_and_templates() {
    let dir = Copy(tempfile::tempdir().unwrap());
    dir.write("tokenizer.json", "{}");
    let error = dir.message(Tokenizer::read(dir.path(), 64).unwrap_err());
    assert!(error.starts_with("tokenizer tokenizer.json: "), "{error}");

    let template_error = || dir.message(ChatTemplate::read(dir.path()).unwrap_err());
    dir.write("tokenizer_config.json", "{\"chat_template\": 1}");
    assert_eq!(
        template_error(),
        "tokenizer_config.json: `chat_template` is 1, expected a template, or a list of templates with one named `default`"
    );
    dir.write("tokenizer_config.json", "{\"chat_template\": [{\"name\": \"tools\", \"template\": \"\"}]}");
    assert!(
        template_error().ends_with("expected a template, or a list of templates with one named `default`")
    );
    dir.write("tokenizer_config.json", "{\"chat_template\": \"{% for %}\"}");
    let error = template_error();
    assert!(error.starts_with("chat template tokenizer_config.json: syntax error: "), "{error}");
    dir.write("tokenizer_config.json", "{\"chat_template\": \"\", \"bos_token\": 1}");
    assert_eq!(
        template_error(),
        "tokenizer_config.json: `bos_token` is 1, expected a token's text, or an object with its `content`"
    );
    dir.write("chat_template.jinja", [0xff]);
    dir.write("tokenizer_config.json", "{}");
    let error = template_error();
    assert!(error.starts_with("chat template chat_template.jinja: invalid utf-8"), "{error}");
    dir.write("chat_template.jinja", "{{ messages[7].content }}");
    let error =
        ChatTemplate::read(dir.path()).unwrap().render(&[ChatMessage::new("user", "a")], true).unwrap_err();
    assert_eq!(dir.message(error), "chat template chat_template.jinja: undefined value (in chat_template:1)");
}

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

//! Tests with model configurations that are invalid or not supported.

use std::fs;

use flexdraft::model::TargetWeights;
use serde_json::{Value, json};

use super::directory::{Copy, LLAMA, QWEN3, YARN};

/// Each case has a key with a wrong value, and the text that the error contains.
#[test]
fn configurations_that_are_not_supported() {
    let cases = [
        (
            LLAMA,
            "architectures",
            json!(["MixtralForCausalLM"]),
            "`architectures` is [\"MixtralForCausalLM\"], which is not supported; supported: LlamaForCausalLM, MistralForCausalLM, Qwen2ForCausalLM, Qwen3ForCausalLM, SmolLM3ForCausalLM, OrthrusLM",
        ),
        (
            QWEN3,
            "architectures",
            json!(["Qwen3MoeForCausalLM"]),
            "`architectures` is [\"Qwen3MoeForCausalLM\"], which is not supported; supported: LlamaForCausalLM, MistralForCausalLM, Qwen2ForCausalLM, Qwen3ForCausalLM, SmolLM3ForCausalLM, OrthrusLM",
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
            "`num_key_value_heads` is 3, expected a divisor of the number of query heads, 4",
        ),
        (
            LLAMA,
            "head_dim",
            json!(7),
            "`head_dim` is 7, expected an even number of dimensions per head, at most 4096",
        ),
        (LLAMA, "hidden_size", json!(0), "`hidden_size` is 0, expected a whole number from 1 to 16777216"),
        (LLAMA, "hidden_size", json!(-1), "`hidden_size` is -1, expected a whole number from 1 to 16777216"),
        (
            LLAMA,
            "hidden_size",
            json!("32"),
            "`hidden_size` is \"32\", expected a whole number from 1 to 16777216",
        ),
        (LLAMA, "hidden_size", Value::Null, "key `hidden_size` is missing"),
        (
            LLAMA,
            "num_hidden_layers",
            json!(1_000_000_000_000u64),
            "`num_hidden_layers` is 1000000000000, expected a whole number from 1 to 4096",
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
fn a_window_that_covers_the_context_has_no_effect() {
    let mistral = Copy::of("transformers/models/mistral");
    assert!(TargetWeights::read(mistral.path()).is_ok());
    mistral.set("sliding_window", json!(127));
    assert_eq!(
        mistral.target_error(),
        "config.json: `sliding_window` is 127, which is not supported; supported: null, or a window that covers the context of 128 positions"
    );
    mistral.set("sliding_window", Value::Null);
    assert!(TargetWeights::read(mistral.path()).is_ok());
    let qwen2 = Copy::of("transformers/models/qwen2");
    qwen2.set("layer_types", json!(["full_attention", "sliding_attention"]));
    qwen2.set("sliding_window", json!(128));
    assert!(TargetWeights::read(qwen2.path()).is_ok());
    qwen2.set("sliding_window", json!(64));
    assert!(qwen2.target_error().starts_with("config.json: `layer_types` is [\"full_attention\""));
}

#[test]
fn layers_without_rotation() {
    let smollm3 = Copy::of("transformers/models/smollm3");
    let layers = |copy: &Copy| TargetWeights::read(copy.path()).unwrap().config.layers_without_rope;
    assert_eq!(layers(&smollm3), [3]);
    smollm3.set("no_rope_layers", Value::Null);
    assert_eq!(layers(&smollm3), [3]);
    smollm3.set("no_rope_layer_interval", json!(2));
    assert_eq!(layers(&smollm3), [1, 3]);
    smollm3.set("no_rope_layers", json!([1, 0]));
    assert_eq!(
        smollm3.target_error(),
        "config.json: `no_rope_layers` is [1,0], expected 5 numbers, one per layer, 0 for layers without rotation"
    );
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
    assert_eq!(copy.target_error(), "config.json has 8589934592 bytes, expected at most 67108864");
}

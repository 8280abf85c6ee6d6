//! Tests with drafters that do not match their target.

use serde_json::{Value, json};

use super::directory::{Copy, DRAFT};

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
        ("block_size", json!(0), "config.json: `block_size` is 0, expected a whole number from 1 to 64"),
        ("block_size", json!(65), "config.json: `block_size` is 65, expected a whole number from 1 to 64"),
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

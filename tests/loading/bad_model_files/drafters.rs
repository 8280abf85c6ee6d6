//! Tests with drafters that do not match their target.

use flexdraft::model::weights::{ChainConfig, ChainKind};
use flexdraft::model::{DrafterWeights, ModelConfig};
use serde_json::{Value, json};

use super::directory::{Copy, DRAFT, fixture};

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

/// Returns a drafter whose unused tensors, each [160, 64], were renamed to tensors of a chain.
fn chained(kind: Value, names: &[&str]) -> Copy {
    let copy = Copy::of(DRAFT);
    copy.edit("config.json", |config| config["flexdraft_config"]["chain_kind"] = kind);
    copy.edit_header(|header| {
        for (name, unused) in names.iter().zip(["gate", "up"]) {
            let tensor = header.remove(&format!("layers.0.mlp.{unused}_proj.weight")).unwrap();
            header.insert((*name).into(), tensor);
        }
    });
    copy
}

#[test]
fn a_chain_is_read_with_its_rank() {
    let copy = chained(json!("pair"), &["chain.a.weight", "chain.b.weight"]);
    let target = ModelConfig::read(&fixture("tiny/target")).unwrap();
    let chain = DrafterWeights::read(copy.path(), &target).unwrap().chain.unwrap();
    assert_eq!(chain.config, ChainConfig { kind: ChainKind::Pair, top_k: 16 });
    assert_eq!((chain.first.weight.shape(), chain.second.weight.shape()), (&[160, 64][..], &[160, 64][..]));

    copy.edit("config.json", |config| config["flexdraft_config"]["chain_top_k"] = json!(3));
    assert_eq!(DrafterWeights::read(copy.path(), &target).unwrap().chain.unwrap().config.top_k, 3);
    let report = flexdraft::model::inspect::Report::read(&fixture("tiny/target"), Some(copy.path())).unwrap();
    assert!(report.is_sound());
    let shown = report.to_string();
    assert!(shown.contains("rank 32, pair chain of rank 160 over the 3 most likely ids\n"), "{shown}");
    assert!(shown.contains("    chain              2 tensors           20,480  f32\n"), "{shown}");
}

#[test]
fn chains_that_do_not_fit_their_config() {
    let another = |tensor, kind| {
        format!(
            "model.safetensors: tensor `{tensor}` belongs to a chain of another kind than the config's; \
             `chain_kind` is {kind}"
        )
    };
    let pair = ["chain.a.weight", "chain.b.weight"];
    assert_eq!(chained(Value::Null, &pair).drafter_error(), another("chain.a.weight", "missing"));
    assert_eq!(
        chained(json!("pair"), &["chain.a.weight", "chain.2.weight"]).drafter_error(),
        another("chain.2.weight", "pair")
    );
    let incomplete = chained(json!("pair"), &["chain.a.weight"]);
    let missing = format!("{}: tensor `chain.b.weight` is missing", incomplete.path().display());
    assert_eq!(incomplete.drafter_error(), missing);
    assert_eq!(
        chained(json!("hidden"), &["chain.0.weight", "chain.2.weight"]).drafter_error(),
        "model.safetensors: tensor `chain.0.weight` has shape [160, 64], expected [160, 128]"
    );
    assert_eq!(
        chained(json!("markov"), &pair).drafter_error(),
        "config.json: `flexdraft_config.chain_kind` is \"markov\", which is not supported; supported: pair, hidden"
    );
    for top_k in [json!(0), json!(33), json!(2.5)] {
        let copy = chained(json!("pair"), &pair);
        copy.edit("config.json", |config| config["flexdraft_config"]["chain_top_k"] = top_k.clone());
        let expected = "expected a whole number from 1 to 32";
        assert_eq!(
            copy.drafter_error(),
            format!("config.json: `flexdraft_config.chain_top_k` is {top_k}, {expected}")
        );
    }
    let copy = chained(Value::Null, &[]);
    copy.edit("config.json", |config| config["flexdraft_config"]["chain_top_k"] = json!(16));
    assert_eq!(copy.drafter_error(), "config.json: key `flexdraft_config.chain_kind` is missing");
}

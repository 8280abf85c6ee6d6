//! Tests with Orthrus models whose drafter is incomplete or does not fit its target.

use flexdraft::model::inspect::Report;
use flexdraft::model::{DrafterWeights, ModelConfig, ModelWeights, TargetWeights};
use serde_json::{Value, json};

use super::directory::{Copy, ORTHRUS, QWEN3, fixture};

#[test]
fn configurations_of_the_drafter() {
    let block_size =
        |size: i64| format!("config.json: `block_size` is {size}, expected a whole number from 1 to 64");
    let cases = [
        ("block_size", json!(0), block_size(0)),
        ("block_size", json!(65), block_size(65)),
        ("block_size", Value::Null, "config.json: key `block_size` is missing".into()),
        (
            "mask_token_id",
            json!(384),
            "config.json: `mask_token_id` is 384, expected an id below `vocab_size`, 384".into(),
        ),
        ("mask_token_id", json!(-1), "config.json: `mask_token_id` is -1, expected a token id".into()),
        ("mask_token_id", Value::Null, "config.json: key `mask_token_id` is missing".into()),
        (
            "model_type",
            json!("qwen3"),
            "config.json: `model_type` is \"qwen3\", which is not supported; supported: orthrus for OrthrusLM".into(),
        ),
        (
            "architectures",
            json!(["Qwen3ForCausalLM"]),
            "config.json: `model_type` is \"orthrus\", which is not supported; supported: qwen3 for Qwen3ForCausalLM"
                .into(),
        ),
    ];
    for (key, value, expected) in cases {
        let copy = Copy::of(ORTHRUS);
        copy.set(key, value);
        assert_eq!(copy.model_error(), expected);
    }
}

#[test]
fn tensors_of_the_drafter() {
    let layer_without_projections = Copy::of(ORTHRUS);
    layer_without_projections.edit_header(|header| {
        for name in ["q_proj", "k_proj", "v_proj", "o_proj", "q_norm", "k_norm"] {
            let tensor = header.remove(&format!("model.layers.2.self_attn.{name}_diff.weight")).unwrap();
            header.insert(format!("elsewhere.{name}"), tensor);
        }
    });
    let path = layer_without_projections.path().display().to_string();
    assert_eq!(
        layer_without_projections.model_error(),
        format!("{path}: tensor `model.layers.2.self_attn.q_proj_diff.weight` is missing")
    );
    // The target of the checkpoint can be read, because only its drafter lacks a tensor.
    assert!(TargetWeights::read(layer_without_projections.path()).is_ok());
    let report = Report::read(layer_without_projections.path(), None).unwrap();
    assert!(report.target.is_sound() && !report.is_sound());
    let drafter = &report.drafter.as_ref().unwrap().tensors;
    assert_eq!((drafter.problems.len(), report.target.unused.len()), (6, 6));

    let other_shape = Copy::of(ORTHRUS);
    other_shape.edit_header(|header| {
        header["model.layers.1.self_attn.o_proj_diff.weight"]["shape"] = json!([128, 64]);
    });
    assert_eq!(
        other_shape.model_error(),
        "model.safetensors: tensor `model.layers.1.self_attn.o_proj_diff.weight` has shape [128, 64], \
         expected [64, 128]"
    );

    let broken_target = Copy::of(ORTHRUS);
    broken_target.edit_header(|header| {
        let tensor = header.remove("model.norm.weight").unwrap();
        header.insert("elsewhere".into(), tensor);
    });
    let path = broken_target.path().display().to_string();
    assert_eq!(broken_target.model_error(), format!("{path}: tensor `model.norm.weight` is missing"));
    let report = Report::read(broken_target.path(), None).unwrap();
    assert_eq!(report.target.problems.len(), 1);
    assert!(report.drafter.unwrap().tensors.is_sound());
}

/// An Orthrus drafter needs the target of its own checkpoint.
#[test]
fn an_orthrus_model_as_the_drafter_of_another_target() {
    let target = ModelConfig::read(&fixture(QWEN3)).unwrap();
    let copy = Copy::of(ORTHRUS);
    assert_eq!(
        copy.message(DrafterWeights::read(copy.path(), &target).unwrap_err()),
        "config.json: `model_type` is \"orthrus\", which is not supported; supported: a FlexDraft drafter (an Orthrus \
         drafter is loaded with the target in its directory)"
    );
    assert!(ModelWeights::read(&fixture(QWEN3)).unwrap().drafter.is_none());
}

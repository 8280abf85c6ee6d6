//! Replays recordings of the official FlexDraft implementation on a tiny model, token for token.
//!
//! `tests/fixtures/tiny` of the workspace holds a 4-layer Qwen3 target, its drafter, and the record of 24 greedy
//! requests: four prompts, each with six combinations of block size and schedule. The tests replay all of them in
//! f64; the record was made in f32.

use std::path::PathBuf;

use flexdraft_reference::accept::Rule;
use flexdraft_reference::calibration::Calibrator;
use flexdraft_reference::decode::{Decoded, Request, autoregressive, decode};
use flexdraft_reference::model::{Drafter, DrafterKind, Target};
use flexdraft_reference::process::Processors;
use flexdraft_reference::schedule::Strategy;
use flexdraft_reference::warp::Warping;
use serde_json::Value;

use crate::checkpoint::{self, Safetensors, assert_confidence, ids, number};

fn folder() -> PathBuf {
    checkpoint::fixtures().join("tiny")
}

pub fn model() -> (Target<f64>, Drafter<f64>) {
    let folder = folder();
    let target = checkpoint::target(&folder.join("target"));

    let tail_layers = number(&checkpoint::json(&folder.join("draft/config.json"))["num_hidden_layers"]);
    let weights = Safetensors::open(&folder.join("draft/model.safetensors"));
    let mlp = |i: usize| {
        let mut linear = weights.linear(&format!("anchor_bias_mlp.{i}.weight"));
        linear.bias = Some(weights.get(&format!("anchor_bias_mlp.{i}.bias")));
        linear
    };
    let drafter = Drafter {
        kind: DrafterKind::FlexDraft,
        attention: (0..tail_layers).map(|i| weights.projectors(&format!("layers.{i}"), "")).collect(),
        mask_embedding: weights.get("mask_embedding"),
        calibrator: Some(Calibrator { hidden: mlp(0), output: mlp(2) }),
        chain: None,
    };
    (target, drafter)
}

/// Checks the steps of `decoded` against the record. The official loop takes one more step if all tokens are already
/// known after the previous step.
fn assert_steps(name: &str, case: &Value, decoded: &Decoded<f64>) {
    let recorded = case["steps"].as_array().unwrap();
    assert!(recorded.len() - decoded.steps.len() <= 1, "{name}: {} steps", decoded.steps.len());
    for (i, (step, recorded)) in decoded.steps.iter().zip(recorded).enumerate() {
        let name = format!("{name}, step {i}");
        assert_eq!(step.start, number(&recorded["start"]), "{name}");
        assert_eq!(step.verify_len + 1, number(&recorded["groups"]), "{name}");
        assert_eq!(step.candidates, ids(&case["candidates"][i]), "{name}");
        assert_eq!(step.accepted, number(&recorded["accepted"]), "{name}");
        assert_eq!(step.bonus, number(&recorded["bonus"]) as u32, "{name}");
        assert_eq!(step.draft.tokens, ids(&recorded["draft"]), "{name}");
        assert_confidence(&name, &step.draft.confidence, &recorded["confidence"]);
    }
}

/// Replays the six cases of a prompt, which differ in block size and schedule.
fn replay(cases: std::ops::Range<usize>) {
    let (target, drafter) = model();
    let all = checkpoint::json(&folder().join("cases.json"));
    for index in cases {
        let case = &all[index];
        let name = format!("case {index}");
        let request = Request {
            prompt: ids(&case["prompt"]),
            max_new_tokens: number(&case["max_new_tokens"]),
            stop_tokens: vec![],
            processors: Processors::OFF,
            processors_on_drafts: false,
            warping: Warping::GREEDY,
            rule: Rule::Rejection,
            seed: 0,
            block_size: number(&case["block_size"]),
            threshold: case["threshold"].as_f64().unwrap(),
            strategy: match case["strategy"].as_str() {
                Some("cumulative_product") => Strategy::CumulativeProduct,
                Some("min_confidence") => Strategy::MinConfidence,
                other => panic!("{name}: strategy {other:?}"),
            },
        };
        let decoded = decode(&target, &drafter, &request);
        assert_eq!(decoded.output, ids(&case["output"]), "{name}");
        assert_steps(&name, case, &decoded);
        if request.block_size == 8 && request.threshold == 0.0 {
            assert_eq!(autoregressive(&target, &request), ids(&case["ar_output"]), "{name}");
        }
    }
}

#[test]
fn first_prompt() {
    replay(0..6);
}

#[test]
fn second_prompt() {
    replay(6..12);
}

#[test]
fn third_prompt() {
    replay(12..18);
}

#[test]
fn fourth_prompt() {
    replay(18..24);
}

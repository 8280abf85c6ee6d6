//! Replays recordings of the official FlexDraft implementation on a tiny model, token for token.
//!
//! `tests/fixtures/tiny` of the workspace holds a 4-layer Qwen3 target, its drafter, and the record of 24 greedy
//! requests: four prompts, each with six combinations of block size and schedule. The tests replay all of them in
//! f64; the record was made in f32.

use std::path::PathBuf;

use flexdraft_reference::accept::Rule;
use flexdraft_reference::attention::Heads;
use flexdraft_reference::calibration::Calibrator;
use flexdraft_reference::decode::{Decoded, Request, autoregressive, decode};
use flexdraft_reference::linear::Linear;
use flexdraft_reference::model::{Drafter, Layer, Projectors, Target};
use flexdraft_reference::rope::Rope;
use flexdraft_reference::schedule::Strategy;
use flexdraft_reference::warp::Warping;
use serde_json::Value;

/// Tolerance for confidences, which are recorded to six places.
const CONFIDENCE_TOLERANCE: f64 = 1e-5;

fn fixture(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/tiny").join(name)
}

fn json(name: &str) -> Value {
    serde_json::from_slice(&std::fs::read(fixture(name)).unwrap()).unwrap()
}

/// A safetensors file: the length of a JSON header (u64, little-endian), the header, the data.
struct Safetensors {
    header: Value,
    data: Vec<u8>,
}

impl Safetensors {
    fn open(name: &str) -> Self {
        let bytes = std::fs::read(fixture(name)).unwrap();
        let (len, rest) = bytes.split_at(8);
        let (header, data) = rest.split_at(u64::from_le_bytes(len.try_into().unwrap()) as usize);
        Self { header: serde_json::from_slice(header).unwrap(), data: data.to_vec() }
    }

    fn get(&self, name: &str) -> Vec<f64> {
        let tensor = &self.header[name];
        assert_eq!(tensor["dtype"], "F32", "{name}");
        let offset = |i: usize| tensor["data_offsets"][i].as_u64().unwrap() as usize;
        let bytes = &self.data[offset(0)..offset(1)];
        bytes.chunks(4).map(|b| f64::from(f32::from_le_bytes(b.try_into().unwrap()))).collect()
    }

    fn linear(&self, name: &str) -> Linear<f64> {
        let inputs = self.header[name]["shape"][1].as_u64().unwrap() as usize;
        Linear::new(self.get(name), inputs)
    }

    fn projectors(&self, prefix: &str) -> Projectors<f64> {
        let linear = |name: &str| self.linear(&format!("{prefix}.self_attn.{name}_proj.weight"));
        let norm = |name: &str| self.get(&format!("{prefix}.self_attn.{name}_norm.weight"));
        Projectors {
            q: linear("q"),
            k: linear("k"),
            v: linear("v"),
            o: linear("o"),
            qk_norms: Some((norm("q"), norm("k"))),
        }
    }
}

fn model() -> (Target<f64>, Drafter<f64>) {
    let config = json("target/config.json");
    let size = |key: &str| config[key].as_u64().unwrap() as usize;
    let weights = Safetensors::open("target/model.safetensors");
    let layer = |i: usize| {
        let prefix = format!("model.layers.{i}");
        let linear = |name: &str| weights.linear(&format!("{prefix}.mlp.{name}_proj.weight"));
        let norm = |name: &str| weights.get(&format!("{prefix}.{name}_layernorm.weight"));
        Layer {
            input_norm: norm("input"),
            attention: weights.projectors(&prefix),
            post_attention_norm: norm("post_attention"),
            gate: linear("gate"),
            up: linear("up"),
            down: linear("down"),
        }
    };
    assert_eq!(config["tie_word_embeddings"], true);
    let embed = weights.linear("model.embed_tokens.weight");
    let target = Target {
        heads: Heads {
            q_heads: size("num_attention_heads"),
            kv_heads: size("num_key_value_heads"),
            head_dim: size("head_dim"),
        },
        rope: Rope::unscaled(size("head_dim"), config["rope_theta"].as_f64().unwrap()),
        rms_norm_eps: config["rms_norm_eps"].as_f64().unwrap(),
        embed: embed.weight.clone(),
        layers: (0..size("num_hidden_layers")).map(layer).collect(),
        norm: weights.get("model.norm.weight"),
        lm_head: embed,
    };

    let tail_layers = json("draft/config.json")["num_hidden_layers"].as_u64().unwrap();
    let weights = Safetensors::open("draft/model.safetensors");
    let mlp = |i: usize| {
        let mut linear = weights.linear(&format!("anchor_bias_mlp.{i}.weight"));
        linear.bias = Some(weights.get(&format!("anchor_bias_mlp.{i}.bias")));
        linear
    };
    let drafter = Drafter {
        attention: (0..tail_layers).map(|i| weights.projectors(&format!("layers.{i}"))).collect(),
        mask_embedding: weights.get("mask_embedding"),
        calibrator: Some(Calibrator { hidden: mlp(0), output: mlp(2) }),
    };
    (target, drafter)
}

fn ids(value: &Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect()
}

fn number(value: &Value) -> usize {
    value.as_u64().unwrap() as usize
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
        let confidence = recorded["confidence"].as_array().unwrap();
        assert_eq!(step.draft.confidence.len(), confidence.len(), "{name}");
        for (found, expected) in step.draft.confidence.iter().zip(confidence) {
            let expected = expected.as_f64().unwrap();
            assert!((found - expected).abs() < CONFIDENCE_TOLERANCE, "{name}: {found}, not {expected}");
        }
    }
}

/// Replays the six cases of a prompt, which differ in block size and schedule.
fn replay(cases: std::ops::Range<usize>) {
    let (target, drafter) = model();
    let all = json("cases.json");
    for index in cases {
        let case = &all[index];
        let name = format!("case {index}");
        let request = Request {
            prompt: ids(&case["prompt"]),
            max_new_tokens: number(&case["max_new_tokens"]),
            stop_tokens: vec![],
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

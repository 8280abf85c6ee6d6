//! Readers of the recordings' checkpoints and numbers.

use std::path::{Path, PathBuf};

use flexdraft_reference::attention::Heads;
use flexdraft_reference::linear::Linear;
use flexdraft_reference::model::{Layer, Projectors, Target};
use flexdraft_reference::rope::Rope;
use serde_json::Value;

/// Tolerance for confidences, which are recorded to six places.
const CONFIDENCE_TOLERANCE: f64 = 1e-5;

/// Returns the folder of all recordings.
pub fn fixtures() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures")
}

pub fn json(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

pub fn ids(value: &Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect()
}

pub fn number(value: &Value) -> usize {
    value.as_u64().unwrap() as usize
}

/// Checks the confidences of a draft against the recorded confidences.
pub fn assert_confidence(name: &str, found: &[f64], recorded: &Value) {
    let recorded = recorded.as_array().unwrap();
    assert_eq!(found.len(), recorded.len(), "{name}");
    for (found, expected) in found.iter().zip(recorded) {
        let expected = expected.as_f64().unwrap();
        assert!((found - expected).abs() < CONFIDENCE_TOLERANCE, "{name}: {found}, not {expected}");
    }
}

/// A safetensors file: the length of a JSON header (u64, little-endian), the header, the data.
pub struct Safetensors {
    header: Value,
    data: Vec<u8>,
}

impl Safetensors {
    pub fn open(path: &Path) -> Self {
        let bytes = std::fs::read(path).unwrap();
        let (len, rest) = bytes.split_at(8);
        let (header, data) = rest.split_at(u64::from_le_bytes(len.try_into().unwrap()) as usize);
        Self { header: serde_json::from_slice(header).unwrap(), data: data.to_vec() }
    }

    pub fn get(&self, name: &str) -> Vec<f64> {
        let tensor = &self.header[name];
        let offset = |i: usize| number(&tensor["data_offsets"][i]);
        let bytes = &self.data[offset(0)..offset(1)];
        match tensor["dtype"].as_str() {
            Some("F32") => {
                bytes.chunks(4).map(|b| f64::from(f32::from_le_bytes(b.try_into().unwrap()))).collect()
            }
            // A bf16 number is the upper half of an f32 number.
            Some("BF16") => {
                bytes.chunks(2).map(|b| f64::from(f32::from_le_bytes([0, 0, b[0], b[1]]))).collect()
            }
            other => panic!("{name} has type {other:?}"),
        }
    }

    pub fn linear(&self, name: &str) -> Linear<f64> {
        Linear::new(self.get(name), number(&self.header[name]["shape"][1]))
    }

    /// Returns the attention projectors under `prefix` whose modules' names end with `suffix`.
    pub fn projectors(&self, prefix: &str, suffix: &str) -> Projectors<f64> {
        let linear = |name: &str| self.linear(&format!("{prefix}.self_attn.{name}_proj{suffix}.weight"));
        let norm = |name: &str| self.get(&format!("{prefix}.self_attn.{name}_norm{suffix}.weight"));
        Projectors {
            q: linear("q"),
            k: linear("k"),
            v: linear("v"),
            o: linear("o"),
            qk_norms: Some((norm("q"), norm("k"))),
        }
    }
}

/// Reads a Qwen3 target with tied embeddings from a recording's folder.
pub fn target(folder: &Path) -> Target<f64> {
    let config = json(&folder.join("config.json"));
    let size = |key: &str| number(&config[key]);
    let weights = Safetensors::open(&folder.join("model.safetensors"));
    let layer = |i: usize| {
        let prefix = format!("model.layers.{i}");
        let linear = |name: &str| weights.linear(&format!("{prefix}.mlp.{name}_proj.weight"));
        let norm = |name: &str| weights.get(&format!("{prefix}.{name}_layernorm.weight"));
        Layer {
            input_norm: norm("input"),
            attention: weights.projectors(&prefix, ""),
            post_attention_norm: norm("post_attention"),
            gate: linear("gate"),
            up: linear("up"),
            down: linear("down"),
        }
    };
    assert_eq!(config["tie_word_embeddings"], true);
    let theta = config["rope_theta"].as_f64().or(config["rope_parameters"]["rope_theta"].as_f64()).unwrap();
    let embed = weights.linear("model.embed_tokens.weight");
    Target {
        heads: Heads {
            q_heads: size("num_attention_heads"),
            kv_heads: size("num_key_value_heads"),
            head_dim: size("head_dim"),
        },
        rope: Rope::unscaled(size("head_dim"), theta),
        rms_norm_eps: config["rms_norm_eps"].as_f64().unwrap(),
        embed: embed.weight.clone(),
        layers: (0..size("num_hidden_layers")).map(layer).collect(),
        norm: weights.get("model.norm.weight"),
        lm_head: embed,
    }
}

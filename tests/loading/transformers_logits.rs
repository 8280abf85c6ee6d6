//! Tests that the forward pass gives the same logits as transformers for every architecture, rope type and stored type
//! that loads. The recordings are in `tests/fixtures/transformers`.

use std::path::Path;

use flexdraft::device::cpu::{Cpu, CpuOptions};
use flexdraft::device::{Precision, StepTables};
use flexdraft::layout::{Pass, SequenceRows};
use flexdraft::model::{Model, TargetWeights};
use serde::Deserialize;

use crate::support::runs::cpu;

#[derive(Deserialize)]
struct Recording {
    prompt: Vec<u32>,
    logits: Vec<Vec<f32>>,
}

/// Returns the logits of every position of a prompt, read in one pass.
fn logits(device: Cpu, target: &TargetWeights, prompt: &[u32]) -> Vec<Vec<f32>> {
    let model = Model::new(device, target, None).unwrap();
    let (mut work, mut logits) = (model.new_workspace(), model.new_logits());
    let page_size = 7;
    let pages: Vec<u32> = (0..prompt.len().div_ceil(page_size) as u32).rev().collect();
    let mut cache = model.new_cache(pages.len(), page_size).unwrap();
    let rows = SequenceRows { pages: &pages, start: 0, candidates: prompt.len(), groups: vec![], slots: 0 };
    model.forward(StepTables::new(&Pass { sequences: vec![rows] }, prompt), &mut cache, &mut work).unwrap();
    let rows: Vec<usize> = (0..prompt.len()).collect();
    model.logits(&rows, &mut work, &mut logits).unwrap();
    rows.into_iter().map(|row| logits.row(row).unwrap().to_vec()).collect()
}

fn largest_difference(a: &[Vec<f32>], b: &[Vec<f32>]) -> f32 {
    assert_eq!(a.len(), b.len());
    let differences = a.iter().flatten().zip(b.iter().flatten()).map(|(a, b)| (a - b).abs());
    differences.fold(0.0, |largest, d| if d <= largest { largest } else { d })
}

const MODELS: [&str; 11] = [
    "llama",
    "llama-biases",
    "llama-linear",
    "llama-llama3",
    "llama-yarn",
    "mistral",
    "qwen2",
    "qwen3",
    "qwen3-biases",
    "qwen3-yarn-v5",
    "smollm3",
];

fn load(name: &str) -> (TargetWeights, Recording) {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/transformers/models").join(name);
    let recording = std::fs::read_to_string(dir.join("recording.json")).unwrap();
    (TargetWeights::read(&dir).unwrap(), serde_json::from_str(&recording).unwrap())
}

#[test]
fn logits_equal_those_of_transformers() {
    for name in MODELS {
        let (target, recording) = load(name);
        let difference = largest_difference(&logits(cpu(2), &target, &recording.prompt), &recording.logits);
        assert!(difference < 5e-5, "{name}: logits differ by {difference}");
    }
}

/// The tests' tolerance distinguishes these models from similar models: with another rope, the logits differ far more.
#[test]
fn another_rope_would_be_noticed() {
    for name in ["llama-linear", "llama-llama3", "llama-yarn", "qwen3-yarn-v5"] {
        let (mut target, recording) = load(name);
        let half = target.config.rope.inv_freq.len() as f32;
        let plain = |(i, _): (usize, &f32)| 10_000f32.powf(-(i as f32) / half);
        target.config.rope.inv_freq = target.config.rope.inv_freq.iter().enumerate().map(plain).collect();
        let difference = largest_difference(&logits(cpu(1), &target, &recording.prompt), &recording.logits);
        assert!(difference > 5e-3, "{name}: logits differ by {difference} only");
    }
}

/// With bf16 activations, logits stay close to transformers' f32 logits (whose standard deviation is 1.5) but differ
/// from them.
#[test]
fn bf16_activations_round() {
    for name in MODELS {
        let (target, recording) = load(name);
        let device = Cpu::new(CpuOptions { precision: Precision::Bf16, ..CpuOptions::default() }).unwrap();
        let difference = largest_difference(&logits(device, &target, &recording.prompt), &recording.logits);
        assert!(difference > 1e-4 && difference < 0.5, "{name}: logits differ by {difference}");
    }
}

//! Small random targets, drafters with random weights, and transcripts for them.

#![allow(dead_code)] // Not every test needs all of it.

pub mod ranks;
pub mod training;

use std::collections::HashMap;

use candle_core::{DType, Device, Result, Tensor};
use flexdraft::device::AttentionShape;
use flexdraft::model::DrafterKind;
use flexdraft::model::config::{Architecture, ModelConfig};
use flexdraft::model::rope::{RopeScaling, rope};
use flexdraft::model::weights::TargetWeights;
use flexdraft::random::philox;
use flexdraft_tune::chain::{ChainHeads, ChainShape};
use flexdraft_tune::drafter::{Drafter, DrafterShape};
use flexdraft_tune::optimizer::Parameter;
use flexdraft_tune::shortlist::Shortlist;
use flexdraft_tune::target::FrozenTarget;
use flexdraft_tune::transcripts::Transcript;

pub fn config(architecture: Architecture, attention_bias: bool) -> ModelConfig {
    ModelConfig {
        architecture,
        hidden_size: 12,
        intermediate_size: 20,
        layers: 3,
        attention: AttentionShape { q_heads: 4, kv_heads: 2, head_dim: 6 },
        vocab_size: 31,
        context_len: 128,
        rms_norm_eps: 1e-6,
        rope: rope(6, 10_000.0, &RopeScaling::Default).unwrap(),
        layers_without_rope: Vec::new(),
        attention_bias,
        mlp_bias: false,
        tied_embeddings: true,
        eos_ids: Vec::new(),
    }
}

pub fn target(config: &ModelConfig) -> TargetWeights {
    TargetWeights::random(config, flexdraft::tensor::DType::F32, 7).unwrap()
}

pub const SHAPE: DrafterShape =
    DrafterShape { kind: DrafterKind::FlexDraft, tail_layers: 2, block_size: 4, rank: 5, whole_tail: false };

/// Returns transcripts of random tokens.
pub fn transcripts(vocab: usize) -> Vec<Transcript> {
    let token = |i: usize| philox([i as u32, 0, 0, 0], [3, 9])[0] % vocab as u32;
    [(5, 17), (1, 12), (3, 9)]
        .into_iter()
        .enumerate()
        .map(|(index, (prompt, response))| Transcript {
            prompt: (0..prompt).map(|i| token(100 * index + i)).collect(),
            response: (0..response).map(|i| token(100 * index + 50 + i)).collect(),
        })
        .collect()
}

/// Returns a drafter with every weight moved away from its initial value, so that every part takes a gradient. All
/// values are exactly representable in bf16.
pub fn drafter(
    weights: &TargetWeights,
    target: &FrozenTarget,
    shape: DrafterShape,
    shortlist: &Shortlist,
) -> Drafter {
    let entry = Tensor::zeros(weights.config.hidden_size, target.dtype(), &Device::Cpu).unwrap();
    let drafter = Drafter::new(weights, target, shape, shortlist, &entry, 1).unwrap();
    drafter.load(&random(drafter.parameters(), target)).unwrap();
    drafter
}

/// Returns a chain with random weights, which are exactly representable in bf16.
pub fn chain(target: &FrozenTarget, shape: ChainShape) -> ChainHeads {
    let chain = ChainHeads::new(target, shape, 1).unwrap();
    let random = random(chain.parameters(), target);
    chain.parameters().iter().for_each(|p| p.var.set(&random[&p.name]).unwrap());
    chain
}

/// Returns random values for parameters, by name; norms are around 1.
fn random(parameters: &[Parameter], target: &FrozenTarget) -> HashMap<String, Tensor> {
    parameters
        .iter()
        .enumerate()
        .map(|(stream, p)| {
            let shape = p.var.dims();
            let count: usize = shape.iter().product();
            let centre = if p.name.ends_with("norm.weight") { 1.0 } else { 0.0 };
            let value =
                |i: usize| centre + f64::from(philox([i as u32, stream as u32, 0, 0], [5, 5])[0]) / 4e9 - 0.5;
            let values: Vec<f64> = (0..count).map(value).collect();
            let tensor = Tensor::from_vec(values, shape, &Device::Cpu).unwrap();
            let rounded = tensor.to_dtype(DType::BF16).unwrap().to_dtype(target.dtype()).unwrap();
            (p.name.clone(), rounded)
        })
        .collect()
}

/// Returns the trained parameters by name.
pub fn parameters(drafter: &Drafter) -> Result<HashMap<String, Tensor>> {
    drafter.parameters().iter().map(|p| Ok((p.name.clone(), p.var.as_detached_tensor().copy()?))).collect()
}

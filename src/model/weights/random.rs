//! Random models in memory: targets of any shape for tests, and drafters for `--draft random:N`.
//!
//! The same arguments give the same bits on every machine and with every version of this crate. An element
//! depends on the seed, on its tensor's name and on its index; it is computed with integer arithmetic and one
//! multiplication.

use std::sync::Arc;

use half::{bf16, f16};
use rayon::prelude::*;

use super::drafter::{self, Parts};
use super::source::TensorSource;
use super::{DrafterWeights, TargetWeights, orthrus, target};
use crate::layout::MAX_BLOCK_SIZE;
use crate::model::LoadError;
use crate::model::config::{DrafterConfig, DrafterKind, ModelConfig};
use crate::tensor::{DType, Tensor};

/// Standard deviation of a random target's logits: large enough that distributions have a clear favourite,
/// small enough that sampling also draws other tokens.
const LOGITS_STD: f32 = 4.0;

impl TargetWeights {
    /// Makes a random target of the given shape, with weights stored as `dtype`.
    ///
    /// Matrices have standard deviation 1/√(input columns) and the embedding 1/√H, so that after the first
    /// layer the residual stream consists mostly of the layers' outputs. Logits have a standard deviation of
    /// about 4. Norm weights are near 1; the weights of the final norm are near 4.
    ///
    /// # Errors
    /// [`LoadError::InvalidConfig`] for a shape that no model can have, or [`LoadError::OutOfMemory`].
    pub fn random(config: &ModelConfig, dtype: DType, seed: u64) -> Result<Self, LoadError> {
        config.validate()?;
        let mut source = RandomSource::new(dtype, seed);
        let weights = target::build(&mut source, "model.", config.clone());
        source.finish(weights)
    }
}

impl DrafterWeights {
    /// Makes a random drafter for a target with configuration `target`: `tail_layers` layers of projectors of
    /// the target's shape, and a calibrator of rank `rank`, or no calibrator if `rank` is 0.
    ///
    /// # Errors
    /// [`LoadError::InvalidConfig`] if `tail_layers` is not in 1..=L, if `block_size` is not in
    /// 1..=[`MAX_BLOCK_SIZE`], or if the target's configuration is invalid; [`LoadError::OutOfMemory`].
    pub fn random(
        target: &ModelConfig,
        tail_layers: usize,
        block_size: usize,
        rank: usize,
        dtype: DType,
        seed: u64,
    ) -> Result<Self, LoadError> {
        target.validate()?;
        check_count("tail_layers", tail_layers, target.layers)?;
        check_count("block_size", block_size, MAX_BLOCK_SIZE)?;
        let mut source = RandomSource::new(dtype, seed);
        let config = DrafterConfig { kind: DrafterKind::FlexDraft, tail_layers, block_size };
        let parts = Parts {
            attention_bias: target.attention_bias,
            calibrator_rank: (rank > 0).then_some(rank),
            chain: None,
        };
        let weights = drafter::build(&mut source, config, target, parts);
        source.finish(weights)
    }

    /// Makes a random Orthrus drafter for `target`: projectors of the target's shape for all its layers. The mask
    /// embedding is the embedding of the last token.
    ///
    /// # Errors
    /// [`LoadError::InvalidConfig`] if `block_size` is not in 1..=[`MAX_BLOCK_SIZE`], or if the target's configuration
    /// is invalid; [`LoadError::OutOfMemory`].
    pub fn random_orthrus(
        target: &TargetWeights,
        block_size: usize,
        dtype: DType,
        seed: u64,
    ) -> Result<Self, LoadError> {
        let model = &target.config;
        model.validate()?;
        check_count("block_size", block_size, MAX_BLOCK_SIZE)?;
        let mut source = RandomSource::new(dtype, seed);
        let config = DrafterConfig { kind: DrafterKind::Orthrus, tail_layers: model.layers, block_size };
        let mask_embedding = target.embed.row(model.vocab_size.saturating_sub(1));
        let weights = orthrus::build(&mut source, "model.", config, model, mask_embedding);
        source.finish(weights)
    }
}

/// Checks that a field of a drafter's configuration is in 1..=`limit`.
fn check_count(field: &'static str, value: usize, limit: usize) -> Result<(), LoadError> {
    if (1..=limit).contains(&value) {
        return Ok(());
    }
    Err(LoadError::InvalidConfig { field, value: value.to_string(), expected: format!("1 to {limit}") })
}

/// A source that makes random elements for every requested tensor.
struct RandomSource {
    dtype: DType,
    seed: u64,
    problem: Option<LoadError>,
}

impl RandomSource {
    fn new(dtype: DType, seed: u64) -> Self {
        Self { dtype, seed, problem: None }
    }

    fn finish<T>(self, weights: Option<T>) -> Result<T, LoadError> {
        weights.ok_or_else(|| {
            self.problem.unwrap_or(LoadError::OutOfMemory { tensor: String::new(), shape: Vec::new() })
        })
    }

    fn make(&self, name: &str, shape: &[usize]) -> Option<Tensor> {
        let elements = shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d))?;
        let (mean, std) = moments(name, shape);
        let stream = splitmix64(self.seed ^ fnv1a(name));
        let element = |i: usize| mean + std * unit_normal(splitmix64(stream.wrapping_add(i as u64)));
        match self.dtype {
            DType::F32 => tensor(self.dtype, shape, elements, element),
            DType::F16 => tensor(self.dtype, shape, elements, |i| f16::from_f32(element(i))),
            DType::Bf16 => tensor(self.dtype, shape, elements, |i| bf16::from_f32(element(i))),
        }
    }
}

impl TensorSource for RandomSource {
    /// A random model has no tensors but those that its configuration asks for.
    fn contains(&self, _: &str) -> bool {
        false
    }

    fn tensor(&mut self, name: &str, shape: &[usize]) -> Option<Tensor> {
        let made = if self.problem.is_some() { None } else { self.make(name, shape) };
        if made.is_none() && self.problem.is_none() {
            self.problem = Some(LoadError::OutOfMemory { tensor: name.to_owned(), shape: shape.to_vec() });
        }
        made
    }
}

/// Returns mean and standard deviation of the random elements of a tensor.
fn moments(name: &str, shape: &[usize]) -> (f32, f32) {
    let inverse_root = |n: usize| 1.0 / (n.max(1) as f32).sqrt();
    match shape {
        _ if name == "model.norm.weight" => (LOGITS_STD, 0.1 * LOGITS_STD),
        _ if name.ends_with("norm.weight") || name.ends_with("norm_diff.weight") => (1.0, 0.1),
        _ if name.ends_with(".bias") => (0.0, 0.1),
        [_, columns] => (0.0, inverse_root(*columns)),
        _ => (0.0, inverse_root(shape.iter().product())),
    }
}

/// The random elements of a tensor, which a [`Tensor`] shares without a second copy.
struct Owned<T>(Vec<T>);

impl<T: bytemuck::NoUninit> AsRef<[u8]> for Owned<T> {
    fn as_ref(&self) -> &[u8] {
        bytemuck::cast_slice(&self.0)
    }
}

fn tensor<T: bytemuck::NoUninit + Send + Sync>(
    dtype: DType,
    shape: &[usize],
    elements: usize,
    element: impl Fn(usize) -> T + Sync + Send,
) -> Option<Tensor> {
    let mut values = Vec::new();
    values.try_reserve_exact(elements).ok()?;
    (0..elements).into_par_iter().with_min_len(1 << 14).map(element).collect_into_vec(&mut values);
    let bytes = elements.checked_mul(dtype.size())?;
    Tensor::from_bytes(dtype, shape, Arc::new(Owned(values)), 0..bytes)
}

/// Hashes the tensor's name (FNV-1a), so that a tensor has the same elements whatever other tensors the model
/// has.
fn fnv1a(name: &str) -> u64 {
    name.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, b| (hash ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3))
}

/// Applies the mixing function of SplitMix64 (Steele, Lea and Flood, OOPSLA 2014) to counter `x`.
fn splitmix64(x: u64) -> u64 {
    let z = x.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Returns a nearly normal number with mean 0 and standard deviation 1: the scaled sum of four 16-bit
/// uniforms.
fn unit_normal(word: u64) -> f32 {
    let sum: u64 = (0..4).map(|i| word >> (16 * i) & 0xffff).sum();
    // The mean of the sum is 4 · 65535/2; its variance is 4 · 2³²/12, up to a relative error of 2⁻³².
    (sum as f32 - 131_070.0) * (1.732_050_8 / 65_536.0)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn elements_are_normal_and_reproducible() {
        let source = RandomSource::new(DType::F32, 7);
        let x = source.make("layers.0.mlp.up_proj.weight", &[200, 100]).unwrap().to_f32();
        let mean = x.iter().map(|&x| f64::from(x)).sum::<f64>() / 2e4;
        let variance = x.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>() / 2e4;
        assert!(mean.abs() < 4.0 * 0.1 / 2e4f64.sqrt(), "{mean}");
        assert!((variance / 0.01 - 1.0).abs() < 0.05, "{variance}");
        // The bits of random weights must never change.
        assert_eq!(x[..3], KEPT);
        let make =
            |dtype, seed, name| RandomSource::new(dtype, seed).make(name, &[200, 100]).unwrap().to_f32();
        let name = "layers.0.mlp.up_proj.weight";
        assert_eq!(make(DType::F16, 7, name)[0], f16::from_f32(x[0]).to_f32());
        assert_ne!(make(DType::F32, 8, name)[0], x[0]);
        assert_ne!(make(DType::F32, 7, "layers.1.mlp.up_proj.weight")[0], x[0]);
    }

    const KEPT: [f32; 3] = [-0.124_097_36, -0.064_381_04, -0.120_024_644];
}

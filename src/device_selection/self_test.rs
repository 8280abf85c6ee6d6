//! A self-test that compares a device with the CPU device before the device is used.

use std::sync::{Arc, Mutex, PoisonError};

use crate::decode::{
    Confidence, DecodeError, Engine, EngineOptions, Finish, HookError, LogitsHook, Mode, Record, Request,
};
use crate::device::cpu::{Cpu, CpuOptions};
use crate::device::{AttentionShape, Device, DeviceError, Precision, Rope};
use crate::model::config::{Architecture, ModelConfig};
use crate::model::{DrafterWeights, LoadError, Model, TargetWeights};
use crate::tensor::DType;

/// The reason why a device failed its self-test.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SelfTestError {
    /// A step of the self-test failed.
    #[error("its self-test failed: {0}")]
    Decode(#[from] DecodeError),
    /// The test's model could not be made.
    #[error("the model of its self-test could not be made: {0}")]
    Load(#[from] LoadError),
    /// The device computes other results than expected.
    #[error("its self-test failed with head_dim {head_dim}: {what}")]
    Differs {
        /// head_dim of the test's model.
        head_dim: usize,
        /// The results that differ, and the results that they were compared with.
        what: &'static str,
    },
}

impl From<DeviceError> for SelfTestError {
    fn from(error: DeviceError) -> Self {
        DecodeError::from(error).into()
    }
}

/// Number of tokens to decode, and of slots in a block.
const NEW_TOKENS: usize = 16;
const BLOCK_SIZE: usize = 4;

/// The largest difference that rounding may cause in a logit, as a fraction of the range of all logits.
const ROUNDING: f32 = 0.02;

/// The results of the test's request on a device.
#[derive(Debug, Default)]
struct Decoded {
    tokens: Vec<u32>,
    /// The draft tokens of the first block. Only the prompt's pass came before it, so only that pass can have
    /// caused differences.
    draft: Vec<u32>,
    confidence: Vec<f32>,
}

/// Tests a device and returns it. Small random models, one per head_dim that the kernels support, decode a
/// few tokens with and without drafting. The test compares tokens, logits and drafts with the results of the
/// CPU device in bf16.
///
/// # Errors
///
/// [`SelfTestError`] if a step fails, if drafting changes a token although the device claims to be
/// [row-invariant](Device::is_row_invariant), or if the results differ from the CPU device's by more than
/// rounding.
pub fn self_test<D: Device>(mut device: D) -> Result<D, SelfTestError> {
    for head_dim in [64, 128] {
        device = test_heads(device, head_dim)?;
    }
    Ok(device)
}

fn test_heads<D: Device>(device: D, head_dim: usize) -> Result<D, SelfTestError> {
    let differs = |what| SelfTestError::Differs { head_dim, what };
    // Without row-invariance, steps with other row counts may differ by rounding.
    let exact = device.is_row_invariant();
    let config = config(head_dim);
    let target = TargetWeights::random(&config, DType::Bf16, 1)?;
    let drafter = DrafterWeights::random(&config, 1, BLOCK_SIZE, 16, DType::Bf16, 2)?;
    let mut device = engine(device, &target, &drafter)?;
    let alone = decode(&mut device, Mode::Autoregressive, None)?;
    let drafting = decode(&mut device, Mode::Parallel, None)?;
    let sequential = decode(&mut device, Mode::Sequential, None)?;
    if exact && (drafting.tokens != alone.tokens || sequential.tokens != alone.tokens) {
        return Err(differs("drafting changes the tokens"));
    }
    let bits = |decoded: &Decoded| decoded.confidence.iter().map(|c| c.to_bits()).collect::<Vec<_>>();
    if exact && (&drafting.draft, bits(&drafting)) != (&sequential.draft, bits(&sequential)) {
        return Err(differs("parallel and sequential drafts are not the same"));
    }

    let cpu = Cpu::new(CpuOptions { threads: 1, precision: Precision::Bf16 })?;
    let mut cpu = engine(cpu, &target, &drafter)?;
    let seen = Seen::default();
    let expected = decode(&mut cpu, Mode::Autoregressive, Some(seen.clone()))?;
    let expected_logits = seen.take();
    let hooked = decode(&mut device, Mode::Autoregressive, Some(seen.clone()))?;
    if hooked.tokens != alone.tokens {
        return Err(differs("reading logits changes the tokens"));
    }
    let mut same = 0;
    for ((found, expected), (token, expected_token)) in
        seen.take().iter().zip(&expected_logits).zip(alone.tokens.iter().zip(&expected.tokens))
    {
        if !near(found, expected) {
            return Err(differs("logits are not the CPU's"));
        }
        if token != expected_token {
            let (range, margin) = spread(expected);
            if margin > 2.0 * ROUNDING * range {
                return Err(differs("tokens are not the CPU's"));
            }
            break;
        }
        same += 1;
    }
    if same < NEW_TOKENS / 2 {
        return Err(differs("tokens part from the CPU's too early"));
    }
    let expected = decode(&mut cpu, Mode::Parallel, None)?;
    let alike = |(found, expected): (&f32, &f32)| (found - expected).abs() < 0.1;
    let same_drafts = drafting.draft.iter().zip(&expected.draft).filter(|(a, b)| a == b).count();
    if 2 * same_drafts < expected.draft.len()
        || !drafting.confidence.iter().zip(&expected.confidence).all(alike)
    {
        return Err(differs("drafts are not the CPU's"));
    }
    Ok(device.into_model().into_device())
}

fn config(head_dim: usize) -> ModelConfig {
    let half = head_dim / 2;
    let inv_freq = (0..half).map(|i| 10_000f32.powf(-(i as f32) / half as f32)).collect();
    ModelConfig {
        architecture: Architecture::Qwen3,
        hidden_size: 64,
        intermediate_size: 128,
        layers: 2,
        attention: AttentionShape { q_heads: 4, kv_heads: 2, head_dim },
        vocab_size: 320,
        context_len: 256,
        rms_norm_eps: 1e-6,
        rope: Rope { inv_freq, scale: 1.0 },
        layers_without_rope: Vec::new(),
        attention_bias: false,
        mlp_bias: false,
        tied_embeddings: false,
        eos_ids: Vec::new(),
    }
}

fn engine<D: Device>(
    device: D,
    target: &TargetWeights,
    drafter: &DrafterWeights,
) -> Result<Engine<D>, SelfTestError> {
    let model = Model::new(device, target, Some(drafter))?;
    let options = EngineOptions { max_batch: 2, cache_tokens: 256, ..EngineOptions::default() };
    Ok(Engine::new(model, Mode::Autoregressive, options)?)
}

fn decode<D: Device>(
    engine: &mut Engine<D>,
    mode: Mode,
    seen: Option<Seen>,
) -> Result<Decoded, SelfTestError> {
    engine.set_policy(mode)?;
    engine.add(Request {
        record: true,
        confidence: Confidence { threshold: 0.0, ..Confidence::default() },
        logits_hook: seen.map(|seen| Box::new(seen) as Box<dyn LogitsHook>),
        // The prompt has more tokens than one tile of keys holds.
        ..Request::new((0..70).map(|i| i * 37 % 320).collect(), NEW_TOKENS)
    })?;
    let mut decoded = Decoded::default();
    while !engine.is_idle() {
        for committed in engine.step()? {
            decoded.tokens.extend(committed.tokens);
            if let Some(Finish::Failed(error)) = committed.finish {
                return Err(error.into());
            }
            if let Some(Record::Prefill(first)) = committed.record {
                (decoded.draft, decoded.confidence) = (first.draft, first.confidence);
            }
        }
    }
    Ok(decoded)
}

/// A hook that records the logits from which each token was chosen.
#[derive(Clone, Debug, Default)]
struct Seen(Arc<Mutex<Vec<Vec<f32>>>>);

impl LogitsHook for Seen {
    fn edit(&mut self, _position: usize, _prefix: &[u32], logits: &mut [f32]) -> Result<(), HookError> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(logits.to_vec());
        Ok(())
    }
}

impl Seen {
    fn take(&self) -> Vec<Vec<f32>> {
        std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Returns the largest logit minus the smallest, and the largest logit minus the second largest.
fn spread(logits: &[f32]) -> (f32, f32) {
    let (mut largest, mut second, mut least) = (f32::NEG_INFINITY, f32::NEG_INFINITY, f32::INFINITY);
    for &logit in logits {
        second = second.max(largest.min(logit));
        largest = largest.max(logit);
        least = least.min(logit);
    }
    (largest - least, largest - second)
}

/// Returns whether two rows of logits differ only by rounding. A NaN is not near any value.
fn near(found: &[f32], expected: &[f32]) -> bool {
    let (range, _) = spread(expected);
    let differences = found.iter().zip(expected).map(|(found, expected)| (found - expected).abs());
    found.len() == expected.len() && differences.map(|x| x / range).all(|x| x < ROUNDING)
}

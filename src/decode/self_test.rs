//! Whether a device computes what the CPU device does, found out before it is relied on.

use std::sync::{Arc, Mutex, PoisonError};

use super::{Confidence, DecodeError, Engine, EngineOptions, LogitsHook, Mode, Record, Request};
use crate::device::cpu::{Cpu, CpuOptions};
use crate::device::{AttentionShape, Device, DeviceError, Precision, Rope};
use crate::model::config::{Architecture, ModelConfig};
use crate::model::{DrafterWeights, LoadError, Model, TargetWeights};
use crate::tensor::DType;

/// Why a device is not to be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SelfTestError {
    /// A step failed.
    #[error("its self-test failed: {0}")]
    Decode(#[from] DecodeError),
    /// The model of the test could not be made.
    #[error("the model of its self-test could not be made: {0}")]
    Load(#[from] LoadError),
    /// It computes something else.
    #[error("its self-test failed with head_dim {head_dim}: {what}")]
    Differs {
        /// Dimensions of the model's heads.
        head_dim: usize,
        /// What differs from what.
        what: &'static str,
    },
}

impl From<DeviceError> for SelfTestError {
    fn from(error: DeviceError) -> Self {
        DecodeError::from(error).into()
    }
}

/// Tokens decoded, and slots of a block.
const NEW_TOKENS: usize = 16;
const BLOCK_SIZE: usize = 4;

/// What became of a device that may be there.
#[derive(Debug)]
pub enum Chosen<D> {
    /// It is there, and passed its [`self_test`].
    Device(D),
    /// There is none.
    Missing,
    /// There is one, but it is not to be used, for this reason.
    Refused(String),
}

/// Opens a device, if there is one, and tests it.
pub fn choose<D: Device>(open: impl FnOnce() -> Result<Option<D>, DeviceError>) -> Chosen<D> {
    match open() {
        Ok(None) => Chosen::Missing,
        Ok(Some(device)) => match self_test(device) {
            Ok(device) => Chosen::Device(device),
            Err(error) => Chosen::Refused(error.to_string()),
        },
        Err(DeviceError::Unavailable { reason, .. }) => Chosen::Refused(reason),
        Err(error) => Chosen::Refused(error.to_string()),
    }
}

/// How much rounding may change a logit, as a part of the range of all of them.
const ROUNDING: f32 = 0.02;

/// What a device did with the test's request.
#[derive(Debug, Default)]
struct Decoded {
    tokens: Vec<u32>,
    /// Of the first block, before which nothing can have differed but the prompt's pass.
    draft: Vec<u32>,
    confidence: Vec<f32>,
}

/// Decodes a few tokens with small random models of either head_dim that the kernels have, alone and drafting, and
/// compares tokens, logits and drafts with those of the CPU device in bf16. Gives the device back.
///
/// # Errors
///
/// [`SelfTestError`] if a step fails, drafting changes a token though the device says that it is
/// [row-invariant](Device::is_row_invariant), or its results differ from the CPU device's by more than rounding.
pub fn self_test<D: Device>(mut device: D) -> Result<D, SelfTestError> {
    for head_dim in [64, 128] {
        device = test_heads(device, head_dim)?;
    }
    Ok(device)
}

fn test_heads<D: Device>(device: D, head_dim: usize) -> Result<D, SelfTestError> {
    let differs = |what| SelfTestError::Differs { head_dim, what };
    // Without row-invariance, steps of other row counts may differ by rounding.
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
        // More than a tile of keys.
        ..Request::new((0..70).map(|i| i * 37 % 320).collect(), NEW_TOKENS)
    })?;
    let mut decoded = Decoded::default();
    while !engine.is_idle() {
        for committed in engine.step()? {
            decoded.tokens.extend(committed.tokens);
            if let Some(Record::Prefill(first)) = committed.record {
                (decoded.draft, decoded.confidence) = (first.draft, first.confidence);
            }
        }
    }
    Ok(decoded)
}

/// The logits that each token was chosen from.
#[derive(Clone, Debug, Default)]
struct Seen(Arc<Mutex<Vec<Vec<f32>>>>);

impl LogitsHook for Seen {
    fn edit(&mut self, _position: usize, _prefix: &[u32], logits: &mut [f32]) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(logits.to_vec());
    }
}

impl Seen {
    fn take(&self) -> Vec<Vec<f32>> {
        std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// The largest logit minus the smallest, and minus the second.
fn spread(logits: &[f32]) -> (f32, f32) {
    let (mut largest, mut second, mut least) = (f32::NEG_INFINITY, f32::NEG_INFINITY, f32::INFINITY);
    for &logit in logits {
        second = second.max(largest.min(logit));
        largest = largest.max(logit);
        least = least.min(logit);
    }
    (largest - least, largest - second)
}

/// Whether two rows of logits differ by rounding only. No NaN is near anything.
fn near(found: &[f32], expected: &[f32]) -> bool {
    let (range, _) = spread(expected);
    let differences = found.iter().zip(expected).map(|(found, expected)| (found - expected).abs());
    found.len() == expected.len() && differences.map(|x| x / range).all(|x| x < ROUNDING)
}

//! Tests of the decode loop on a GPU, with cuBLASLt for the matrix products: every mode commits the same tokens, also
//! with the heads and vocabularies of released models, and the logits are the CPU device's. Needs a GPU, except for the
//! last.

use std::io::Write;
use std::sync::{Arc, Mutex};

use flexdraft::acceptance::Rule;
use flexdraft::decode::{Engine, EngineOptions, LogitsHook, Mode, Request};
use flexdraft::device::cpu::{Cpu, CpuOptions};
use flexdraft::device::gpu::{CpuProducts, CublasLt, Gpu};
use flexdraft::device::{Device, DeviceError, Precision};
use flexdraft::kernels::attention::DEFAULT_SPLIT;
use flexdraft::model::Model;
use flexdraft::model::config::Architecture;
use flexdraft::runtime::SimtOptions;
use flexdraft::sampling::SamplingParams;
use flexdraft::tensor::DType;

use crate::support::bench::Bench;
use crate::support::close::close;
use crate::support::gpu::gpu;
use crate::support::models::Spec;
use crate::support::runs::run;

/// Returns the device or product library that was made, or `None` with a message if cuBLASLt is missing.
pub fn available<T>(made: Result<T, DeviceError>) -> Option<T> {
    match made {
        Err(error @ DeviceError::Unavailable { .. })
            if std::env::var_os("FLEXDRAFT_REQUIRE_GPU").is_none() =>
        {
            let _ = writeln!(std::io::stderr(), "\n*** SKIPPED on a GPU: {error} ***");
            None
        }
        made => Some(made.unwrap()),
    }
}

/// Returns the device of a GPU, if the machine has one.
fn device() -> Option<Gpu<CublasLt>> {
    gpu().and_then(|_| available(Gpu::cuda(0)))
}

fn spec(head_dim: usize, seed: u64) -> Spec {
    Spec {
        head_dim,
        hidden: 256,
        vocab: 1000,
        rank: Some(32),
        dtype: DType::Bf16,
        layers: 4,
        tail: 2,
        seed,
        ..Spec::default()
    }
}

/// Checks that parallel and sequential decoding commit the tokens of autoregressive decoding, alone and in a batch.
fn check_modes(device: impl Device, spec: &Spec) {
    let (target, drafter) = spec.weights();
    // All engines share one model, because the first products of a model measure which algorithms to use.
    let mut kept = Some(Model::new(device, &target, Some(&drafter)).unwrap());
    let vocab = spec.vocab as u32;
    let mut decode = |mode, batch: usize, rule, temperature| {
        let options = EngineOptions { cache_tokens: 8192, ..EngineOptions::default() };
        let mut engine = Engine::new(kept.take().unwrap(), mode, options).unwrap();
        let request = |i: usize| Request {
            sampling: SamplingParams { temperature, top_k: 0, top_p: 1.0, min_p: 0.0 },
            rule,
            seed: i as u64,
            ..Request::new((0..10 + 37 * i as u32).map(|id| id * 7 % vocab).collect(), 64)
        };
        let outputs = run(&mut engine, (0..batch).map(request).collect());
        kept = Some(engine.into_model());
        outputs.into_iter().map(|output| output.tokens).collect::<Vec<_>>()
    };
    for (rule, temperature) in [(Rule::Match, 0.0), (Rule::Match, 1.0)] {
        let ar = decode(Mode::Autoregressive, 1, rule, temperature);
        for batch in [1, 5] {
            for mode in [Mode::Parallel, Mode::Sequential, Mode::Autoregressive] {
                let found = decode(mode, batch, rule, temperature);
                assert_eq!(found[0], ar[0], "{mode:?} at batch {batch} and temperature {temperature}");
            }
        }
    }
    let parallel = decode(Mode::Parallel, 3, Rule::Rejection, 1.0);
    assert_eq!(parallel, decode(Mode::Sequential, 3, Rule::Rejection, 1.0));
}

#[test]
fn every_mode_gives_the_same_tokens() {
    // With splits of 64 keys, attention divides even these short contexts into several splits.
    for (head_dim, seed, split) in [(64, 1, DEFAULT_SPLIT), (128, 2, DEFAULT_SPLIT), (64, 3, 64)] {
        let Some(device) = device() else { return };
        check_modes(device.with_split(split), &spec(head_dim, seed));
    }
}

/// Returns a model with the heads and vocabulary of a released model, but fewer layers.
fn released(name: &str) -> Spec {
    let spec = Spec {
        rank: Some(512),
        block_size: 16,
        dtype: DType::Bf16,
        layers: 3,
        tail: 2,
        tied: true,
        context_len: 4096,
        ..Spec::default()
    };
    match name {
        "Qwen3-8B" => {
            Spec { head_dim: 128, kv_heads: 8, q_per_kv: 4, hidden: 1024, vocab: 151_936, seed: 4, ..spec }
        }
        _ => Spec {
            architecture: Architecture::Llama,
            head_dim: 64,
            kv_heads: 3,
            q_per_kv: 3,
            hidden: 576,
            vocab: 49_152,
            seed: 5,
            ..spec
        },
    }
}

#[test]
fn every_mode_gives_the_same_tokens_with_the_heads_of_qwen3_8b() {
    if let Some(device) = device() {
        check_modes(device, &released("Qwen3-8B"));
    }
}

#[test]
fn every_mode_gives_the_same_tokens_with_the_heads_of_smollm2() {
    if let Some(device) = device() {
        check_modes(device, &released("SmolLM2-135M"));
    }
}

/// Returns the target's logits after a prompt and along a continuation that does not depend on them.
fn logits(device: impl Device, spec: &Spec) -> Vec<Vec<f32>> {
    let (target, drafter) = spec.weights();
    let model = Model::new(device, &target, Some(&drafter)).unwrap();
    let mut engine = Engine::new(model, Mode::Autoregressive, EngineOptions::default()).unwrap();
    let seen = Arc::new(Mutex::new(Vec::new()));
    let rows = seen.clone();
    let hook = move |position: usize, _: &[u32], logits: &mut [f32]| {
        rows.lock().unwrap().push(logits.to_vec());
        let next = position * 31 % logits.len();
        logits[next] = 1e4;
        Ok(())
    };
    let hook: Box<dyn LogitsHook> = Box::new(hook);
    let prompt = (0..70).map(|id| id * 7 % spec.vocab as u32).collect();
    run(&mut engine, vec![Request { logits_hook: Some(hook), ..Request::new(prompt, 4) }]);
    let seen = seen.lock().unwrap();
    assert_eq!(seen.len(), 4);
    seen.clone()
}

/// The GPU's logits agree with the CPU device's logits with bf16 activations, which are rounded at the same places.
#[test]
fn logits_are_those_of_the_cpu_device() {
    for (head_dim, seed, bias) in [(64, 1, false), (128, 2, true)] {
        let spec = Spec { bias, ..spec(head_dim, seed) };
        let cpu = Cpu::new(CpuOptions { threads: 1, precision: Precision::Bf16 }).unwrap();
        let expected = logits(cpu, &spec).concat();
        let Bench { kernels, stream } = Bench::emulator(SimtOptions::default());
        let emulated = Gpu::new(kernels, stream, CpuProducts::new(1).unwrap()).with_split(64);
        close("the SIMT emulator's logits", &logits(emulated, &spec).concat(), &expected, LOGITS);
        if let Some(device) = device() {
            let found = logits(device.with_split(64), &spec).concat();
            close("a GPU's logits", &found, &expected, LOGITS);
        }
    }
}

/// Tolerance of logits in a model of a few layers, relative to the largest: some values are rounded to bf16 in the
/// other direction.
const LOGITS: f32 = 0.02;

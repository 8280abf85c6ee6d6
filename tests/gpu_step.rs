//! What a step on the GPU device asks of the driver (counted on the SIMT host, whose steps are the same
//! calls), and what becomes of what its kernels report.

#![cfg(all(feature = "runner", feature = "simt"))]
#![allow(clippy::unwrap_used, missing_docs)]

mod common;

use common::models::Spec;
use common::policies::RandomGroups;
use common::runs::run;
use flexdraft::acceptance::Rule;
use flexdraft::backend::simt::Calls;
use flexdraft::backend::{Simt, SimtOptions};
use flexdraft::decode::{
    Confidence, DecodeError, Engine, EngineOptions, Mode, Policy, Record, Request, StepMode,
};
use flexdraft::device::DeviceError;
use flexdraft::device::gpu::{CpuProducts, Gpu};
use flexdraft::kernels::{Fault, Kernels};
use flexdraft::model::Model;
use flexdraft::sampling::SamplingParams;
use flexdraft::tensor::{DType, Tensor};
use half::bf16;

fn spec() -> Spec {
    let (head_dim, hidden, block_size, rank, dtype) = (64, 32, 4, Some(8), DType::Bf16);
    Spec { layers: 2, tail: 1, head_dim, hidden, block_size, rank, dtype, ..Spec::default() }
}

fn gpu() -> Gpu<CpuProducts> {
    let kernels = Kernels::new(Simt::new(SimtOptions::default()));
    let stream = kernels.backend().stream();
    Gpu::new(kernels, stream, CpuProducts::new(1).unwrap())
}

fn engine(policy: impl Policy + 'static) -> Engine<Gpu<CpuProducts>> {
    let (target, drafter) = spec().weights();
    let model = Model::new(gpu(), &target, Some(&drafter)).unwrap();
    Engine::new(model, policy, EngineOptions { cache_tokens: 1024, ..EngineOptions::default() }).unwrap()
}

fn take_calls(engine: &Engine<Gpu<CpuProducts>>) -> Calls {
    engine.model().device().kernels().backend().take_calls()
}

/// One request of every rule.
fn requests() -> Vec<Request> {
    [(Rule::Match, 0.0), (Rule::Match, 1.0), (Rule::Rejection, 1.0), (Rule::Block, 0.8)]
        .into_iter()
        .map(|(rule, temperature)| Request {
            rule,
            sampling: SamplingParams::at_temperature(temperature),
            seed: 9,
            record: true,
            confidence: Confidence { threshold: 0.0, ..Confidence::default() },
            ..Request::new(vec![3, 1, 4, 1, 5], 60)
        })
        .collect()
}

/// Serves the requests, so that memory grows to what their steps need, then serves them again: the calls of ten
/// steps in which every sequence decodes, each with the modes of its records.
fn steady_steps(policy: impl Policy + 'static) -> Vec<(Calls, Vec<StepMode>)> {
    let mut engine = engine(policy);
    run(&mut engine, requests());
    for request in requests() {
        engine.add(request).unwrap();
    }
    for _ in 0..3 {
        engine.step().unwrap();
    }
    take_calls(&engine);
    (0..10)
        .map(|_| {
            let committed = engine.step().unwrap();
            assert_eq!(committed.len(), 4);
            assert!(committed.iter().all(|committed| committed.finish.is_none()));
            let mode = |record: Option<Record>| match record {
                Some(Record::Step(step)) => step.mode,
                other => panic!("{other:?}"),
            };
            (take_calls(&engine), committed.into_iter().map(|committed| mode(committed.record)).collect())
        })
        .collect()
}

#[test]
fn a_parallel_step_allocates_nothing_and_waits_once() {
    for (calls, modes) in steady_steps(Mode::Parallel) {
        assert!(modes.iter().all(|&mode| mode == StepMode::Parallel), "{modes:?}");
        assert_eq!((calls.allocations, calls.downloads), (0, 1), "{calls:?}");
        // The pass, its tokens, what is verified, what is drafted.
        assert!(calls.uploads <= 4 && calls.launches <= 30, "{calls:?}");
    }
}

#[test]
fn an_autoregressive_step_allocates_nothing_and_waits_once() {
    for (calls, _) in steady_steps(Mode::Autoregressive) {
        assert_eq!((calls.allocations, calls.downloads), (0, 1), "{calls:?}");
        assert!(calls.uploads <= 3 && calls.launches <= 17, "{calls:?}");
    }
}

#[test]
fn a_sequential_step_allocates_nothing_and_waits_once() {
    for (calls, modes) in steady_steps(Mode::Sequential) {
        assert!(modes.iter().all(|&mode| mode == StepMode::Sequential), "{modes:?}");
        assert_eq!((calls.allocations, calls.downloads), (0, 1), "{calls:?}");
        // That of the drafting pass as well.
        assert!(calls.uploads <= 5 && calls.launches <= 36, "{calls:?}");
    }
}

#[test]
fn an_accepted_length_without_a_group_waits_once_more() {
    for (calls, _) in steady_steps(RandomGroups(4)) {
        assert!(calls.downloads <= 2, "{calls:?}");
    }
}

#[test]
fn a_logits_hook_waits_for_its_own_rows() {
    let mut engine = engine(Mode::Parallel);
    let hook = |_: usize, _: &[u32], logits: &mut [f32]| logits[0] = f32::NEG_INFINITY;
    let [with, without] = [Some(Box::new(hook) as _), None];
    for logits_hook in [with, without] {
        engine.add(Request { logits_hook, ..requests().remove(0) }).unwrap();
    }
    for _ in 0..5 {
        engine.step().unwrap();
    }
    take_calls(&engine);
    let committed = engine.step().unwrap();
    let Some(Record::Step(step)) = &committed[0].record else { panic!("{committed:?}") };
    assert_eq!(take_calls(&engine).downloads, step.verify_len as u64 + 2);
}

#[test]
fn what_kernels_report_is_an_error_that_says_what() {
    let spec = Spec { tied: false, ..spec() };
    let (mut target, drafter) = spec.weights();
    // A token whose embedding is no number, so that nothing after it is.
    let bad = spec.vocab as u32 - 1;
    let mut embed = target.embed.to_f32();
    embed[bad as usize * spec.hidden] = f32::NAN;
    let embed = embed.into_iter().map(bf16::from_f32).collect();
    target.embed = Tensor::from_bf16(&[spec.vocab, spec.hidden], embed).unwrap();
    let engine = |mode| {
        let model = Model::new(gpu(), &target, Some(&drafter)).unwrap();
        Engine::new(model, mode, EngineOptions { cache_tokens: 1024, ..EngineOptions::default() }).unwrap()
    };
    let request = || Request::new(vec![3, 1, 4, 1, 5], 20);
    let expected = run(&mut engine(Mode::Autoregressive), vec![request()]).remove(0).tokens;
    assert!(!expected.contains(&bad));

    for mode in [Mode::Parallel, Mode::Sequential, Mode::Autoregressive] {
        let mut engine = engine(mode);
        let id = engine.add(request()).unwrap();
        let mut tokens = Vec::new();
        for _ in 0..3 {
            tokens.extend(engine.step().unwrap().into_iter().flat_map(|committed| committed.tokens));
        }
        let other = engine.add(Request::new(vec![3, bad], 20)).unwrap();
        for _ in 0..2 {
            let error = engine.step().unwrap_err();
            let DecodeError::Device(DeviceError::Faults(faults)) = &error else { panic!("{error:?}") };
            assert_eq!(faults.iter().collect::<Vec<_>>(), [Fault::Nan]);
            assert_eq!(error.to_string(), "the kernels of a step found a NaN among the logits");
        }
        // Without that request steps succeed again, and the other one has lost nothing.
        assert!(engine.cancel(other));
        while !engine.is_idle() {
            for committed in engine.step().unwrap() {
                assert_eq!(committed.id, id);
                tokens.extend(committed.tokens);
            }
        }
        assert_eq!(tokens, expected, "{mode:?}");
    }
}

#[test]
fn a_hook_s_nan_counts_as_minus_infinity() {
    let hooked = |value: f32| {
        let hook = move |_: usize, _: &[u32], logits: &mut [f32]| logits[1] = value;
        let request = Request { logits_hook: Some(Box::new(hook)), ..requests().remove(1) };
        run(&mut engine(Mode::Parallel), vec![request]).remove(0).tokens
    };
    assert_eq!(hooked(f32::NAN), hooked(f32::NEG_INFINITY));
}

//! Tests how many calls of the driver a step takes if the accepted length has no mask group, so that a pass of its own
//! makes the draft.

use std::fs;

use flexdraft::acceptance::Rule;
use flexdraft::decode::{BatchView, Choice, Confidence, Engine, EngineOptions, Policy, Request, StepView};
use flexdraft::device::gpu::{CudaOptions, Gpu, ProductAlgorithms};
use flexdraft::layout::GroupSet;
use flexdraft::model::{DrafterWeights, Model, TargetWeights};
use flexdraft::sampling::SamplingParams;
use flexdraft::tensor::DType;

use crate::engine::config;
use crate::process::{CASE, ended, this_test};

/// What a process prints for each step that drafted apart.
const MISSED: &str = "a step missed";

/// Drafts while it verifies, for the case that the target accepts the whole draft only.
struct WholeDraft;

impl Policy for WholeDraft {
    fn choose(&mut self, batch: &BatchView<'_>) -> Vec<Choice> {
        let groups = |verified: usize| GroupSet::from_bits(1 << verified);
        batch.sequences.iter().map(|view| Choice::drafting(view, groups(view.verify_len))).collect()
    }

    fn observe(&mut self, step: &StepView<'_>) {
        if step.sequences.iter().any(|sequence| sequence.drafted_apart) {
            eprintln!("{MISSED}");
        }
    }

    fn name(&self) -> &'static str {
        "whole draft"
    }
}

/// Decodes one greedy request. Its random drafter is seldom right, so nearly every step misses.
fn decode(tokens: usize) {
    let target = TargetWeights::random(&config(), DType::Bf16, 1).unwrap();
    let drafter = DrafterWeights::random(&config(), 1, 4, 16, DType::Bf16, 2).unwrap();
    // A trial of algorithms would make calls whose number depends on times.
    let options = CudaOptions { algorithms: ProductAlgorithms::Any, ..CudaOptions::default() };
    let device = Gpu::cuda_with(0, options).unwrap();
    let model = Model::new(device, &target, Some(&drafter)).unwrap();
    let mut engine = Engine::new(model, WholeDraft, EngineOptions::default()).unwrap();
    let request = Request {
        sampling: SamplingParams::GREEDY,
        rule: Rule::Match,
        confidence: Confidence { threshold: 0.0, strategy: Default::default() },
        ..Request::new((0..20).collect(), tokens)
    };
    engine.add(request).unwrap();
    while !engine.is_idle() {
        engine.step().unwrap();
    }
}

#[test]
fn a_step_with_a_missed_group_is_few_calls_of_the_driver() {
    let test = this_test!();
    let run = |tokens: usize| {
        let counted = tempfile::NamedTempFile::new().unwrap();
        let policies = [("CALLS", counted.path().to_str().unwrap())];
        let ended = ended(test, &tokens.to_string(), &policies, || decode(tokens));
        assert!(ended.status.success(), "{}", ended.stderr);
        let counts = fs::read_to_string(counted.path()).unwrap();
        let calls = counts
            .lines()
            .filter_map(|line| line.strip_prefix("cu")?.split_once(' ')?.1.parse::<usize>().ok())
            .sum::<usize>();
        (calls, ended.stderr.matches(MISSED).count(), counts)
    };
    let ((few, few_misses, before), (many, misses, after)) = (run(60), run(90));
    // A process that runs the second case goes on behind the first one without output.
    if std::env::var_os(CASE).is_some() {
        return;
    }
    let per_step = (many - few) as f64 / (misses - few_misses) as f64;
    println!("{per_step} calls per step, {} steps\n{before}\n{after}", misses - few_misses);
    assert!(misses - few_misses >= 25, "{misses} and {few_misses} misses");
    assert!(per_step <= 16.0, "{per_step} calls per step:\n{before}\n{after}");
}

//! Tests that the engine refuses each invalid request or option with a message that names the reason.

use flexdraft::decode::{
    BatchView, Choice, Confidence, DecodeError, Engine, EngineOptions, Finish, Flex, Mode, Policy, Request,
};
use flexdraft::device::cpu::Cpu;
use flexdraft::layout::GroupSet;
use flexdraft::model::Model;
use flexdraft::sampling::SamplingParams;

use crate::support::models::Spec;
use crate::support::runs::{cpu, engine, model, run};

fn refusal(request: Request) -> String {
    let spec = Spec { context_len: 32, ..Spec::default() };
    let mut engine = engine(&spec, Mode::Parallel);
    let message = engine.add(request).unwrap_err().to_string();
    assert!(engine.is_idle());
    // After a refused request, the engine still serves valid requests.
    assert_eq!(run(&mut engine, vec![Request::new(vec![1], 3)])[0].tokens.len(), 3);
    message
}

#[test]
fn refused_requests() {
    let ask = || Request::new(vec![1, 2], 4);
    let sampling = |sampling| refusal(Request { sampling, ..ask() });
    let base = SamplingParams::at_temperature(1.0);
    assert_eq!(refusal(Request::new(vec![], 4)), "the prompt is empty");
    assert_eq!(
        refusal(Request::new(vec![1, 29], 4)),
        "prompt token 29 at position 1 is out of vocabulary (29 ids)"
    );
    assert_eq!(refusal(Request::new(vec![1; 33], 4)), "the prompt has 33 tokens, the context is 32");
    for size in [0, 6] {
        assert_eq!(
            refusal(Request { block_size: Some(size), ..ask() }),
            format!("block size {size} is not in 1..=5, the drafter's own")
        );
    }
    assert_eq!(
        sampling(SamplingParams { temperature: -1.0, ..base }),
        "temperature must be finite and at least 0, found -1"
    );
    assert_eq!(
        sampling(SamplingParams { temperature: f32::NAN, ..base }),
        "temperature must be finite and at least 0, found NaN"
    );
    assert_eq!(
        sampling(SamplingParams { temperature: 1e-39, ..base }),
        "temperature must be 0, or at least 2.94e-39 for a finite reciprocal, found 1e-39"
    );
    for top_p in [0.0, 1.01] {
        assert_eq!(
            sampling(SamplingParams { top_p, ..base }),
            format!("top-p must be above 0 and at most 1, found {top_p}")
        );
    }
    for min_p in [-0.1, 1.0] {
        assert_eq!(
            sampling(SamplingParams { min_p, ..base }),
            format!("min-p must be at least 0 and below 1, found {min_p}")
        );
    }
    for threshold in [-0.1, 1.1, f32::NAN] {
        assert_eq!(
            refusal(Request { confidence: Confidence { threshold, ..Confidence::default() }, ..ask() }),
            format!("confidence threshold must be at least 0 and at most 1, found {threshold}")
        );
    }
}

#[test]
fn refused_engines() {
    let spec = Spec::default();
    for (option, options) in [
        ("max_batch", EngineOptions { max_batch: 0, ..EngineOptions::default() }),
        ("cache_tokens", EngineOptions { cache_tokens: 0, ..EngineOptions::default() }),
        ("page_size", EngineOptions { page_size: 0, ..EngineOptions::default() }),
        ("prefill_rows", EngineOptions { prefill_rows: 0, ..EngineOptions::default() }),
    ] {
        let error = Engine::new(model(&spec, cpu(1)), Mode::Parallel, options).err().unwrap();
        assert_eq!(error.to_string(), format!("{option} must be at least 1"));
    }
    let (target, _) = spec.weights();
    let without_drafter = || Model::new(cpu(1), &target, None).unwrap();
    let refused = |engine: Result<Engine<Cpu>, DecodeError>, name: &str| {
        let expected = format!("mode `{name}` needs a drafter; without a drafter, only `ar` runs");
        assert_eq!(engine.err().unwrap().to_string(), expected);
    };
    for mode in [Mode::Parallel, Mode::Sequential] {
        refused(Engine::new(without_drafter(), mode, EngineOptions::default()), mode.name());
    }
    refused(Engine::new(without_drafter(), Flex::default(), EngineOptions::default()), "auto");
    let mut ar = Engine::new(without_drafter(), Mode::Autoregressive, EngineOptions::default()).unwrap();
    assert!(ar.set_policy(Mode::Parallel).is_err());
    let expected = run(&mut engine(&spec, Mode::Parallel), vec![Request::new(vec![5], 9)]);
    assert_eq!(run(&mut ar, vec![Request::new(vec![5], 9)])[0].tokens, expected[0].tokens);
}

/// A policy that asks for mask groups although the drafter does not allow them.
struct Insisting;

impl Policy for Insisting {
    fn choose(&mut self, batch: &BatchView<'_>) -> Vec<Choice> {
        assert!(!batch.groups_allowed);
        batch.sequences.iter().map(|view| Choice::drafting(view, GroupSet::NONE.with(1))).collect()
    }

    fn name(&self) -> &'static str {
        "insisting"
    }
}

/// An engine refuses to draft with Orthrus in the verification pass: the mask groups of an Orthrus drafter begin with
/// the bonus token, which is known only after that pass.
#[test]
fn orthrus_does_not_draft_while_it_verifies() {
    let spec = Spec::default().with_orthrus();
    let refusal = |mode| {
        format!(
            "mode `{mode}` drafts in the verification pass; a mask group of Orthrus begins with the bonus token, \
             which is known only after that pass, so `sequential`, `auto` and `ar` run"
        )
    };
    let error = Engine::new(model(&spec, cpu(1)), Mode::Parallel, EngineOptions::default()).err().unwrap();
    assert_eq!(error.to_string(), refusal("parallel"));

    let mut engine = engine(&spec, Mode::Sequential);
    assert_eq!(engine.set_policy(Mode::Parallel), Err(error));
    let request = || Request { record: true, ..Request::new(vec![5, 6], 9) };
    let expected = run(&mut engine, vec![request()]);
    engine.set_policy(Insisting).unwrap();
    engine.add(request()).unwrap();
    // The step that reads the prompt succeeds, because it verifies no draft and so has no group for accepted length 1.
    assert_eq!(engine.step().unwrap().len(), 1);
    assert_eq!(engine.step().unwrap_err().to_string(), refusal("insisting"));
    // The request keeps its state after the failed step, and goes on under another policy.
    engine.set_policy(Flex::default()).unwrap();
    let mut tokens = expected[0].tokens[..1].to_vec();
    while !engine.is_idle() {
        tokens.extend(engine.step().unwrap().into_iter().flat_map(|committed| committed.tokens));
    }
    assert_eq!(tokens, expected[0].tokens);
}

#[test]
fn no_new_tokens_is_legal() {
    let output = &run(&mut engine(&Spec::default(), Mode::Parallel), vec![Request::new(vec![1], 0)])[0];
    assert_eq!((output.tokens.len(), &output.finish), (0, &Some(Finish::Length)));
}

#[test]
fn an_exhausted_context_finishes_with_length() {
    for mode in [Mode::Autoregressive, Mode::Parallel, Mode::Sequential] {
        for prompt in [1, 20, 31, 32] {
            let spec = Spec { context_len: 32, ..Spec::default() };
            let request = Request { record: true, ..Request::new(vec![7; prompt], usize::MAX) };
            let output = &run(&mut engine(&spec, mode), vec![request])[0];
            assert_eq!((output.tokens.len(), &output.finish), (32 - prompt, &Some(Finish::Length)));
        }
    }
}

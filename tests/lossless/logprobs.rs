//! Tests that reported log-probabilities belong to the target's raw logits, in every mode, whatever hooks, logit
//! processors and warping do to the logits.

use flexdraft::acceptance::Rule;
use flexdraft::decode::{Mode, Request, TokenLogprobs};
use flexdraft::sampling::SamplingParams;
use flexdraft_reference as plain;

use crate::support::models::Spec;
use crate::support::policies::RandomGroups;
use crate::support::processors::all_but;
use crate::support::reference;
use crate::support::runs::engine;

/// Runs one request to its end, and returns its tokens with their log-probabilities.
fn run(
    spec: &Spec,
    policy: impl flexdraft::decode::Policy + 'static,
    request: Request,
) -> Vec<(u32, TokenLogprobs)> {
    let mut engine = engine(spec, policy);
    engine.add(request).unwrap();
    let mut found = Vec::new();
    while !engine.is_idle() {
        for committed in engine.step().unwrap() {
            assert_eq!(committed.tokens.len(), committed.logprobs.len());
            found.extend(committed.tokens.into_iter().zip(committed.logprobs));
        }
    }
    found
}

fn request(temperature: f32, rule: Rule, vocab: usize) -> Request {
    let mut request = Request {
        logprobs: Some(3),
        rule,
        seed: 11,
        sampling: SamplingParams { top_k: 6, ..SamplingParams::at_temperature(temperature) },
        ..Request::new(vec![4, 8, 1], 20)
    };
    request.processors.repetition_penalty = 1.4;
    request.processors.allowed = Some(all_but(5, vocab));
    request
}

#[test]
fn log_probabilities_are_those_of_the_raw_logits() {
    let spec = Spec { gain: 1.5, ..Spec::default() };
    let target = reference::target(&spec.weights().0);
    for (temperature, rule) in [(0.0, Rule::Match), (0.8, Rule::Rejection), (0.8, Rule::Block)] {
        let found = run(&spec, RandomGroups(4), request(temperature, rule, spec.vocab));
        assert_eq!(found.len(), 20);
        let tokens: Vec<u32> = [4, 8, 1].into_iter().chain(found.iter().map(|(token, _)| *token)).collect();
        let logits = plain::model::target_logits(&target, &tokens);
        for (i, (token, logprobs)) in found.iter().enumerate() {
            let row = &logits[2 + i];
            let largest = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let sum: f64 = row.iter().map(|logit| (logit - largest).exp()).sum();
            let expected = |id: u32| row[id as usize] - largest - sum.ln();
            let close = |found: f32, id: u32| (f64::from(found) - expected(id)).abs() < 5e-3;
            assert!(close(logprobs.logprob, *token), "{logprobs:?}");
            assert_eq!(logprobs.top.len(), 3);
            assert!(logprobs.top.iter().all(|&(id, found)| close(found, id)));
            assert!(logprobs.top.is_sorted_by(|a, b| a.1 >= b.1));
            let least = logprobs.top[2].1;
            assert!((0..spec.vocab as u32).filter(|&id| expected(id) > f64::from(least) + 1e-2).count() <= 3);
        }
    }
}

#[test]
fn log_probabilities_have_the_same_bits_in_every_mode_and_change_no_token() {
    let spec = Spec::default();
    for (temperature, rule) in [(0.0, Rule::Match), (1.0, Rule::Match)] {
        let ar = run(&spec, Mode::Autoregressive, request(temperature, rule, spec.vocab));
        for mode in [Mode::Parallel, Mode::Sequential] {
            assert_eq!(run(&spec, mode, request(temperature, rule, spec.vocab)), ar);
        }
        let mut engine = engine(&spec, Mode::Parallel);
        engine.add(Request { logprobs: None, ..request(temperature, rule, spec.vocab) }).unwrap();
        let mut tokens = Vec::new();
        while !engine.is_idle() {
            for committed in engine.step().unwrap() {
                assert!(committed.logprobs.is_empty());
                tokens.extend(committed.tokens);
            }
        }
        assert_eq!(tokens, ar.iter().map(|(token, _)| *token).collect::<Vec<_>>());
    }
}

//! Tests that a logits hook changes the target's distribution and nothing else: with a hook, every mode still gives the
//! tokens of autoregressive decoding with the same hook.

use flexdraft::acceptance::Rule;
use flexdraft::decode::{HookError, Mode, Request};
use flexdraft::sampling::SamplingParams;

use crate::support::models::Spec;
use crate::support::policies::RandomGroups;
use crate::support::runs::{Output, corrupted_continuation, engine, run, run_alone};

/// A logits hook that forbids repeating the last token, and odd ids at every third position.
fn forbid(position: usize, prefix: &[u32], logits: &mut [f32]) -> Result<(), HookError> {
    assert_eq!(position, prefix.len());
    for (id, logit) in logits.iter_mut().enumerate() {
        if prefix.last() == Some(&(id as u32)) || (position.is_multiple_of(3) && id % 2 == 1) {
            *logit = f32::NEG_INFINITY;
        }
    }
    Ok(())
}

fn request(rule: Rule, temperature: f32) -> Request {
    Request {
        rule,
        sampling: SamplingParams::at_temperature(temperature),
        seed: 5,
        logits_hook: Some(Box::new(forbid)),
        ..Request::new(vec![4, 8, 1], 60)
    }
}

fn obeys(output: &Output) -> bool {
    let all = [&[4, 8, 1], &output.tokens[..]].concat();
    (3..all.len()).all(|i| all[i] != all[i - 1] && (!i.is_multiple_of(3) || all[i] % 2 == 0))
}

#[test]
fn greedy_and_match_equal_autoregressive_decoding_with_the_hook() {
    let spec = Spec::default();
    for (rule, temperature) in [(Rule::Rejection, 0.0), (Rule::Match, 1.0)] {
        let ar = run_alone(&spec, Mode::Autoregressive, request(rule, temperature));
        assert!(ar.tokens.len() == 60 && obeys(&ar));
        let free = Request { logits_hook: None, ..request(rule, temperature) };
        assert_ne!(run_alone(&spec, Mode::Autoregressive, free).tokens, ar.tokens);
        let proposing = || Request {
            proposer: Some(corrupted_continuation(3, ar.tokens.clone(), spec.vocab, 4)),
            ..request(rule, temperature)
        };
        let plain = || request(rule, temperature);
        for mode in [Mode::Parallel, Mode::Sequential] {
            for output in run(&mut engine(&spec, mode), vec![plain(), proposing()]) {
                assert_eq!(output.tokens, ar.tokens, "{mode:?}");
            }
        }
        for output in run(&mut engine(&spec, RandomGroups(3)), vec![plain(), proposing()]) {
            assert_eq!(output.tokens, ar.tokens);
        }
    }
}

#[test]
fn rejection_and_block_never_emit_what_the_hook_forbids() {
    let spec = Spec { gain: 0.7, ..Spec::default() };
    for rule in [Rule::Rejection, Rule::Block] {
        let requests = (0..20).map(|seed| Request { seed, ..request(rule, 1.0) }).collect();
        for output in run(&mut engine(&spec, RandomGroups(8)), requests) {
            assert!(output.tokens.len() == 60 && obeys(&output));
        }
    }
}

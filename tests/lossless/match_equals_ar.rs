//! Tests that the rule `match` gives the same tokens as autoregressive sampling with the same seed: at any temperature,
//! with and without truncation, in every mode, with any group sets, alone and in batches.

use flexdraft::acceptance::Rule;
use flexdraft::decode::{Confidence, Mode, Request};
use flexdraft::sampling::SamplingParams;
use proptest::prelude::*;

use crate::every_mode::{Ask, Case, accepted_lengths, ask};
use crate::support::models::{Shapes, Spec, either_drafter, spec};
use crate::support::properties::properties;
use crate::support::runs::{Output, engine, run, run_alone};

/// The sampling parameters and the seed of a request.
type Sampled = (SamplingParams, u64);

prop_compose! {
    fn sampled()(
        temperature in prop_oneof![Just(1.0f32), 0.3f32..2.0],
        top_k in prop_oneof![Just(0usize), 1usize..8],
        top_p in prop_oneof![Just(1.0f32), 0.3f32..1.0],
        min_p in prop_oneof![Just(0.0f32), 0.0f32..0.3],
        seed in any::<u64>(),
    ) -> Sampled {
        (SamplingParams { temperature, top_k, top_p, min_p }, seed)
    }
}

fn request(spec: &Spec, (ask, (sampling, seed)): &(Ask, Sampled)) -> Request {
    Request { rule: Rule::Match, sampling: *sampling, seed: *seed, ..ask.request(spec) }
}

proptest! {
    #![proptest_config(properties(64))]

    #[test]
    fn every_mode_gives_the_tokens_of_autoregressive_sampling(
        spec in either_drafter(spec(Shapes::SMALL)),
        asks in prop::collection::vec((ask(), sampled()), 1..6),
        seed in any::<u64>(),
    ) {
        let request = |ask: &(Ask, Sampled)| request(&spec, ask);
        // The comparison uses `rejection` without drafts as plain sampling: without drafts every rule draws the same
        // tokens.
        let plain = |ask: &(Ask, Sampled)| Request { rule: Rule::Rejection, ..request(ask) };
        let ar: Vec<Output> =
            asks.iter().map(|ask| run_alone(&spec, Mode::Autoregressive, plain(ask))).collect();
        Case { spec: &spec, asks: &asks, ar: &ar, request }.check_every_mode(seed)?;
    }
}

/// If drafts are right up to some place, `match` accepts them up to that place, in every mode, in a batch whose
/// contexts span several pages.
#[test]
fn every_accepted_length_occurs_in_every_mode() {
    let spec = Spec { block_size: 6, ..Spec::default() };
    let base = SamplingParams::at_temperature(1.0);
    let samplings = [
        base,
        SamplingParams { top_k: 5, ..base },
        SamplingParams { top_p: 0.8, ..base },
        SamplingParams { min_p: 0.1, temperature: 1.5, ..base },
    ];
    let ask = |i: u32| Ask {
        prompt: (0..10 + 17 * i).map(|p| p * p + i).collect(),
        max_new_tokens: 80,
        threshold: 0.0,
        stop_id: None,
        proposes: true,
    };
    let asks: Vec<(Ask, Sampled)> =
        (0..8).map(|i| (ask(i), (samplings[i as usize % 4], u64::from(i) << 33))).collect();
    for spec in [spec.clone(), spec.with_orthrus()] {
        let request = |ask: &(Ask, Sampled)| request(&spec, ask);
        let ar: Vec<Output> =
            asks.iter().map(|ask| run_alone(&spec, Mode::Autoregressive, request(ask))).collect();
        for (i, output) in ar.iter().enumerate() {
            assert!(
                ar[..i].iter().all(|other| other.tokens != output.tokens),
                "sampling shows no randomness"
            );
        }
        Case { spec: &spec, asks: &asks, ar: &ar, request }.check_every_accepted_length();
    }
}

/// The drafter draws with the target's random numbers, so its drafts match more often than independent draws: with
/// separate random numbers, `match` would accept a draft only with probability Σ p·q.
#[test]
fn drafts_are_coupled_with_the_target() {
    let spec = Spec { vocab: 6, gain: 0.5, ..Spec::default() };
    let requests = (0..64).map(|seed| Request {
        rule: Rule::Match,
        sampling: SamplingParams::at_temperature(1.0),
        seed,
        confidence: Confidence { threshold: 0.0, ..Confidence::default() },
        record: true,
        ..Request::new(vec![seed as u32 % 6], 60)
    });
    let outputs = run(&mut engine(&spec, Mode::Sequential), requests.collect());
    let seen = accepted_lengths(&outputs, spec.block_size - 1);
    let tested: usize = seen.iter().sum();
    // The distributions over six tokens are nearly uniform, so an independent draft would be right one time in six.
    assert!(seen[0] < tested / 2, "first drafts rejected: {} of {tested}", seen[0]);
}

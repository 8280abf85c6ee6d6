//! Rule `match` gives the same tokens as autoregressive sampling with the same seed: at any temperature, with and
//! without truncation, in every mode, with any group sets, alone and in batches.

use flexdraft::acceptance::Rule;
use flexdraft::decode::{Auto, Confidence, Mode, Policy, Record, Request};
use flexdraft::sampling::SamplingParams;
use proptest::prelude::*;

use crate::support::models::{Spec, spec};
use crate::support::policies::{RandomEverything, RandomGroups};
use crate::support::properties::properties;
use crate::support::runs::{Output, engine, proposing, run, run_alone};

/// The parameters of a random request; tokens are taken modulo the vocabulary.
#[derive(Clone, Debug)]
struct Ask {
    prompt: Vec<u32>,
    max_new_tokens: usize,
    sampling: SamplingParams,
    seed: u64,
    threshold: f32,
    stop_id: Option<u32>,
    proposes: bool,
}

prop_compose! {
    fn ask()(
        prompt in prop::collection::vec(any::<u32>(), 1..40),
        max_new_tokens in 1usize..30,
        temperature in prop_oneof![Just(1.0f32), 0.3f32..2.0],
        top_k in prop_oneof![Just(0usize), 1usize..8],
        top_p in prop_oneof![Just(1.0f32), 0.3f32..1.0],
        min_p in prop_oneof![Just(0.0f32), 0.0f32..0.3],
        seed in any::<u64>(),
        threshold in prop::sample::select(vec![0.0f32, 0.01, 0.1, 0.5]),
        stop_id in prop::option::of(any::<u32>()),
        proposes in any::<bool>(),
    ) -> Ask {
        let sampling = SamplingParams { temperature, top_k, top_p, min_p };
        Ask { prompt, max_new_tokens, sampling, seed, threshold, stop_id, proposes }
    }
}

impl Ask {
    fn request(&self, spec: &Spec) -> Request {
        let vocab = spec.vocab as u32;
        Request {
            rule: Rule::Match,
            sampling: self.sampling,
            seed: self.seed,
            confidence: Confidence { threshold: self.threshold, ..Confidence::default() },
            stop_ids: self.stop_id.map(|id| id % vocab).into_iter().collect(),
            record: true,
            ..Request::new(self.prompt.iter().map(|id| id % vocab).collect(), self.max_new_tokens)
        }
    }

    /// Returns the request, in some cases with a proposer whose drafts are right up to some place.
    fn proposing(&self, spec: &Spec, expected: &Output) -> Request {
        let request = self.request(spec);
        if self.proposes { proposing(request, expected, spec.vocab) } else { request }
    }
}

proptest! {
    #![proptest_config(properties(64))]

    #[test]
    fn every_mode_gives_the_tokens_of_autoregressive_sampling(
        spec in spec(),
        asks in prop::collection::vec(ask(), 1..6),
        seed in any::<u64>(),
    ) {
        // Without drafts every rule draws the same tokens; `rejection` serves as plain sampling here.
        let plain = |ask: &Ask| Request { rule: Rule::Rejection, ..ask.request(&spec) };
        let ar: Vec<Output> =
            asks.iter().map(|ask| run_alone(&spec, Mode::Autoregressive, plain(ask))).collect();
        let check = |name: &str, outputs: Vec<Output>| {
            for (output, expected) in outputs.iter().zip(&ar) {
                prop_assert_eq!(&output.tokens, &expected.tokens, "{}", name);
                prop_assert_eq!(&output.finish, &expected.finish, "{}", name);
            }
            Ok(())
        };
        let requests = || asks.iter().zip(&ar).map(|(ask, ar)| ask.proposing(&spec, ar)).collect();
        for mode in [Mode::Parallel, Mode::Sequential, Mode::Autoregressive] {
            check(mode.name(), run(&mut engine(&spec, mode), requests()))?;
        }
        check("auto", run(&mut engine(&spec, Auto::default()), requests()))?;
        check("random groups", run(&mut engine(&spec, RandomGroups(seed)), requests()))?;
        check("random", run(&mut engine(&spec, RandomEverything(RandomGroups(seed))), requests()))?;
    }
}

/// Counts each accepted length among the steps, which must all verify `verify_len` tokens.
fn accepted_lengths(outputs: &[Output], verify_len: usize) -> Vec<usize> {
    let mut seen = vec![0; verify_len + 1];
    for record in outputs.iter().flat_map(|output| &output.records) {
        if let Record::Step(step) = record {
            assert_eq!(step.verify_len, verify_len);
            seen[step.accepted] += 1;
        }
    }
    seen
}

/// Drafts that are right up to some place are accepted up to that place, in every mode, in a batch whose contexts span
/// several pages.
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
    let asks: Vec<Ask> = (0..8u32)
        .map(|i| Ask {
            prompt: (0..10 + 17 * i).map(|p| p * p + i).collect(),
            max_new_tokens: 80,
            sampling: samplings[i as usize % 4],
            seed: u64::from(i) << 33,
            threshold: 0.0,
            stop_id: None,
            proposes: true,
        })
        .collect();
    let ar: Vec<Output> =
        asks.iter().map(|ask| run_alone(&spec, Mode::Autoregressive, ask.request(&spec))).collect();
    for (i, output) in ar.iter().enumerate() {
        assert!(ar[..i].iter().all(|other| other.tokens != output.tokens), "sampling shows no randomness");
    }
    fn check(spec: &Spec, asks: &[Ask], ar: &[Output], policy: impl Policy + 'static) {
        let name = policy.name();
        let requests = asks.iter().zip(ar).map(|(ask, ar)| ask.proposing(spec, ar)).collect();
        let outputs = run(&mut engine(spec, policy), requests);
        for (output, expected) in outputs.iter().zip(ar) {
            assert_eq!(output.tokens, expected.tokens, "{name}");
        }
        let seen = accepted_lengths(&outputs, spec.block_size - 1);
        assert!(seen.iter().all(|&count| count > 0), "{name}: accepted lengths {seen:?}");
    }
    check(&spec, &asks, &ar, Mode::Parallel);
    check(&spec, &asks, &ar, Mode::Sequential);
    check(&spec, &asks, &ar, RandomGroups(7));
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

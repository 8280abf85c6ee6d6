//! Greedy decoding is lossless: every mode, group set and batch gives the tokens of plain autoregressive decoding,
//! which agree with a forward pass without any cache.

use flexdraft::decode::{Auto, Confidence, ConfidenceStrategy, Finish, Mode, Record, Request};
use proptest::prelude::*;

use crate::support::models::{Spec, spec};
use crate::support::policies::{RandomEverything, RandomGroups};
use crate::support::properties::properties;
use crate::support::runs::{Output, corrupted_continuation, engine, proposing, run, run_alone};

/// The parameters of a random request; tokens are taken modulo the vocabulary.
#[derive(Clone, Debug)]
struct Ask {
    prompt: Vec<u32>,
    max_new_tokens: usize,
    threshold: f32,
    min_confidence: bool,
    block_size: Option<usize>,
    stop_id: Option<u32>,
    proposes: bool,
}

prop_compose! {
    fn ask()(
        prompt in prop::collection::vec(any::<u32>(), 1..40),
        max_new_tokens in 0usize..30,
        threshold in prop::sample::select(vec![0.0f32, 0.01, 0.1, 0.5, 1.0]),
        min_confidence in any::<bool>(),
        block_size in prop::option::of(1usize..8),
        stop_id in prop::option::of(any::<u32>()),
        proposes in any::<bool>(),
    ) -> Ask {
        Ask { prompt, max_new_tokens, threshold, min_confidence, block_size, stop_id, proposes }
    }
}

impl Ask {
    fn request(&self, spec: &Spec) -> Request {
        let vocab = spec.vocab as u32;
        let strategy = if self.min_confidence {
            ConfidenceStrategy::MinConfidence
        } else {
            ConfidenceStrategy::CumulativeProduct
        };
        Request {
            stop_ids: self.stop_id.map(|id| id % vocab).into_iter().collect(),
            block_size: self.block_size.map(|size| size.min(spec.block_size)),
            confidence: Confidence { threshold: self.threshold, strategy },
            record: true,
            ..Request::new(self.prompt.iter().map(|id| id % vocab).collect(), self.max_new_tokens)
        }
    }

    fn proposing(&self, spec: &Spec, expected: &Output) -> Request {
        let request = self.request(spec);
        if self.proposes { proposing(request, expected, spec.vocab) } else { request }
    }
}

proptest! {
    #![proptest_config(properties(64))]

    #[test]
    fn every_mode_gives_the_tokens_of_autoregressive_decoding(
        spec in spec(),
        asks in prop::collection::vec(ask(), 1..6),
        seed in any::<u64>(),
    ) {
        let ar: Vec<Output> =
            asks.iter().map(|ask| run_alone(&spec, Mode::Autoregressive, ask.request(&spec))).collect();
        for (ask, output) in asks.iter().zip(&ar) {
            let stopped = output.finish == Some(Finish::Stop);
            prop_assert!(stopped || output.tokens.len() == ask.max_new_tokens);
            let stops = &ask.request(&spec).stop_ids;
            let stop_at = output.tokens.iter().position(|token| stops.contains(token));
            prop_assert_eq!(stopped, stop_at.is_some());
            prop_assert!(stop_at.is_none_or(|last| last + 1 == output.tokens.len()));
        }
        let check = |name: &str, outputs: Vec<Output>| {
            for (output, expected) in outputs.iter().zip(&ar) {
                prop_assert_eq!(&output.tokens, &expected.tokens, "{}", name);
                prop_assert_eq!(&output.finish, &expected.finish, "{}", name);
            }
            Ok(())
        };
        let requests = || asks.iter().zip(&ar).map(|(ask, ar)| ask.proposing(&spec, ar)).collect();
        for mode in [Mode::Parallel, Mode::Sequential, Mode::Autoregressive] {
            check(&format!("{mode:?}"), run(&mut engine(&spec, mode), requests()))?;
        }
        check("auto", run(&mut engine(&spec, Auto::default()), requests()))?;
        check("random groups", run(&mut engine(&spec, RandomGroups(seed)), requests()))?;
        check("random", run(&mut engine(&spec, RandomEverything(RandomGroups(seed))), requests()))?;
    }
}

/// Every accepted length occurs in every mode, in a batch whose contexts span several pages: the proposer gives the
/// true continuation with one wrong token.
#[test]
fn every_accepted_length_occurs_in_every_mode() {
    let spec = Spec { block_size: 6, ..Spec::default() };
    let prompts: Vec<Vec<u32>> =
        (0..5u32).map(|i| (0..10 + 17 * i).map(|p| (p * p + i) % spec.vocab as u32).collect()).collect();
    let request = |prompt: &Vec<u32>| Request {
        record: true,
        confidence: Confidence { threshold: 0.0, ..Confidence::default() },
        ..Request::new(prompt.clone(), 120)
    };
    let ar: Vec<Output> =
        prompts.iter().map(|p| run_alone(&spec, Mode::Autoregressive, request(p))).collect();
    let check = |name: &str, outputs: Vec<Output>| {
        let v = spec.block_size - 1;
        let mut seen = vec![0; v + 1];
        for (output, expected) in outputs.iter().zip(&ar) {
            assert_eq!(output.tokens, expected.tokens, "{name}");
            for record in &output.records {
                if let Record::Step(step) = record {
                    assert_eq!(step.verify_len, v);
                    seen[step.accepted] += 1;
                }
            }
        }
        assert!(seen.iter().all(|&count| count > 0), "{name}: accepted lengths {seen:?}");
    };
    let requests = || -> Vec<Request> {
        let with = |(prompt, ar): (&Vec<u32>, &Output)| Request {
            proposer: Some(corrupted_continuation(prompt.len(), ar.tokens.clone(), spec.vocab)),
            ..request(prompt)
        };
        prompts.iter().zip(&ar).map(with).collect()
    };
    check("parallel", run(&mut engine(&spec, Mode::Parallel), requests()));
    check("sequential", run(&mut engine(&spec, Mode::Sequential), requests()));
    check("groups", run(&mut engine(&spec, RandomGroups(7)), requests()));
}

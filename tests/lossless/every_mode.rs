//! Random requests, and checks that every mode gives them the tokens of autoregressive decoding: for greedy decoding
//! and rule `match`.

use flexdraft::decode::{Confidence, Flex, Mode, Policy, Record, Request};
use proptest::prelude::*;

use crate::support::models::Spec;
use crate::support::policies::{RandomEverything, RandomGroups};
use crate::support::runs::{Output, engine, proposing, run};

/// The parameters of a random request that several tests share; a test adds parameters of its own. Tokens are taken modulo the vocabulary.
#[derive(Clone, Debug)]
pub struct Ask {
    pub prompt: Vec<u32>,
    pub max_new_tokens: usize,
    pub threshold: f32,
    pub stop_id: Option<u32>,
    /// True if a proposer drafts for the request; its drafts are right up to some place.
    pub proposes: bool,
}

prop_compose! {
    pub fn ask()(
        prompt in prop::collection::vec(any::<u32>(), 1..40),
        max_new_tokens in 0usize..30,
        threshold in prop::sample::select(vec![0.0f32, 0.01, 0.1, 0.5, 1.0]),
        stop_id in prop::option::of(any::<u32>()),
        proposes in any::<bool>(),
    ) -> Ask {
        Ask { prompt, max_new_tokens, threshold, stop_id, proposes }
    }
}

impl Ask {
    pub fn request(&self, spec: &Spec) -> Request {
        let vocab = spec.vocab as u32;
        Request {
            stop_ids: self.stop_id.map(|id| id % vocab).into_iter().collect(),
            confidence: Confidence { threshold: self.threshold, ..Confidence::default() },
            record: true,
            ..Request::new(self.prompt.iter().map(|id| id % vocab).collect(), self.max_new_tokens)
        }
    }
}

/// Requests, with their outputs in autoregressive decoding. `request` makes a request of an `Ask` and the parameters of
/// the test.
pub struct Case<'a, T, F> {
    pub spec: &'a Spec,
    pub asks: &'a [(Ask, T)],
    pub ar: &'a [Output],
    pub request: F,
}

impl<T, F: Fn(&(Ask, T)) -> Request> Case<'_, T, F> {
    fn requests(&self) -> Vec<Request> {
        let request = |(ask, ar): (&(Ask, T), &Output)| match ask.0.proposes {
            true => proposing((self.request)(ask), ar, self.spec.vocab),
            false => (self.request)(ask),
        };
        self.asks.iter().zip(self.ar).map(request).collect()
    }

    /// Checks that the requests give the tokens of autoregressive decoding in a batch, in every mode and with random
    /// group sets.
    pub fn check_every_mode(&self, seed: u64) -> Result<(), TestCaseError> {
        let check = |name: &str, outputs: Vec<Output>| {
            for (output, expected) in outputs.iter().zip(self.ar) {
                prop_assert_eq!(&output.tokens, &expected.tokens, "{}", name);
                prop_assert_eq!(&output.finish, &expected.finish, "{}", name);
            }
            Ok(())
        };
        let spec = self.spec;
        for mode in [spec.drafting_modes(), vec![Mode::Autoregressive]].concat() {
            check(mode.name(), run(&mut engine(spec, mode), self.requests()))?;
        }
        check("auto", run(&mut engine(spec, Flex::default()), self.requests()))?;
        check("random groups", run(&mut engine(spec, RandomGroups(seed)), self.requests()))?;
        check("random", run(&mut engine(spec, RandomEverything(RandomGroups(seed))), self.requests()))
    }

    /// Checks that the requests give the tokens of autoregressive decoding in every mode, and that every accepted
    /// length occurs in each mode.
    pub fn check_every_accepted_length(&self) {
        self.spec.drafting_modes().into_iter().for_each(|mode| self.check_accepted_lengths(mode));
        self.check_accepted_lengths(RandomGroups(7));
    }

    fn check_accepted_lengths(&self, policy: impl Policy + 'static) {
        let name = policy.name();
        let outputs = run(&mut engine(self.spec, policy), self.requests());
        for (output, expected) in outputs.iter().zip(self.ar) {
            assert_eq!(output.tokens, expected.tokens, "{name}");
        }
        let seen = accepted_lengths(&outputs, self.spec.block_size - 1);
        assert!(seen.iter().all(|&count| count > 0), "{name}: accepted lengths {seen:?}");
    }
}

/// Counts how often each accepted length occurs among the steps, which must all verify `verify_len` tokens.
pub fn accepted_lengths(outputs: &[Output], verify_len: usize) -> Vec<usize> {
    let mut seen = vec![0; verify_len + 1];
    for record in outputs.iter().flat_map(|output| &output.records) {
        if let Record::Step(step) = record {
            assert_eq!(step.verify_len, verify_len);
            seen[step.accepted] += 1;
        }
    }
    seen
}

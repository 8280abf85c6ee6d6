//! Tests that sampling with parameters at their limits equals greedy decoding, and that otherwise the seed decides the
//! tokens.

use flexdraft::acceptance::Rule;
use flexdraft::decode::{Mode, Request};
use flexdraft::processors::LogitProcessors;
use flexdraft::sampling::SamplingParams;
use proptest::prelude::*;

use crate::support::models::{Shapes, Spec, spec};
use crate::support::policies::RandomGroups;
use crate::support::processors::processors;
use crate::support::properties::properties;
use crate::support::runs::{engine, run, run_alone};

const RULES: [Rule; 3] = [Rule::Rejection, Rule::Block, Rule::Match];

prop_compose! {
    fn spec_and_processors()(spec in spec(Shapes::SMALL))(
        processors in processors(spec.vocab),
        spec in Just(spec),
    ) -> (Spec, LogitProcessors) {
        (spec, processors)
    }
}

proptest! {
    #![proptest_config(properties(48))]

    #[test]
    fn sampling_parameters_at_their_limits_equal_greedy_decoding(
        (spec, processors) in spec_and_processors(),
        prompt in prop::collection::vec(any::<u32>(), 1..20),
        seed in any::<u64>(),
    ) {
        let prompt: Vec<u32> = prompt.iter().map(|id| id % spec.vocab as u32).collect();
        let request = |sampling, rule| Request {
            sampling,
            rule,
            seed,
            processors: processors.clone(),
            ..Request::new(prompt.clone(), 20)
        };
        let greedy = run_alone(&spec, Mode::Autoregressive, request(SamplingParams::GREEDY, Rule::Match));
        let one = SamplingParams::at_temperature(1.0);
        let limits = [
            SamplingParams { top_k: 1, ..one },
            SamplingParams { top_p: 0.0001, ..one },
            SamplingParams::at_temperature(1e-6),
        ];
        for sampling in limits {
            let requests = RULES.map(|rule| request(sampling, rule)).into();
            for (output, rule) in run(&mut engine(&spec, RandomGroups(seed)), requests).iter().zip(RULES) {
                prop_assert_eq!(&output.tokens, &greedy.tokens, "{:?} {:?}", sampling, rule);
            }
        }
    }
}

#[test]
fn two_seeds_differ_and_one_repeats() {
    let spec = Spec { gain: 0.5, ..Spec::default() };
    for rule in RULES {
        let request = |seed| Request {
            seed,
            rule,
            sampling: SamplingParams::at_temperature(1.0),
            ..Request::new(vec![4, 8, 1], 40)
        };
        let seeds = vec![request(1), request(2), request(1)];
        let outputs = run(&mut engine(&spec, Mode::Parallel), seeds);
        assert_ne!(outputs[0].tokens, outputs[1].tokens);
        assert_eq!(outputs[0].tokens, outputs[2].tokens);
    }
}

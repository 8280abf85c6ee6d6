//! Tests that parallel and sequential drafting are the same computation: from the same state they give the same draft
//! tokens and confidences, bit for bit, under every rule, in every batch.

use flexdraft::acceptance::Rule;
use flexdraft::decode::{Mode, Request};
use flexdraft::sampling::SamplingParams;
use proptest::prelude::*;

use crate::support::models::{Shapes, spec};
use crate::support::policies::RandomGroups;
use crate::support::properties::properties;
use crate::support::runs::{Output, blocks, engine, run};

proptest! {
    #![proptest_config(properties(64))]

    #[test]
    fn drafts_do_not_depend_on_the_group_set(
        spec in spec(Shapes::SMALL),
        prompts in prop::collection::vec(prop::collection::vec(any::<u32>(), 1..50), 1..4),
        rule in prop::sample::select(vec![Rule::Rejection, Rule::Block, Rule::Match]),
        temperature in prop::sample::select(vec![0.0f32, 1.0]),
        seed in any::<u64>(),
    ) {
        let requests = || -> Vec<Request> {
            let request = |prompt: &Vec<u32>| Request {
                rule,
                seed,
                sampling: SamplingParams::at_temperature(temperature),
                record: true,
                ..Request::new(prompt.iter().map(|id| id % spec.vocab as u32).collect(), 20)
            };
            prompts.iter().map(request).collect()
        };
        let parallel = run(&mut engine(&spec, Mode::Parallel), requests());
        let expected = blocks(&parallel);
        if spec.block_size > 1 {
            prop_assert!(expected.iter().all(|block| block.drafted() == spec.block_size - 1));
        }
        let sequential = run(&mut engine(&spec, Mode::Sequential), requests());
        prop_assert_eq!(&blocks(&sequential), &expected);
        let mixed = run(&mut engine(&spec, RandomGroups(seed)), requests());
        prop_assert_eq!(&blocks(&mixed), &expected);
        let tokens = |outputs: &[Output]| outputs.iter().map(|o| o.tokens.clone()).collect::<Vec<_>>();
        prop_assert_eq!(tokens(&parallel), tokens(&sequential));
        prop_assert_eq!(tokens(&parallel), tokens(&mixed));
    }
}

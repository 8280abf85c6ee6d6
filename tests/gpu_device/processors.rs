//! Tests of logit processors on the GPU device: every mode gives the tokens of autoregressive decoding with the same
//! processors.

use flexdraft::acceptance::Rule;
use flexdraft::decode::{Mode, Request};
use flexdraft::processors::LogitProcessors;
use flexdraft::runtime::SimtOptions;
use flexdraft::runtime::simt::{Checking, Copies};
use flexdraft::tensor::DType;
use proptest::prelude::*;

use crate::decode_loop::{Ask, ask, engine, gpu};
use crate::support::models::{Shapes, Spec, spec};
use crate::support::policies::RandomGroups;
use crate::support::processors::{all_but, processors};
use crate::support::properties::properties;
use crate::support::runs::{Output, run};

prop_compose! {
    fn spec_and_asks()(spec in spec(Shapes::OF_KERNELS))(
        asks in prop::collection::vec((ask(), processors(spec.vocab)), 1..3),
        spec in Just(spec),
    ) -> (Spec, Vec<(Ask, LogitProcessors)>) {
        (spec, asks)
    }
}

proptest! {
    #![proptest_config(properties(4))]

    #[test]
    fn every_mode_gives_the_tokens_of_autoregressive_decoding(
        (spec, asks) in spec_and_asks(),
        seed in any::<u64>(),
    ) {
        let request = |(ask, processors): &(Ask, LogitProcessors)| Request {
            rule: Rule::Match,
            processors: processors.clone(),
            stop_ids: vec![1],
            ..ask.request(&spec)
        };
        let requests = || asks.iter().map(request).collect::<Vec<_>>();
        let late = SimtOptions { copies: Copies::Late, schedule: seed | 1, ..SimtOptions::default() };
        let ar = run(&mut engine(gpu(SimtOptions::default()), &spec, Mode::Autoregressive), requests());
        let tokens = |outputs: &[Output]| outputs.iter().map(|output| output.tokens.clone()).collect::<Vec<_>>();
        let parallel = run(&mut engine(gpu(late), &spec, Mode::Parallel), requests());
        prop_assert_eq!(tokens(&parallel), tokens(&ar));
        let any = run(&mut engine(gpu(SimtOptions::default()), &spec, RandomGroups(seed)), requests());
        prop_assert_eq!(tokens(&any), tokens(&ar));
    }
}

/// Runs with all processors in race mode: every access is checked for bounds, alignment, races and unfinished copies.
#[test]
fn a_checked_run_finds_nothing_and_emits_nothing_forbidden() {
    let (layers, tail, head_dim, hidden, dtype) = (2, 1, 64, 32, DType::Bf16);
    let spec = Spec { layers, tail, head_dim, hidden, dtype, rank: Some(8), vocab: 1100, ..Spec::default() };
    let options = SimtOptions { checking: Checking::Accesses, copies: Copies::Late, schedule: 3 };
    let request = |(temperature, rule)| {
        let prompt: Vec<u32> = (0..20).collect();
        let ask = Ask { prompt, max_new_tokens: 5, temperature, top_k: 0, rule, proposes: false, seed: 5 };
        Request {
            processors: LogitProcessors {
                repetition_penalty: 1.3,
                frequency_penalty: 0.4,
                presence_penalty: 0.2,
                // The bias makes two ids likely: one is forbidden after itself, one by the mask.
                logit_bias: [(1030, 20.0), (7, 20.0), (1099, 30.0)].into(),
                min_tokens: 3,
                bad_words: vec![vec![1030, 1030], vec![7, 7]],
                allowed: Some(all_but(1099, spec.vocab)),
            },
            stop_ids: vec![7],
            ..ask.request(&spec)
        }
    };
    let rules = [(0.0, Rule::Match), (1.0, Rule::Match), (1.0, Rule::Rejection), (1.0, Rule::Block)];
    let outputs = run(&mut engine(gpu(options), &spec, Mode::Parallel), rules.map(request).into());
    for Output { tokens, .. } in &outputs {
        assert!(!tokens.contains(&1099) && !tokens.windows(2).any(|pair| pair == [1030, 1030]), "{tokens:?}");
        assert!(
            tokens.contains(&1030) && (tokens.len() == 5 || (tokens.len() >= 4 && tokens.ends_with(&[7]))),
            "{tokens:?}"
        );
    }
}

//! Tests that greedy decoding is lossless: every mode, group set and batch gives the tokens of plain autoregressive
//! decoding, which agree with a forward pass without any cache.

use flexdraft::decode::{Confidence, ConfidenceStrategy, Finish, Mode, Request};
use proptest::prelude::*;

use crate::every_mode::{Ask, Case, ask};
use crate::support::models::{Shapes, Spec, either_drafter, spec};
use crate::support::properties::properties;
use crate::support::runs::{Output, run_alone};

/// The parameters of a random request: whether confidences are compared one by one with the threshold (or their product
/// is), and the block size.
type Drafting = (bool, Option<usize>);

fn request(spec: &Spec, (ask, (min_confidence, block_size)): &(Ask, Drafting)) -> Request {
    let strategy = match min_confidence {
        true => ConfidenceStrategy::MinConfidence,
        false => ConfidenceStrategy::CumulativeProduct,
    };
    Request {
        block_size: block_size.map(|size| size.min(spec.block_size)),
        confidence: Confidence { threshold: ask.threshold, strategy },
        ..ask.request(spec)
    }
}

proptest! {
    #![proptest_config(properties(64))]

    #[test]
    fn every_mode_gives_the_tokens_of_autoregressive_decoding(
        spec in either_drafter(spec(Shapes::SMALL)),
        asks in prop::collection::vec((ask(), (any::<bool>(), prop::option::of(1usize..8))), 1..6),
        seed in any::<u64>(),
    ) {
        let request = |ask: &(Ask, Drafting)| request(&spec, ask);
        let ar: Vec<Output> =
            asks.iter().map(|ask| run_alone(&spec, Mode::Autoregressive, request(ask))).collect();
        for (ask, output) in asks.iter().zip(&ar) {
            let stopped = output.finish == Some(Finish::Stop);
            prop_assert!(stopped || output.tokens.len() == ask.0.max_new_tokens);
            let stops = &request(ask).stop_ids;
            let stop_at = output.tokens.iter().position(|token| stops.contains(token));
            prop_assert_eq!(stopped, stop_at.is_some());
            prop_assert!(stop_at.is_none_or(|last| last + 1 == output.tokens.len()));
        }
        Case { spec: &spec, asks: &asks, ar: &ar, request }.check_every_mode(seed)?;
    }
}

/// Every accepted length occurs in every mode, in a batch whose contexts span several pages, because the proposer
/// drafts the true continuation with one wrong token.
#[test]
fn every_accepted_length_occurs_in_every_mode() {
    let spec = Spec { block_size: 6, ..Spec::default() };
    let ask = |i: u32| Ask {
        prompt: (0..10 + 17 * i).map(|p| p * p + i).collect(),
        max_new_tokens: 120,
        threshold: 0.0,
        stop_id: None,
        proposes: true,
    };
    let asks: Vec<(Ask, ())> = (0..5).map(|i| (ask(i), ())).collect();
    for spec in [spec.clone(), spec.with_orthrus()] {
        let request = |(ask, ()): &(Ask, ())| ask.request(&spec);
        let ar: Vec<Output> =
            asks.iter().map(|ask| run_alone(&spec, Mode::Autoregressive, request(ask))).collect();
        Case { spec: &spec, asks: &asks, ar: &ar, request }.check_every_accepted_length();
    }
}

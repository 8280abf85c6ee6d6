//! The decode loop compared with autoregressive decoding, on small random models.

use flexdraft_reference::accept::{Rule, Verdict, block, matching, rejection};
use flexdraft_reference::attention::Heads;
use flexdraft_reference::decode::{Request, autoregressive, decode};
use flexdraft_reference::model::{DrafterKind, Target, target_logits};
use flexdraft_reference::process::Processors;
use flexdraft_reference::random::{Numbers, Purpose};
use flexdraft_reference::sample::{draw, draw_by_weights};
use flexdraft_reference::schedule::Strategy as Schedule;
use flexdraft_reference::warp::{Distribution, Warping, warp};
use proptest::prelude::*;

use crate::common::{ChainShape, Shape, any_processors, random_model};
use crate::properties::properties;

const RULES: [Rule; 3] = [Rule::Rejection, Rule::Block, Rule::Match];

fn request(warping: Warping, rule: Rule) -> Request {
    Request {
        prompt: vec![3, 1, 4],
        max_new_tokens: 16,
        stop_tokens: vec![],
        processors: Processors::OFF,
        processors_on_drafts: false,
        warping,
        rule,
        seed: 0xfeed_0000_0001,
        block_size: 4,
        threshold: 0.0,
        strategy: Schedule::CumulativeProduct,
    }
}

const KINDS: [DrafterKind; 2] = [DrafterKind::FlexDraft, DrafterKind::Orthrus];

fn shape() -> impl Strategy<Value = Shape> {
    let chain =
        (any::<bool>(), 1..4usize, 1..=Shape::TINY.vocab + 1).prop_map(|(pair, rank, top_k)| match pair {
            true => ChainShape::Pair { rank, top_k },
            false => ChainShape::Hidden { rank, top_k },
        });
    let drafter =
        (prop::sample::select(&KINDS[..]), 1..=3usize, prop::option::of(1..4usize), prop::option::of(chain));
    (drafter, any::<bool>(), 1..=2usize, 1..=2usize).prop_map(
        |((kind, tail_layers, calibrator_rank, chain), qk_norms, kv_heads, ratio)| Shape {
            kind,
            tail_layers,
            qk_norms,
            calibrator_rank,
            chain,
            heads: Heads { q_heads: kv_heads * ratio, kv_heads, head_dim: 4 },
            ..Shape::TINY
        },
    )
}

fn any_request(warping: impl Strategy<Value = Warping>) -> impl Strategy<Value = Request> {
    (
        (prop::collection::vec(0..Shape::TINY.vocab as u32, 1..6), 0..14usize, any::<u64>()),
        (
            any_processors(Shape::TINY.vocab),
            any::<bool>(),
            warping,
            prop::sample::select(&RULES[..]),
            prop::option::of(0..Shape::TINY.vocab as u32),
        ),
        (
            1..6usize,
            prop_oneof![Just(0.0), 0.01..0.6f64],
            prop::sample::select(&[Schedule::CumulativeProduct, Schedule::MinConfidence][..]),
        ),
    )
        .prop_map(
            |(
                (prompt, max_new_tokens, seed),
                (processors, processors_on_drafts, warping, rule, stop),
                (block_size, threshold, strategy),
            )| {
                Request {
                    prompt,
                    max_new_tokens,
                    stop_tokens: stop.into_iter().collect(),
                    processors,
                    processors_on_drafts,
                    warping,
                    rule,
                    seed,
                    block_size,
                    threshold,
                    strategy,
                }
            },
        )
}

fn any_warping() -> impl Strategy<Value = Warping> {
    (0.1..2.0f64, 0..6usize, prop_oneof![Just(1.0), 0.3..1.0f64], prop_oneof![Just(0.0), 0.0..0.4f64])
        .prop_map(|(temperature, top_k, top_p, min_p)| Warping { temperature, top_k, top_p, min_p })
}

proptest! {
    #![proptest_config(properties(48))]

    #[test]
    fn greedy_is_autoregressive(
        shape in shape(),
        model in any::<u64>(),
        request in any_request(Just(Warping::GREEDY)),
    ) {
        let (target, drafter) = random_model::<f64>(shape, model);
        prop_assert_eq!(decode(&target, &drafter, &request).output, autoregressive(&target, &request));
    }

    #[test]
    fn match_is_autoregressive_sampling_with_that_seed(
        shape in shape(),
        model in any::<u64>(),
        request in any_request(any_warping()),
    ) {
        let (target, drafter) = random_model::<f64>(shape, model);
        let request = Request { rule: Rule::Match, ..request };
        prop_assert_eq!(decode(&target, &drafter, &request).output, autoregressive(&target, &request));
    }

    #[test]
    fn steps_fit_each_other(
        shape in shape(),
        model in any::<u64>(),
        request in any_request(any_warping()),
    ) {
        let (target, drafter) = random_model::<f32>(shape, model);
        let decoded = decode(&target, &drafter, &request);
        let slots = request.block_size - 1;
        let mut committed: Vec<u32> = vec![];
        let mut draft = &decoded.first_draft;
        let mut start = request.prompt.len();
        for step in &decoded.steps {
            prop_assert_eq!(step.start, start);
            prop_assert_eq!(step.verify_len, draft.verify_len);
            prop_assert_eq!(&step.candidates[1..], &draft.tokens[..]);
            prop_assert_eq!(draft.tokens.len(), slots);
            prop_assert!(step.verify_len <= slots && step.verify_len >= slots.min(1));
            prop_assert!(step.accepted <= step.verify_len);
            committed.extend(&step.candidates[..=step.accepted]);
            start += step.accepted + 1;
            draft = &step.draft;
        }
        committed.extend(decoded.steps.last().map(|step| step.bonus));
        if !decoded.steps.is_empty() {
            prop_assert!(committed.starts_with(&decoded.output));
        }
        prop_assert!(decoded.output.len() <= request.max_new_tokens);
        let stops = decoded.output.iter().filter(|token| request.stop_tokens.contains(token)).count();
        prop_assert!(stops == 0 || stops == 1 && request.stop_tokens.contains(&decoded.output[decoded.output.len() - 1]));
    }
}

#[test]
fn a_block_of_one_slot_is_autoregressive_under_every_rule() {
    let (target, drafter) = random_model::<f64>(Shape::TINY, 5);
    for rule in RULES {
        let request = Request { block_size: 1, ..request(Warping::temperature(0.9), rule) };
        let decoded = decode(&target, &drafter, &request);
        assert_eq!(decoded.output, autoregressive(&target, &request));
        assert_eq!(decoded.steps.len(), request.max_new_tokens - 1);
    }
}

/// Drafts that see bias and mask propose no forbidden id. A chain's most likely ids are chosen after the mask.
#[test]
fn drafts_obey_the_mask_if_the_request_asks() {
    let chain = |chain| Shape { chain: Some(chain), ..Shape::TINY };
    let pair = chain(ChainShape::Pair { rank: 3, top_k: 3 });
    for shape in [Shape::TINY, pair, Shape { kind: DrafterKind::Orthrus, ..Shape::TINY }] {
        let (target, drafter) = random_model::<f64>(shape, 3);
        for rule in RULES {
            let decoded = |processors_on_drafts, mask: u32| {
                let processors =
                    Processors { bias: vec![(4, 6.0)], mask: Some(vec![mask]), ..Processors::OFF };
                let request = request(Warping::temperature(1.5), rule);
                decode(&target, &drafter, &Request { processors, processors_on_drafts, ..request })
            };
            let drafted = |on_drafts, mask| -> Vec<u32> {
                let steps = decoded(on_drafts, mask).steps;
                steps.iter().flat_map(|step| step.draft.tokens.clone()).collect()
            };
            let even = 0x5555_5555;
            assert!(drafted(true, even).iter().all(|id| id % 2 == 0));
            assert!(drafted(false, even).iter().any(|id| id % 2 == 1));
            // The bias makes id 4 likely.
            let biased = |on_drafts| {
                let drafted = drafted(on_drafts, u32::MAX);
                drafted.iter().filter(|&&id| id == 4).count() as f64 / drafted.len() as f64
            };
            assert!(biased(true) > 0.5 && biased(false) < 0.5, "{shape:?}, {rule:?}");
        }
    }
}

/// If target and drafter have the same distribution for every context, every rule accepts every draft token.
#[test]
fn everything_is_accepted_where_p_is_q() {
    let (mut target, mut drafter) = random_model::<f64>(Shape::TINY, 7);
    target.norm.iter_mut().for_each(|weight| *weight = 0.0);
    target.lm_head.bias = Some((0..Shape::TINY.vocab).map(|id| if id == 6 { 9.0 } else { 0.0 }).collect());
    drafter.calibrator = None;
    for rule in RULES {
        let decoded = decode(&target, &drafter, &request(Warping::GREEDY, rule));
        assert_eq!(decoded.output, [6; 16]);
        assert!(decoded.steps.iter().all(|step| step.accepted == 3));
        let decoded = decode(&target, &drafter, &request(Warping::temperature(1.0), rule));
        assert!(decoded.steps.iter().all(|step| step.accepted == 3), "{rule:?}");
    }
}

/// Every draw and every test of every step uses the random numbers that the contract assigns to it.
#[test]
fn draws_follow_the_random_number_contract() {
    let (target, drafter) = random_model::<f64>(Shape::TINY, 9);
    let warping = Warping::temperature(1.1);
    for rule in RULES {
        let request = Request { max_new_tokens: 40, ..request(warping, rule) };
        let numbers = |purpose, slot: usize, position: usize| Numbers {
            seed: request.seed,
            purpose,
            slot: slot as u16,
            position: position as u64,
        };
        let decoded = decode(&target, &drafter, &request);
        let mut tokens = request.prompt.clone();
        let p = distributions(&target, &tokens, &warping);
        assert_eq!(decoded.output[0], draw(&p[2].log_weights, &numbers(Purpose::TargetDraw, 0, 3)));

        let mut draft = &decoded.first_draft;
        for step in &decoded.steps {
            let start = step.start;
            for (index, q) in draft.distributions.iter().enumerate() {
                let slot = index + 1;
                let numbers = match rule {
                    Rule::Match => numbers(Purpose::TargetDraw, 0, start + slot),
                    _ => numbers(Purpose::DraftDraw, slot, start),
                };
                assert_eq!(draft.tokens[index], draw(&q.log_weights, &numbers));
            }

            let p = distributions(&target, &[&tokens[..], &step.candidates].concat(), &warping);
            let row = |p: &Distribution<f64>| p.probabilities.clone();
            let (p, q) = (&p[start..], draft.distributions.iter().map(row).collect::<Vec<_>>());
            let p_rows: Vec<_> = p.iter().map(row).collect();
            let uniforms: Vec<f64> =
                (1..=3).map(|i| numbers(Purpose::Acceptance, i, start).uniform()).collect();
            let final_draw =
                |a, weights: &[f64]| draw_by_weights(weights, &numbers(Purpose::FinalDraw, a, start));
            let target_draw =
                |i: usize| draw(&p[i].log_weights, &numbers(Purpose::TargetDraw, 0, start + i + 1));
            let verdict = match rule {
                Rule::Rejection => rejection(&p_rows, &q, &draft.tokens, &uniforms, final_draw),
                Rule::Block => block(&p_rows, &q, &draft.tokens, &uniforms, final_draw),
                Rule::Match => matching(&draft.tokens, target_draw),
            };
            assert_eq!(verdict, Verdict { accepted: step.accepted, bonus: step.bonus }, "{rule:?}");

            tokens.extend(&step.candidates[..=step.accepted]);
            draft = &step.draft;
        }
        assert!(decoded.steps.iter().any(|step| step.accepted > 0), "{rule:?}: nothing was accepted");
    }
}

fn distributions(target: &Target<f64>, tokens: &[u32], warping: &Warping) -> Vec<Distribution<f64>> {
    target_logits(target, tokens).iter().map(|logits| warp(logits, warping)).collect()
}

/// Over many seeds, the first three tokens of `rejection` and `block` follow the target's distribution. This tests
/// the whole loop with its random numbers, by a χ² test at five standard deviations.
#[test]
fn sampled_tokens_are_distributed_as_the_targets() {
    let shape = Shape {
        vocab: 3,
        hidden: 4,
        intermediate: 4,
        heads: Heads { q_heads: 2, kv_heads: 1, head_dim: 2 },
        layers: 2,
        kind: DrafterKind::FlexDraft,
        tail_layers: 1,
        qk_norms: true,
        calibrator_rank: Some(2),
        chain: None,
    };
    for kind in KINDS {
        assert_distribution(Shape { kind, ..shape });
    }
    let pair = ChainShape::Pair { rank: 2, top_k: 2 };
    let hidden = ChainShape::Hidden { rank: 2, top_k: 2 };
    for chain in [pair, hidden] {
        assert_distribution(Shape { chain: Some(chain), ..shape });
    }
}

fn assert_distribution(shape: Shape) {
    const SEEDS: u64 = 12_000;
    const TOKENS: usize = 3;
    let (target, drafter) = random_model::<f32>(shape, 21);
    let warping = Warping::temperature(0.8);
    let base = Request {
        prompt: vec![1, 2],
        max_new_tokens: TOKENS,
        block_size: 3,
        ..request(warping, Rule::Rejection)
    };

    let outcomes = shape.vocab.pow(TOKENS as u32);
    let tokens_of =
        |code: usize| -> Vec<u32> { (0..TOKENS).map(|i| (code / 3usize.pow(i as u32) % 3) as u32).collect() };
    let expected: Vec<f64> = (0..outcomes)
        .map(|code| {
            let tokens = [&base.prompt[..], &tokens_of(code)].concat();
            let logits = target_logits(&target, &tokens);
            let probability = |i: usize| warp(&logits[i + 1], &warping).probabilities[tokens[i + 2] as usize];
            (0..TOKENS).map(|i| f64::from(probability(i))).product()
        })
        .collect();
    for rule in [Rule::Rejection, Rule::Block] {
        let mut counts = vec![0.0; outcomes];
        for seed in 0..SEEDS {
            let output = decode(&target, &drafter, &Request { rule, seed, ..base.clone() }).output;
            counts[output.iter().rev().fold(0, |code, &token| code * 3 + token as usize)] += 1.0;
        }
        let chi_squared: f64 = counts
            .iter()
            .zip(&expected)
            .map(|(count, p)| (count - p * SEEDS as f64).powi(2) / (p * SEEDS as f64))
            .sum();
        let freedom = (outcomes - 1) as f64;
        assert!(
            chi_squared < freedom + 5.0 * (2.0 * freedom).sqrt(),
            "{:?}, chain {:?}, {rule:?}: χ² {chi_squared} at {freedom} degrees of freedom",
            shape.kind,
            shape.chain
        );
    }
}

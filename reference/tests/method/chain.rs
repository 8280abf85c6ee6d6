//! Chained drafts leave the target's distribution unchanged, checked by summation over every draft, every outcome of
//! the tests and every bonus token, with verify lengths that follow from the chained confidences.

use flexdraft_reference::chain::likeliest;
use flexdraft_reference::sample::confidence;
use flexdraft_reference::schedule::{Strategy as Schedule, next_verify_len};
use flexdraft_reference::warp::{Warping, warp};
use proptest::prelude::*;

use crate::lossless::{Law, block_law, rejection_law};
use crate::properties::properties;

const VOCAB: usize = 4;
/// S − 1: the number of draft tokens of a step.
const DRAFTED: usize = 2;
/// Length of the compared token sequences: the largest number of tokens that a step emits, and one more.
const HORIZON: usize = DRAFTED + 2;

type Row = Vec<f64>;

/// A target and a chained drafter as arbitrary functions of the tokens so far.
#[derive(Clone, Debug)]
struct World {
    /// Rows of target logits; a context picks one row.
    target: Vec<Row>,
    /// Rows of calibrated logits ℓ_j; a context and a slot pick one row.
    calibrated: Vec<Row>,
    /// The score of token x after token t, `[t][x]`.
    scores: Vec<Row>,
    /// K: the number of ids that are scored.
    top_k: usize,
    warping: Warping,
    threshold: f64,
    strategy: Schedule,
    salt: u64,
}

/// One slot of a chained draft, given the tokens before it.
struct Slot {
    /// The distribution that the token is drawn from, which acceptance must use as q_j.
    q: Row,
    confidence: f64,
}

/// A mistake in the chain, which the summation must find.
#[derive(Clone, Copy, PartialEq)]
enum Mistake {
    None,
    /// Acceptance is told the distribution over the whole vocabulary instead of C_j.
    UntruncatedQ,
    /// Acceptance is told the calibrated distribution, without the scores of the token before.
    UnchainedQ,
    /// Acceptance is told a distribution over the K ids of the largest chained logits, which depend on the token before.
    ChosenAfterTheScores,
    /// Acceptance is told a distribution over the K likeliest of those ids that top-k, top-p and min-p keep of the
    /// calibrated logits.
    ChosenAfterWarping,
    /// The confidence of a slot is the probability of the drawn id instead of the largest probability.
    ConfidenceOfTheDrawnId,
}

impl World {
    fn pick(&self, context: &[u32], kind: u64, len: usize) -> usize {
        let hash = context.iter().fold(self.salt ^ kind, |hash, &token| {
            (hash ^ u64::from(token + 1)).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(23)
        });
        (hash % len as u64) as usize
    }

    /// Returns the target's warped distribution after `context`.
    fn target(&self, context: &[u32]) -> Row {
        warp(&self.target[self.pick(context, 0, self.target.len())], &self.warping).probabilities
    }

    fn calibrated(&self, context: &[u32], slot: usize) -> &Row {
        &self.calibrated[self.pick(context, slot as u64, self.calibrated.len())]
    }

    /// Returns the chained logits of a slot after token `before`, for the `top_k` most likely ids.
    fn chained(&self, context: &[u32], slot: usize, before: u32, top_k: usize) -> Row {
        let logits = self.calibrated(context, slot);
        let chained: Row = logits.iter().zip(&self.scores[before as usize]).map(|(l, s)| l + s).collect();
        only(&likeliest(logits, top_k), &chained)
    }

    fn slot(&self, context: &[u32], slot: usize, before: u32) -> Slot {
        let chained = self.chained(context, slot, before, self.top_k);
        Slot { q: warp(&chained, &self.warping).probabilities, confidence: confidence(&chained) }
    }

    /// Returns the distribution of a slot that acceptance is told, which a mistake makes another than the one drawn
    /// from.
    fn told(&self, context: &[u32], slot: usize, before: u32, mistake: Mistake) -> Row {
        match mistake {
            Mistake::UntruncatedQ => {
                warp(&self.chained(context, slot, before, VOCAB), &self.warping).probabilities
            }
            Mistake::UnchainedQ => warp(self.calibrated(context, slot), &self.warping).probabilities,
            Mistake::ChosenAfterTheScores => {
                let chained = self.chained(context, slot, before, VOCAB);
                warp(&only(&likeliest(&chained, self.top_k), &chained), &self.warping).probabilities
            }
            Mistake::ChosenAfterWarping => {
                let kept = warp(self.calibrated(context, slot), &self.warping).kept;
                let chosen: Vec<u32> = kept.iter().take(self.top_k).map(|&id| id as u32).collect();
                let chained = self.chained(context, slot, before, VOCAB);
                warp(&only(&chosen, &chained), &self.warping).probabilities
            }
            Mistake::None | Mistake::ConfidenceOfTheDrawnId => self.slot(context, slot, before).q,
        }
    }
}

/// Returns `logits` with −∞ for all ids but `ids`.
fn only(ids: &[u32], logits: &[f64]) -> Row {
    let logit = |(id, &logit): (u32, &f64)| if ids.contains(&id) { logit } else { f64::NEG_INFINITY };
    (0..).zip(logits).map(logit).collect()
}

/// Returns every sequence of `len` tokens.
fn sequences(len: usize) -> Vec<Vec<u32>> {
    (0..VOCAB.pow(len as u32))
        .map(|code| (0..len).map(|i| (code / VOCAB.pow(i as u32) % VOCAB) as u32).collect())
        .collect()
}

/// Adds to `emitted` the distribution of the first `HORIZON` tokens after `context`, if the next `steps` steps are
/// speculative and the target itself draws the remaining tokens. `context` starts with the prompt, one token.
fn emit(
    world: &World,
    law: Law,
    mistake: Mistake,
    context: &[u32],
    mass: f64,
    steps: usize,
    emitted: &mut [f64],
) {
    if mass == 0.0 {
        return;
    }
    let output = &context[1..];
    if output.len() >= HORIZON {
        let code = output[..HORIZON].iter().rev().fold(0, |code, &token| code * VOCAB + token as usize);
        emitted[code] += mass;
        return;
    }
    let drafts = if steps > 0 { sequences(DRAFTED) } else { vec![vec![]] };
    for draft in drafts {
        let mut drafted = 1.0;
        let (mut q, mut confidences) = (vec![], vec![]);
        // The last token of the context is the bonus token of the step before.
        let mut before = context[context.len() - 1];
        for (index, &token) in draft.iter().enumerate() {
            let slot = world.slot(context, index + 1, before);
            drafted *= slot.q[token as usize];
            q.push(world.told(context, index + 1, before, mistake));
            confidences.push(match mistake {
                Mistake::ConfidenceOfTheDrawnId => {
                    let chained = world.chained(context, index + 1, before, world.top_k);
                    let whole = warp(&chained, &Warping::temperature(1.0)).probabilities;
                    whole[token as usize]
                }
                _ => slot.confidence,
            });
            before = token;
        }
        if drafted == 0.0 {
            continue;
        }
        let verify_len = next_verify_len(&confidences, world.threshold, world.strategy);
        let (draft, q) = (&draft[..verify_len], &q[..verify_len]);
        let p: Vec<Row> = (0..=verify_len).map(|i| world.target(&[context, &draft[..i]].concat())).collect();
        for (a, (accepted, weights)) in law(&p, q, draft).into_iter().enumerate() {
            let total: f64 = weights.iter().sum();
            for (bonus, weight) in weights.iter().enumerate() {
                let next = [context, &draft[..a], &[bonus as u32]].concat();
                let mass = mass * drafted * accepted * weight / total;
                emit(world, law, mistake, &next, mass, steps.saturating_sub(1), emitted);
            }
        }
    }
}

/// Returns the largest difference between a sequence's probability under the target and the probability that it is
/// emitted after a prompt of one token.
fn bias(world: &World, law: Law, mistake: Mistake) -> f64 {
    let prompt = [2];
    let mut emitted = vec![0.0; VOCAB.pow(HORIZON as u32)];
    emit(world, law, mistake, &prompt, 1.0, 2, &mut emitted);
    let expected = |sequence: &[u32]| -> f64 {
        (0..HORIZON)
            .map(|i| world.target(&[&prompt, &sequence[..i]].concat())[sequence[i] as usize])
            .product()
    };
    let differences = sequences(HORIZON).into_iter().zip(&emitted);
    differences.map(|(sequence, &mass)| (expected(&sequence) - mass).abs()).fold(0.0, f64::max)
}

fn rows() -> impl Strategy<Value = Vec<Row>> {
    prop::collection::vec(prop::collection::vec(-3.0..3.0f64, VOCAB), 1..8)
}

fn world() -> impl Strategy<Value = World> {
    let scores = prop::collection::vec(prop::collection::vec(-3.0..3.0f64, VOCAB), VOCAB);
    let warping =
        (0.3..2.0f64, 0..=VOCAB, prop_oneof![Just(1.0), 0.3..1.0f64], prop_oneof![Just(0.0), 0.0..0.4f64])
            .prop_map(|(temperature, top_k, top_p, min_p)| Warping { temperature, top_k, top_p, min_p });
    let strategy = prop::sample::select(&[Schedule::CumulativeProduct, Schedule::MinConfidence][..]);
    (
        rows(),
        rows(),
        scores,
        1..=VOCAB + 1,
        warping,
        prop_oneof![Just(0.0), 0.1..0.9f64],
        strategy,
        any::<u64>(),
    )
        .prop_map(|(target, calibrated, scores, top_k, warping, threshold, strategy, salt)| World {
            target,
            calibrated,
            scores,
            top_k,
            warping,
            threshold,
            strategy,
            salt,
        })
}

/// Returns a target and a chained drafter with which mistakes are visible.
fn plain_world() -> World {
    World {
        target: vec![vec![0.6, 0.3, 0.1, 0.0], vec![0.2, 1.5, 0.3, -1.0], vec![-1.0, 0.1, 0.8, 1.0]],
        calibrated: vec![vec![0.3, 0.2, 0.4, -0.5], vec![0.5, 0.1, 0.4, 0.6]],
        scores: vec![
            vec![2.0, -1.0, 0.5, 1.0],
            vec![-1.5, 1.0, 0.0, 2.0],
            vec![0.5, 1.5, -2.0, 0.0],
            vec![1.0, -0.5, 1.0, -1.0],
        ],
        top_k: 2,
        warping: Warping::temperature(1.0),
        threshold: 0.6,
        strategy: Schedule::CumulativeProduct,
        salt: 1,
    }
}

proptest! {
    #![proptest_config(properties(48))]

    #[test]
    fn two_steps_leave_the_distribution_unchanged(world in world()) {
        for law in [rejection_law as Law, block_law] {
            let bias = bias(&world, law, Mistake::None);
            prop_assert!(bias < 1e-9, "bias {}", bias);
        }
    }
}

#[test]
fn mistakes_in_q_show() {
    for law in [rejection_law as Law, block_law] {
        for mistake in [Mistake::UntruncatedQ, Mistake::UnchainedQ] {
            let bias = bias(&plain_world(), law, mistake);
            assert!(bias > 1e-3, "bias {bias}");
        }
        assert!(bias(&plain_world(), law, Mistake::None) < 1e-12);
    }
}

/// One mode may choose the ids of a slot otherwise than the mode whose q acceptance is told: after the scores of the
/// token before, or after top-k, top-p or min-p.
#[test]
fn ids_that_are_chosen_too_late_show() {
    let of_k = |top_k, warping| World { top_k, warping, ..plain_world() };
    let plain = Warping::temperature(1.0);
    for law in [rejection_law as Law, block_law] {
        for (mistake, world) in [
            (Mistake::ChosenAfterTheScores, of_k(2, plain)),
            (Mistake::ChosenAfterWarping, of_k(3, Warping { top_k: 2, ..plain })),
            (Mistake::ChosenAfterWarping, of_k(4, Warping { top_p: 0.55, ..plain })),
            (Mistake::ChosenAfterWarping, of_k(4, Warping { temperature: 2.0, min_p: 0.85, ..plain })),
        ] {
            let found = bias(&world, law, mistake);
            assert!(found > 1e-2, "bias {found} of {world:?}");
            assert!(bias(&world, law, Mistake::None) < 1e-12);
        }
    }
}

/// The verify length may depend on the confidences of a slot's whole distribution, but not on the token drawn from it.
#[test]
fn a_confidence_of_the_drawn_id_shows() {
    for law in [rejection_law as Law, block_law] {
        for strategy in [Schedule::CumulativeProduct, Schedule::MinConfidence] {
            let world = World { strategy, ..plain_world() };
            let bias = bias(&world, law, Mistake::ConfidenceOfTheDrawnId);
            assert!(bias > 1e-3, "bias {bias}");
        }
    }
}

//! Tests that the policy `Flex` leaves the law of the rules `rejection` and `block` exact, whatever it believes that steps
//! cost.
//!
//! The drafter's slots are chained: the confidence of a slot depends on the draft token of the slot before, as strongly as
//! it can. A policy that looked at a later confidence to decide whether to verify an earlier token would therefore know
//! that token. The confidences of the other sequences of the batch tell the token too. All drafts, outcomes of acceptance
//! tests and bonus tokens are enumerated with their probabilities, for cost models that make rows cheap, dear and anything
//! between.

use flexdraft::acceptance::{self, BlockScan, Rows, Rule};
use flexdraft::decode::{
    BatchView, CostModel, Flex, Policy, SequenceStep, SequenceView, StepMode, StepShape, StepView,
};

const VOCAB: usize = 3;
const DRAFTED: usize = 3;
const TOLERANCE: f64 = 1e-9;

/// Returns a number in (0, 1) that looks random.
fn noise(of: &[usize]) -> f64 {
    let mixed = of.iter().fold(0x9E37_79B9_7F4A_7C15_u64, |mixed, &number| {
        (mixed ^ number as u64).wrapping_mul(0xBF58_476D_1CE4_E5B9).rotate_left(29)
    });
    ((mixed.wrapping_mul(0x94D0_49BB_1331_11EB) >> 11) as f64 + 0.5) / (1u64 << 53) as f64
}

fn distribution(of: &[usize]) -> Vec<f64> {
    let weights: Vec<f64> = (0..VOCAB).map(|id| -noise(&[of, &[id]].concat()).ln()).collect();
    let sum: f64 = weights.iter().sum();
    weights.iter().map(|weight| weight / sum).collect()
}

/// The target's distribution after `prefix`.
fn target(seed: usize, prefix: &[u32]) -> Vec<f64> {
    let last = prefix.iter().rev().take(2).fold(0, |key, &token| 4 * key + token as usize + 1);
    distribution(&[seed, 1, last])
}

/// The distribution of a draft token after the draft token before it.
fn drafter(seed: usize, slot: usize, before: u32) -> Vec<f64> {
    distribution(&[seed, 2, slot, before as usize])
}

/// The confidences of a draft, which tell the tokens of the slots before.
fn confidences(seed: usize, draft: &[u32]) -> Vec<f32> {
    let first = 0.3 + 0.6 * noise(&[seed, 3]) as f32;
    let told = |&token: &u32| if (token as usize + seed).is_multiple_of(2) { 0.98 } else { 0.02 };
    std::iter::once(first).chain(draft[..draft.len() - 1].iter().map(told)).collect()
}

/// Chooses v for a draft.
type VerifyLen<'a> = &'a dyn Fn(&[f32]) -> usize;

/// Returns `Flex`'s choice of v, for a device whose steps take `row` seconds per row and 1 second besides, beside
/// `neighbours` greedy sequences whose drafts have the same confidences.
fn flex_verify_len(row: f64, neighbours: usize, confidence: &[f32]) -> usize {
    let mut cost = CostModel::default();
    for rows in [1, 2, 4, 8, 16, 32, 1, 2, 4, 8, 16, 32] {
        let drafting = StepShape { sequences: 1, candidates: rows, draft_rows: 4, ..StepShape::default() };
        cost.observe(&StepShape { draft_rows: 0, ..drafting }, 1.0 + row * rows as f64);
        cost.observe(&drafting, 1.3 + row * (rows + 4) as f64);
    }
    let mut flex = Flex::new(cost);
    let view = |number: usize, confidence| SequenceView {
        number: number as u64,
        position: 20,
        block_size: DRAFTED + 1,
        draws: true,
        may_draft: true,
        wanted: 100,
        confidence,
        verify_len: DRAFTED,
        verify_len_is_free: true,
        tokens_depend_on_verify_len: number == 0,
        ..SequenceView::default()
    };
    let views = |confidence| (0..=neighbours).map(|number| view(number, confidence)).collect::<Vec<_>>();
    // One step without drafts before it, which makes the drafts.
    flex.choose(&BatchView { sequences: &views(&[]), groups_allowed: true });
    let made = |index| SequenceStep {
        index,
        mode: Some(StepMode::Sequential),
        candidates: 1,
        block_size: DRAFTED + 1,
        drafted: true,
        drafted_apart: true,
        committed: 1,
        ..SequenceStep::default()
    };
    let steps: Vec<SequenceStep> = (0..=neighbours).map(made).collect();
    flex.observe(&StepView { seconds: 1.3 + row * 8.0, sequences: &steps });
    flex.choose(&BatchView { sequences: &views(confidence), groups_allowed: true })[0].verify_len.min(DRAFTED)
}

struct StepRows {
    target: Vec<Vec<f64>>,
    draft: Vec<Vec<f64>>,
}

impl Rows for StepRows {
    fn target(&mut self, i: usize) -> Vec<f64> {
        self.target[i].clone()
    }

    fn draft(&mut self, j: usize) -> Vec<f64> {
        self.draft[j - 1].clone()
    }
}

/// Returns the law of the first two tokens of a step, and of the target after it if the step commits fewer.
fn law(seed: usize, rule: Rule, verify_len: VerifyLen<'_>) -> Vec<f64> {
    let mut law = vec![0.0; VOCAB * VOCAB];
    let all = (0..VOCAB.pow(DRAFTED as u32)).map(|code| {
        (0..DRAFTED).map(|slot| (code / VOCAB.pow(slot as u32) % VOCAB) as u32).collect::<Vec<_>>()
    });
    for draft in all {
        let q: Vec<Vec<f64>> = (0..DRAFTED)
            .map(|slot| drafter(seed, slot, if slot == 0 { 0 } else { draft[slot - 1] }))
            .collect();
        let drawn: f64 = q.iter().zip(&draft).map(|(q, &token)| q[token as usize]).product();
        let verified = &draft[..verify_len(&confidences(seed, &draft))];
        let target_rows = (0..=verified.len()).map(|i| target(seed, &verified[..i])).collect();
        let mut rows = StepRows { target: target_rows, draft: q };
        let tests = tests(rule, verified, &rows);
        for outcome in 0..1usize << tests.len() {
            let passes = |i: usize| outcome >> i & 1 == 1;
            let chance = |(i, &test): (usize, &f64)| if passes(i) { test } else { 1.0 - test };
            let weight: f64 = tests.iter().enumerate().map(chance).product();
            if weight <= 0.0 {
                continue;
            }
            let inside =
                |i: usize| if passes(i - 1) { tests[i - 1] / 2.0 } else { (1.0 + tests[i - 1]) / 2.0 };
            let decision = match rule {
                Rule::Block => acceptance::block(verified, &mut rows, inside),
                Rule::Rejection | Rule::Match => acceptance::rejection(verified, &mut rows, inside),
            };
            let sum: f64 = decision.weights.iter().sum();
            for (bonus, mass) in decision.weights.iter().enumerate() {
                let tokens = [&verified[..decision.accepted], &[bonus as u32]].concat();
                let weight = drawn * weight * mass / sum;
                match tokens[..] {
                    [one] => {
                        let after = target(seed, &tokens).into_iter().enumerate();
                        after.for_each(|(two, p)| law[one as usize * VOCAB + two] += weight * p);
                    }
                    [one, two, ..] => law[one as usize * VOCAB + two as usize] += weight,
                    [] => {}
                }
            }
        }
    }
    law
}

/// Returns the probability that each acceptance test passes.
fn tests(rule: Rule, draft: &[u32], rows: &StepRows) -> Vec<f64> {
    if rule == Rule::Block {
        let mut scan = BlockScan::new(rows.target[0].clone());
        for ((&token, next), q) in draft.iter().zip(&rows.target[1..]).zip(&rows.draft) {
            scan.advance(token, q.clone(), next.clone());
        }
        return scan.tests().iter().map(acceptance::Test::probability).collect();
    }
    let each = draft.iter().zip(&rows.target).zip(&rows.draft);
    each.map(|((&token, p), q)| acceptance::rejection_test(p, q, token).probability()).collect()
}

/// Returns the largest difference from the target's law.
fn error(seed: usize, rule: Rule, verify_len: VerifyLen<'_>) -> f64 {
    let first = target(seed, &[]);
    let exact = (0..VOCAB * VOCAB).map(|code| {
        let (one, two) = (code / VOCAB, code % VOCAB);
        first[one] * target(seed, &[one as u32])[two]
    });
    law(seed, rule, verify_len)
        .iter()
        .zip(exact)
        .map(|(found, exact)| (found - exact).abs())
        .fold(0.0, f64::max)
}

const ROW_SECONDS: [f64; 7] = [0.0, 0.02, 0.1, 0.3, 0.6, 1.0, 10.0];

#[test]
fn no_cost_model_changes_the_law() {
    let mut chosen = [0; DRAFTED + 1];
    for seed in 0..6 {
        for row in ROW_SECONDS {
            for neighbours in [0, 3] {
                for rule in [Rule::Rejection, Rule::Block] {
                    let found = error(seed, rule, &|confidence| flex_verify_len(row, neighbours, confidence));
                    assert!(found < TOLERANCE, "{rule:?}, seed {seed}, {row} s a row, {neighbours}: {found}");
                }
                for token in 0..VOCAB as u32 {
                    let confidence = confidences(seed, &[token; DRAFTED]);
                    chosen[flex_verify_len(row, neighbours, &confidence)] += 1;
                }
            }
        }
    }
    // The cost models make a difference, so the policy had something to tell.
    assert!(chosen.iter().all(|&count| count > 0), "{chosen:?}");
}

/// A policy that takes the verify length of the largest expected tokens per row, as if all confidences were known before
/// the draft, is found.
#[test]
fn looking_ahead_is_found() {
    let look_ahead = |confidence: &[f32]| {
        let rate = |length: usize| {
            let mut product = 1.0;
            let tokens: f32 = confidence[..length]
                .iter()
                .map(|c| {
                    product *= c;
                    product
                })
                .sum();
            // Verifying anything has a price, which only a long draft pays.
            let price = if length > 0 { 0.6 + 0.1 * length as f32 } else { 0.0 };
            (1.0 + tokens) / (1.0 + price)
        };
        (0..=DRAFTED).max_by(|&a, &b| rate(a).total_cmp(&rate(b))).unwrap_or(0)
    };
    for rule in [Rule::Rejection, Rule::Block] {
        let largest = (0..6).map(|seed| error(seed, rule, &look_ahead)).fold(0.0, f64::max);
        assert!(largest > 0.01, "{rule:?}: {largest}");
    }
}

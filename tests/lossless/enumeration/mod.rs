//! Tests that the rules `rejection` and `block` are lossless, by integration over all random numbers instead of
//! sampling.
//!
//! On small vocabularies the test enumerates every draft, every outcome of every acceptance test and every bonus token
//! of two consecutive steps with its probability, through the functions that the engine calls. The joint distribution
//! of the committed tokens must be the target's, up to rounding; the logit processors of the target's own distribution
//! are the reference's.
//!
//! The uniforms of the acceptance tests are intervals instead of numbers: a test of probability h splits the interval
//! at h, and the rule is called with a number from the inside of each part. Two steps may therefore share a uniform,
//! which shows that a wrong key of the random numbers fails.

mod world;

use flexdraft::acceptance::{self, BlockScan, Decision, Rows, Rule};
use flexdraft::sampling::{SamplingParams, confidence, softmax, warp};
use proptest::prelude::*;

use self::world::{
    COMPARED, Drafter, Law, ORDINARY, VerifyLen, World, no_repeats, ordinary, possible, worlds,
};
use crate::support::processors::all_but;
use crate::support::properties::properties;

const TOLERANCE: f64 = 1e-9;

/// A bug that the tests plant in the decode loop, and must find.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Bug {
    /// The planted residual is |P·p − q| in place of max(P·p − q, 0).
    ResidualNotClamped,
    /// The planted bug draws the bonus token from p_a in place of the residual.
    NoResidual,
    /// The planted bug computes the residual of `block` with P = 1.
    ResidualWithoutPrefix,
    /// The planted bug compares with the drafter's distribution before warping, although the drafts are drawn after
    /// warping.
    DraftNotWarped,
    /// The planted bug compares with the drafter's distribution before bias and mask, although the drafts are drawn after
    /// them.
    DraftNotEdited,
    /// The planted bug keys a draft token's uniform number by the token's position and not by the step.
    PositionKeyed,
    /// The planted bug takes the distributions after the proposal [0, 0, …] for those after the proposal that was drawn.
    ForgetsItsTokens,
}

fn total_variation(a: &Law, b: &Law) -> f64 {
    let at = |law: &Law, key| law.get(key).copied().unwrap_or(0.0);
    a.keys()
        .chain(b.keys().filter(|key| !a.contains_key(*key)))
        .map(|k| (at(a, k) - at(b, k)).abs())
        .sum::<f64>()
        / 2.0
}

/// The interval of [0, 1) in which a uniform random number must lie, given how it compared in earlier acceptance tests.
type Interval = (f64, f64);

/// A state of the enumerated decode loop between two steps.
#[derive(Clone, Debug)]
struct State {
    /// The prompt and the committed tokens.
    tokens: Vec<u32>,
    /// The intervals of the uniform numbers at the positions after the newest token, from the tests of an earlier step.
    /// Empty unless uniforms are keyed by position.
    uniforms: Vec<Interval>,
    weight: f64,
}

/// A draft, and the logits that each of its tokens was drawn from.
#[derive(Default)]
struct Path {
    draft: Vec<u32>,
    logits: Vec<Vec<f32>>,
}

/// The distributions of target and drafter in one verification.
struct StepRows<'a> {
    target: &'a [Vec<f64>],
    draft: &'a [Vec<f64>],
}

impl Rows for StepRows<'_> {
    fn target(&mut self, i: usize) -> Vec<f64> {
        self.target[i].clone()
    }

    fn draft(&mut self, j: usize) -> Vec<f64> {
        self.draft[j - 1].clone()
    }
}

/// The enumerated decode loop: a target and drafter, a rule, and a planted bug if there is one.
struct Loop<'a> {
    world: &'a World,
    rule: Rule,
    bug: Option<Bug>,
}

impl Loop<'_> {
    /// Returns the distribution of the next `COMPARED` tokens after two steps; tokens that the steps do not reach
    /// follow the target's distribution.
    fn law(&self, prompt: &[u32]) -> Law {
        let mut states = vec![State { tokens: prompt.to_vec(), uniforms: Vec::new(), weight: 1.0 }];
        let mut law = Law::new();
        for _ in 0..2 {
            let (done, open): (Vec<State>, Vec<State>) =
                states.into_iter().partition(|state| state.tokens.len() >= prompt.len() + COMPARED);
            for state in done {
                self.world.continue_exactly(state.tokens, prompt.len(), state.weight, &mut law);
            }
            states = merged(open.iter().flat_map(|state| self.step(state).0).collect());
        }
        for state in states {
            self.world.continue_exactly(state.tokens, prompt.len(), state.weight, &mut law);
        }
        law
    }

    /// Runs one step from a state of the enumerated loop. Returns every state that it can lead to, and the expected
    /// number of accepted draft tokens.
    fn step(&self, state: &State) -> (Vec<State>, f64) {
        let (mut next, mut expected) = (Vec::new(), 0.0);
        let path = &mut Path::default();
        self.each_draft(&state.tokens, path, state.weight, &mut |path, weight| {
            let Path { draft, logits } = path;
            let target = self.world.target_rows(&state.tokens, draft);
            // The distributions that acceptance uses as the drafter's, which some bugs falsify.
            let rows: Vec<Vec<f64>> = match self.bug {
                Some(Bug::DraftNotWarped) => {
                    let plain = SamplingParams::at_temperature(1.0);
                    logits.iter().map(|row| softmax(&warp(row, &plain))).collect()
                }
                Some(Bug::DraftNotEdited) => {
                    let row = |j: usize| self.world.plain_draft_logits(&state.tokens, &draft[..j], j + 1);
                    (0..draft.len()).map(|j| softmax(&warp(&row(j), &self.world.sampling))).collect()
                }
                Some(Bug::ForgetsItsTokens) => {
                    let zeros = vec![0; draft.len()];
                    let row = |j| self.world.draft_logits(&state.tokens, &zeros[..j], j + 1);
                    (0..draft.len()).map(|j| softmax(&warp(&row(j), &self.world.sampling))).collect()
                }
                _ => logits.iter().map(|row| softmax(&warp(row, &self.world.sampling))).collect(),
            };
            let rows = StepRows { target: &target, draft: &rows };
            self.verify(state, draft, rows, weight, &mut next, &mut expected);
        });
        (next, expected)
    }

    /// Calls `visit` with every draft after `tokens` that may be verified, and with the draft's probability times
    /// `weight`.
    fn each_draft(&self, tokens: &[u32], path: &mut Path, weight: f64, visit: &mut impl FnMut(&Path, f64)) {
        let World { verify_len, block_size, sampling, .. } = self.world;
        let slot = path.draft.len() + 1;
        if slot >= *block_size {
            visit(path, weight);
            return;
        }
        path.logits.push(self.world.draft_logits(tokens, &path.draft, slot));
        let confidences: Vec<f32> = path.logits.iter().map(|row| confidence(row)).collect();
        if !verify_len.before_drawing(slot, &path.draft, &confidences) {
            path.logits.pop();
            visit(path, weight);
            return;
        }
        let q = softmax(&warp(&path.logits[slot - 1], sampling));
        for (token, probability) in possible(&q) {
            if verify_len.after_drawing(token) {
                path.draft.push(token);
                self.each_draft(tokens, path, weight * probability, visit);
                path.draft.pop();
            } else {
                let row = path.logits.pop();
                visit(path, weight * probability);
                path.logits.extend(row);
            }
        }
        path.logits.pop();
    }

    /// Adds the state after every outcome of verifying `draft` to `next`.
    fn verify(
        &self,
        state: &State,
        draft: &[u32],
        mut rows: StepRows<'_>,
        weight: f64,
        next: &mut Vec<State>,
        expected: &mut f64,
    ) {
        let tests = self.test_probabilities(draft, &rows);
        each_outcome(&tests, &state.uniforms, &mut Vec::new(), weight, &mut |intervals, weight| {
            let inside = |i: usize| (intervals[i - 1].0 + intervals[i - 1].1) / 2.0;
            let decision = match self.rule {
                Rule::Block => acceptance::block(draft, &mut rows, inside),
                Rule::Rejection | Rule::Match => acceptance::rejection(draft, &mut rows, inside),
            };
            *expected += weight * decision.accepted as f64;
            let accepted = &draft[..decision.accepted];
            let weights = self.bonus_weights(draft, &rows, &decision);
            let sum: f64 = weights.iter().sum();
            let uniforms = match self.bug {
                // With uniform numbers keyed by position, draft token i of this step shares its number with draft token
                // i − a − 1 of the next step.
                Some(Bug::PositionKeyed) => intervals
                    .iter()
                    .chain(state.uniforms.iter().skip(draft.len()))
                    .skip(accepted.len() + 1)
                    .copied()
                    .collect(),
                _ => Vec::new(),
            };
            next.extend(possible(&weights).map(|(bonus, mass)| State {
                tokens: [&state.tokens[..], accepted, &[bonus]].concat(),
                uniforms: uniforms.clone(),
                weight: weight * mass / sum,
            }));
        });
    }

    fn test_probabilities(&self, draft: &[u32], rows: &StepRows<'_>) -> Vec<f64> {
        let each = draft.iter().zip(rows.target).zip(rows.draft);
        match self.rule {
            Rule::Block => {
                let mut scan = BlockScan::new(rows.target[0].clone());
                for ((&token, next), q) in draft.iter().zip(&rows.target[1..]).zip(rows.draft) {
                    scan.advance(token, q.clone(), next.clone());
                }
                scan.tests().iter().map(acceptance::Test::probability).collect()
            }
            Rule::Rejection | Rule::Match => {
                each.map(|((&token, p), q)| acceptance::rejection_test(p, q, token).probability()).collect()
            }
        }
    }

    /// Returns the weights of the bonus token, as the planted bug changes them.
    fn bonus_weights(&self, draft: &[u32], rows: &StepRows<'_>, decision: &Decision) -> Vec<f64> {
        let accepted = decision.accepted;
        if accepted == draft.len() {
            return decision.weights.clone();
        }
        let (p, q) = (&rows.target[accepted], &rows.draft[accepted]);
        let prefix = match self.rule {
            Rule::Block => draft[..accepted].iter().enumerate().fold(1.0, |prefix: f64, (i, &d)| {
                (prefix * rows.target[i][d as usize] / rows.draft[i][d as usize]).min(1.0)
            }),
            _ => 1.0,
        };
        let differences = |prefix: f64| p.iter().zip(q).map(move |(p, q)| prefix * p - q);
        match self.bug {
            Some(Bug::ResidualNotClamped) => differences(prefix).map(f64::abs).collect(),
            Some(Bug::ResidualWithoutPrefix) => differences(1.0).map(|w| w.max(0.0)).collect(),
            Some(Bug::NoResidual) => p.clone(),
            _ => decision.weights.clone(),
        }
    }
}

/// Calls `visit` with the uniform numbers' intervals for every combination of test outcomes, and with the combination's
/// probability times `weight`. `known` bounds the first uniforms.
fn each_outcome(
    tests: &[f64],
    known: &[Interval],
    intervals: &mut Vec<Interval>,
    weight: f64,
    visit: &mut impl FnMut(&[Interval], f64),
) {
    let Some(&probability) = tests.get(intervals.len()) else {
        visit(intervals, weight);
        return;
    };
    let (low, high) = known.get(intervals.len()).copied().unwrap_or((0.0, 1.0));
    for part in [(low, high.min(probability)), (low.max(probability), high)] {
        let width = part.1 - part.0;
        // The recursion skips an interval narrower than the spacing of floating-point numbers, which has no number
        // inside to call the rule with.
        if width > 1e-14 {
            intervals.push(part);
            each_outcome(tests, known, intervals, weight * width / (high - low), visit);
            intervals.pop();
        }
    }
}

/// Joins states of the enumeration that are equal in everything except their weight.
fn merged(states: Vec<State>) -> Vec<State> {
    let (plain, mut rest): (Vec<State>, Vec<State>) =
        states.into_iter().partition(|state| state.uniforms.is_empty());
    let mut weights = Law::new();
    plain.into_iter().for_each(|state| *weights.entry(state.tokens).or_default() += state.weight);
    rest.extend(weights.into_iter().map(|(tokens, weight)| State { tokens, uniforms: Vec::new(), weight }));
    rest
}

/// Returns the largest distance between the loop's and the target's distribution over the ordinary targets and
/// drafters.
fn largest_error(rule: Rule, bug: Option<Bug>, change: impl Fn(&mut World)) -> f64 {
    let error = |seed| {
        let mut world = ordinary(seed);
        change(&mut world);
        total_variation(&Loop { world: &world, rule, bug }.law(&[0]), &world.target_law(&[0]))
    };
    ORDINARY.map(error).fold(0.0, f64::max)
}

proptest! {
    #![proptest_config(properties(1000))]

    #[test]
    fn committed_tokens_follow_the_target(world in worlds()) {
        let target = world.target_law(&[0]);
        for rule in [Rule::Rejection, Rule::Block] {
            let law = Loop { world: &world, rule, bug: None }.law(&[0]);
            prop_assert!((law.values().sum::<f64>() - 1.0).abs() < TOLERANCE);
            for tokens in law.keys().chain(target.keys()) {
                let [found, expected] = [&law, &target].map(|l| l.get(tokens).copied().unwrap_or(0.0));
                prop_assert!((found - expected).abs() < TOLERANCE, "{rule:?} {tokens:?}: {found}, {expected}");
            }
        }
    }

    #[test]
    fn block_accepts_at_least_as_many_as_rejection(world in worlds()) {
        for (tokens, _) in [(vec![0], 1.0)].into_iter().chain(world.target_law(&[0])) {
            let state = State { tokens, uniforms: Vec::new(), weight: 1.0 };
            let expected = |rule| Loop { world: &world, rule, bug: None }.step(&state).1;
            let [rejection, block] = [Rule::Rejection, Rule::Block].map(expected);
            prop_assert!(block >= rejection - TOLERANCE, "{block} < {rejection}");
        }
    }

    /// The distributions of target and drafter are, to the bit, those of the reference's processors: a target's row after
    /// each draft token, and a drafter's row in each slot.
    #[test]
    fn processed_rows_are_the_references(
        world in worlds(),
        tokens in prop::collection::vec(0u32..4, 0..5),
        draft in prop::collection::vec(0u32..4, 0..4),
    ) {
        let within = |ids: &[u32]| -> Vec<u32> { ids.iter().map(|id| id % world.vocab as u32).collect() };
        let (tokens, draft) = (within(&[&[0], &tokens[..]].concat()), within(&draft));
        let rows = world.target_rows(&tokens, &draft);
        for (i, row) in rows.iter().enumerate() {
            prop_assert_eq!(row, &world.target(&[&tokens, &draft[..i]].concat()));
        }
        for slot in 1..=draft.len() {
            let [engine, reference] =
                [World::draft_logits, World::reference_draft_logits].map(|row| row(&world, &tokens, &draft[..slot - 1], slot));
            prop_assert_eq!(engine, reference);
        }
    }

    /// Extreme uniform numbers, which do not contribute to an integral, must not break the rules either.
    #[test]
    fn impossible_tokens_are_never_committed(world in worlds(), draft in 0u32..64, ones in 0u32..8) {
        let uniform = |i: usize| if ones >> (i - 1) & 1 == 1 { 1.0 - (-32f64).exp2() } else { 0.0 };
        prop_assert!(!commits_the_impossible(&world, draft, uniform));
    }
}

/// Returns whether a rule accepts or may draw a token that is impossible under the target, given a draft of three
/// tokens (two bits of `draft` each).
fn commits_the_impossible(world: &World, draft: u32, uniform: impl Fn(usize) -> f64) -> bool {
    let draft = [0, 2, 4].map(|shift| (draft >> shift & 3) % world.vocab as u32);
    let target = world.target_rows(&[0], &draft);
    let q: Vec<Vec<f64>> = (1..=draft.len())
        .map(|slot| softmax(&warp(&world.draft_logits(&[0], &draft[..slot - 1], slot), &world.sampling)))
        .collect();
    let mut rows = StepRows { target: &target, draft: &q };
    let decisions =
        [acceptance::rejection(&draft, &mut rows, &uniform), acceptance::block(&draft, &mut rows, &uniform)];
    decisions.iter().any(|decision| {
        let p = &target[decision.accepted];
        (0..decision.accepted).any(|i| target[i][draft[i] as usize] == 0.0)
            || possible(&decision.weights).any(|(token, _)| p[token as usize] == 0.0)
            || possible(&decision.weights).count() == 0
    })
}

/// A planted comparison that allows equality (u ≤ p in place of u < p) is found; u = −1e−300 stands for it, because it
/// passes the test even if p = 0.
#[test]
fn a_comparison_that_allows_equality_is_found() {
    let found = |seed| (0..64).any(|draft| commits_the_impossible(&ordinary(seed), draft, |_| -1e-300));
    assert!(ORDINARY.filter(|&seed| found(seed)).count() >= 10);
}

#[test]
fn block_accepts_more_on_ordinary_worlds() {
    let gain = |seed| {
        let world = ordinary(seed);
        let state = State { tokens: vec![0], uniforms: Vec::new(), weight: 1.0 };
        let [rejection, block] =
            [Rule::Rejection, Rule::Block].map(|rule| Loop { world: &world, rule, bug: None }.step(&state).1);
        block - rejection
    };
    let more = ORDINARY.filter(|&seed| gain(seed) > 0.01).count();
    assert!(more >= 10, "{more} worlds");
}

#[test]
fn planted_bugs_are_found() {
    const NEVER: f64 = 0.0;
    for (bug, rejection, block) in [
        (Bug::ResidualNotClamped, 0.2, 0.2),
        (Bug::NoResidual, 0.1, 0.1),
        (Bug::DraftNotWarped, 0.05, 0.05),
        // For `rejection`, this planted bug is harmless: P is always 1, and no uniform number after the first rejection
        // is used.
        (Bug::ResidualWithoutPrefix, NEVER, 0.02),
        (Bug::PositionKeyed, NEVER, 0.02),
    ] {
        for (rule, least) in [(Rule::Rejection, rejection), (Rule::Block, block)] {
            let error = largest_error(rule, Some(bug), |_| ());
            let found = if least == NEVER { error < TOLERANCE } else { error > least };
            assert!(found, "{rule:?}, {bug:?}: total variation {error}");
        }
    }
    for rule in [Rule::Rejection, Rule::Block] {
        assert!(largest_error(rule, None, |_| ()) < TOLERANCE);
        let masked = |world: &mut World| {
            world.vocab = 3;
            world.processors_on_drafts = true;
            world.processors.logit_bias = [(0, 1.0)].into();
            world.processors.allowed = Some(all_but(2, 3));
        };
        assert!(largest_error(rule, None, masked) < TOLERANCE);
        assert!(largest_error(rule, None, |world| world.row_mask = Some(no_repeats)) < TOLERANCE);
        let error = largest_error(rule, Some(Bug::DraftNotEdited), masked);
        assert!(error > 0.05, "{rule:?}, a draft that was drawn after bias and mask: {error}");
        let error = largest_error(rule, None, |world| world.verify_len = VerifyLen::OwnDraft);
        assert!(error > 0.1, "{rule:?}, a verify length that knows the draft token: {error}");
        for drafter in [Drafter::Certain, Drafter::Following] {
            assert!(largest_error(rule, None, |world| world.drafter = drafter) < TOLERANCE);
        }
        let error =
            largest_error(rule, Some(Bug::ForgetsItsTokens), |world| world.drafter = Drafter::Following);
        assert!(error > 0.1, "{rule:?}, distributions after other tokens: {error}");
    }
}

//! The acceptance rules leave the target's distribution unchanged, checked by summation over every draft, every
//! outcome of the tests and every bonus token, over two consecutive steps.

use flexdraft_reference::accept::{
    Verdict, block, block_test_probabilities, block_weights, rejection, rejection_test_probabilities,
    rejection_weights,
};
use flexdraft_reference::process::{History, Processors, process, process_draft};
use flexdraft_reference::warp::{Warping, warp};
use proptest::prelude::*;

use crate::common::{any_processors, grammar};
use crate::properties::properties;

const VOCAB: usize = 3;
/// Length of the compared token sequences: the largest number of tokens that two steps of two draft tokens emit.
const HORIZON: usize = 6;
/// The prompt, which the logit processors see before the tokens that are compared.
const PROMPT: [u32; 2] = [2, 0];

type Row = Vec<f64>;

/// A target and a drafter as arbitrary functions of the tokens so far.
#[derive(Clone, Debug)]
struct World {
    p: Vec<Row>,
    q: Vec<Row>,
    /// True if the draft distribution of slot 1 is the target's own.
    first_slot_is_exact: bool,
    /// Processors of the target's logits.
    processors: Processors,
    /// Whether bias and mask of the processors change the drafter's logits too.
    processors_on_drafts: bool,
    /// Warping of both distributions.
    warping: Warping,
    /// The number of tokens at the end of a row's history that the processors do not see: 0, unless a mistake is
    /// planted.
    unseen: usize,
    salt: u64,
}

impl World {
    fn pick(&self, context: &[u32], kind: u64, len: usize) -> usize {
        let hash = context.iter().fold(self.salt ^ kind, |hash, &token| {
            (hash ^ u64::from(token + 1)).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(23)
        });
        (hash % len as u64) as usize
    }

    /// Returns the target's distribution after `context`.
    fn target(&self, context: &[u32]) -> Row {
        self.target_row(context, context.len())
    }

    /// Returns the target's distribution after `context`, if the processors see the first `seen` tokens of it.
    fn target_row(&self, context: &[u32], seen: usize) -> Row {
        let tokens = [&PROMPT[..], &context[..seen]].concat();
        let history = History { tokens: &tokens, prompt_len: PROMPT.len(), end_ids: &[1] };
        let logits = logits(&self.p[self.pick(context, 0, self.p.len())]);
        warp(&process(&logits, &self.processors, history), &self.warping).probabilities
    }

    /// Returns the draft distributions of slots 1..=len after `context`; the slots do not see each other's tokens.
    fn draft(&self, context: &[u32], len: usize) -> Vec<Row> {
        (1..=len)
            .map(|slot| match slot {
                1 if self.first_slot_is_exact => self.target(context),
                _ => {
                    let q = logits(&self.q[self.pick(context, slot as u64, self.q.len())]);
                    let q = if self.processors_on_drafts { process_draft(&q, &self.processors) } else { q };
                    warp(&q, &self.warping).probabilities
                }
            })
            .collect()
    }

    /// Returns the next verify length, which depends only on the tokens that are known before the draft tokens are
    /// drawn.
    fn verify_len(&self, context: &[u32]) -> usize {
        [2, 2, 1, 0][self.pick(context, 99, 4)]
    }
}

/// Returns the logits of a distribution.
fn logits(distribution: &[f64]) -> Row {
    distribution.iter().map(|p| p.ln()).collect()
}

/// Returns the effect of a rule on one draft: the probability of each accepted length 0..=v, and the weights of the
/// bonus token after each length.
pub type Law = fn(&[Row], &[Row], &[u32]) -> Vec<(f64, Row)>;

pub fn rejection_law(p: &[Row], q: &[Row], draft: &[u32]) -> Vec<(f64, Row)> {
    let tests = rejection_test_probabilities(p, q, draft);
    (0..=draft.len())
        .map(|a| {
            let passed: f64 = tests[..a].iter().product();
            (passed * (1.0 - tests.get(a).unwrap_or(&0.0)), rejection_weights(p, q, a))
        })
        .collect()
}

pub fn block_law(p: &[Row], q: &[Row], draft: &[u32]) -> Vec<(f64, Row)> {
    let tests = block_test_probabilities(p, q, draft);
    (0..=draft.len())
        .map(|a| {
            let failed_after: f64 = tests[a..].iter().map(|test| 1.0 - test).product();
            let passed = if a == 0 { 1.0 } else { tests[a - 1] };
            (passed * failed_after, block_weights(p, q, draft, a))
        })
        .collect()
}

/// Returns every sequence of `len` tokens.
fn sequences(len: usize) -> Vec<Vec<u32>> {
    (0..VOCAB.pow(len as u32))
        .map(|code| (0..len).map(|i| (code / VOCAB.pow(i as u32) % VOCAB) as u32).collect())
        .collect()
}

fn rows_after(world: &World, context: &[u32], draft: &[u32]) -> Vec<Row> {
    let row = |i: usize| {
        world.target_row(&[context, &draft[..i]].concat(), context.len() + i.saturating_sub(world.unseen))
    };
    (0..=draft.len()).map(row).collect()
}

/// How a step's draft tokens are drawn and verified. `drawn` maps the draft distributions that the rule is given to the
/// distributions that tokens are drawn from. The two are equal, unless a mistake is planted.
#[derive(Clone, Copy)]
struct Step {
    law: Law,
    drawn: fn(&[f64]) -> Row,
}

impl Step {
    fn new(law: Law) -> Self {
        Self { law, drawn: <[f64]>::to_vec }
    }
}

/// Adds to `emitted` the distribution of the first `HORIZON` tokens after the empty context, if the next `steps`
/// steps are speculative and the target itself draws the remaining tokens.
fn emit(world: &World, step: Step, context: &[u32], mass: f64, steps: usize, emitted: &mut [f64]) {
    if mass == 0.0 {
        return;
    }
    if context.len() == HORIZON {
        let code = context.iter().rev().fold(0, |code, &token| code * VOCAB + token as usize);
        emitted[code] += mass;
        return;
    }
    let verify_len = if steps > 0 { world.verify_len(context) } else { 0 };
    let q = world.draft(context, verify_len);
    for draft in sequences(verify_len) {
        let drafted: f64 = q.iter().zip(&draft).map(|(q, &d)| (step.drawn)(q)[d as usize]).product();
        let p = rows_after(world, context, &draft);
        if drafted == 0.0 {
            continue;
        }
        for (a, (accepted, weights)) in (step.law)(&p, &q, &draft).into_iter().enumerate() {
            let total: f64 = weights.iter().sum();
            for (bonus, weight) in weights.iter().enumerate() {
                let next = [context, &draft[..a], &[bonus as u32]].concat();
                let mass = mass * drafted * accepted * weight / total;
                emit(world, step, &next, mass, steps.saturating_sub(1), emitted);
            }
        }
    }
}

/// Returns the largest difference between a sequence's probability under the target and the probability that it is
/// emitted.
fn bias(world: &World, step: Step) -> f64 {
    bias_against(world, world, step)
}

/// Returns the same for the probabilities of another target.
fn bias_against(target: &World, world: &World, step: Step) -> f64 {
    let mut emitted = vec![0.0; VOCAB.pow(HORIZON as u32)];
    emit(world, step, &[], 1.0, 2, &mut emitted);
    let expected = |sequence: &[u32]| -> f64 {
        (0..HORIZON).map(|i| target.target(&sequence[..i])[sequence[i] as usize]).product()
    };
    let differences = sequences(HORIZON).into_iter().zip(&emitted);
    differences.map(|(sequence, &mass)| (expected(&sequence) - mass).abs()).fold(0.0, f64::max)
}

/// Returns the expected number of accepted draft tokens in one step of two draft tokens.
fn expected_accepted(world: &World, law: Law) -> f64 {
    let q = world.draft(&[], 2);
    let mut expected = 0.0;
    for draft in sequences(2) {
        let drafted = q[0][draft[0] as usize] * q[1][draft[1] as usize];
        if drafted > 0.0 {
            let lengths = law(&rows_after(world, &[], &draft), &q, &draft);
            expected += lengths.iter().enumerate().map(|(a, (p, _))| drafted * p * a as f64).sum::<f64>();
        }
    }
    expected
}

/// Generates random distributions, including some with zeros and one-hots.
fn row() -> impl Strategy<Value = Row> {
    let weight = prop_oneof![1 => Just(0.0), 3 => 0.01..1.0f64];
    prop_oneof![
        4 => prop::collection::vec(weight, VOCAB)
            .prop_filter("some mass", |weights| weights.iter().sum::<f64>() > 0.0)
            .prop_map(|weights| {
                let total: f64 = weights.iter().sum();
                weights.iter().map(|w| w / total).collect()
            }),
        1 => (0..VOCAB).prop_map(|hot| (0..VOCAB).map(|id| f64::from(u8::from(id == hot))).collect()),
    ]
}

fn processors() -> impl Strategy<Value = Processors> {
    prop_oneof![1 => Just(Processors::OFF), 2 => any_processors(VOCAB)]
}

fn warping() -> impl Strategy<Value = Warping> {
    let top_p = prop_oneof![2 => Just(1.0), 1 => 0.2..1.0f64];
    let min_p = prop_oneof![2 => Just(0.0), 1 => 0.0..0.9f64];
    let temperature = prop_oneof![1 => Just(1.0), 1 => 0.3..3.0f64];
    (temperature, 0..=VOCAB, top_p, min_p).prop_map(|(temperature, top_k, top_p, min_p)| Warping {
        temperature,
        top_k,
        top_p,
        min_p,
    })
}

fn world() -> impl Strategy<Value = World> {
    let rows = || prop::collection::vec(row(), 1..12);
    let share_rows = prop::bool::weighted(0.3);
    let parameters = (processors(), any::<bool>(), warping());
    (rows(), rows(), any::<bool>(), share_rows, parameters, any::<u64>()).prop_map(
        |(p, mut q, first_slot_is_exact, share_rows, parameters, salt)| {
            if share_rows {
                q.clone_from(&p);
            }
            let (processors, processors_on_drafts, warping) = parameters;
            World { p, q, first_slot_is_exact, processors, processors_on_drafts, warping, unseen: 0, salt }
        },
    )
}

/// Returns a target and drafter whose distributions make planted mistakes of the rules visible.
fn plain_world() -> World {
    World {
        p: vec![vec![0.6, 0.3, 0.1], vec![0.2, 0.5, 0.3], vec![0.1, 0.1, 0.8]],
        q: vec![vec![0.3, 0.3, 0.4], vec![0.5, 0.1, 0.4]],
        first_slot_is_exact: false,
        processors: Processors::OFF,
        processors_on_drafts: false,
        warping: Warping::temperature(1.0),
        unseen: 0,
        salt: 1,
    }
}

proptest! {
    #![proptest_config(properties(256))]

    #[test]
    fn two_steps_leave_the_distribution_unchanged(world in world()) {
        prop_assert!(bias(&world, Step::new(rejection_law)) < 1e-9);
        prop_assert!(bias(&world, Step::new(block_law)) < 1e-9);
    }

    #[test]
    fn block_accepts_no_fewer_tokens_than_rejection(world in world()) {
        let (by_block, by_rejection) =
            (expected_accepted(&world, block_law), expected_accepted(&world, rejection_law));
        prop_assert!(by_block >= by_rejection - 1e-12, "{} below {}", by_block, by_rejection);
    }

    /// The rules decide by their test probabilities: a uniform number below a probability passes the test, a number
    /// above it fails.
    #[test]
    fn rules_pass_their_tests_by_the_probabilities(
        world in world(),
        draft in prop::collection::vec(0..VOCAB as u32, 2),
        wish in prop::collection::vec(any::<bool>(), 2),
    ) {
        let q = world.draft(&[], 2);
        let p = rows_after(&world, &[], &draft);
        prop_assume!(q[0][draft[0] as usize] > 0.0 && q[1][draft[1] as usize] > 0.0);
        let expect = |accepted| Verdict { accepted, bonus: 7 };

        let (uniforms, passes) = uniforms_about(&rejection_test_probabilities(&p, &q, &draft), &wish);
        let verdict = rejection(&p, &q, &draft, &uniforms, |a, weights| {
            assert_eq!(weights, rejection_weights(&p, &q, a));
            7
        });
        prop_assert_eq!(verdict, expect(passes.iter().take_while(|&&pass| pass).count()));

        let (uniforms, passes) = uniforms_about(&block_test_probabilities(&p, &q, &draft), &wish);
        let verdict = block(&p, &q, &draft, &uniforms, |a, weights| {
            assert_eq!(weights, block_weights(&p, &q, &draft, a));
            7
        });
        prop_assert_eq!(verdict, expect(passes.iter().rposition(|&pass| pass).map_or(0, |last| last + 1)));
    }
}

/// Returns uniforms in [0, 1) just below a test's probability if the test should pass, and just above it if not. Also
/// returns which tests pass: a test with probability 0 or 1 ignores the wish.
fn uniforms_about(tests: &[f64], wish: &[bool]) -> (Vec<f64>, Vec<bool>) {
    const MARGIN: f64 = 1e-9;
    let uniform_about = |(&test, &wish): (&f64, &bool)| {
        let pass = test > MARGIN && (wish || test >= 1.0 - MARGIN);
        let uniform = if pass { test - MARGIN } else { test + MARGIN };
        (uniform, pass)
    };
    tests.iter().zip(wish).map(uniform_about).unzip()
}

/// Returns worlds with one sampling parameter each, and its name.
fn one_parameter_each() -> Vec<(&'static str, World)> {
    let one = Warping::temperature(1.0);
    let warpings = [
        ("temperature", Warping::temperature(0.6)),
        ("top-k", Warping { top_k: 2, ..one }),
        ("top-p", Warping { top_p: 0.7, ..one }),
        ("min-p", Warping { min_p: 0.4, ..one }),
    ];
    let off = Processors::OFF;
    let processors = [
        ("repetition", Processors { repetition_penalty: 1.7, ..off.clone() }),
        ("frequency", Processors { frequency_penalty: 0.6, ..off.clone() }),
        ("presence", Processors { presence_penalty: -0.9, ..off.clone() }),
        ("bias", Processors { bias: vec![(0, 1.5), (2, -0.5)], ..off.clone() }),
        ("minimum length", Processors { min_tokens: 4, ..off.clone() }),
        ("bad words", Processors { bad_words: vec![vec![0, 0], vec![1, 2, 1], vec![0, 1]], ..off.clone() }),
        ("bit mask", Processors { mask: Some(vec![0b101]), ..off.clone() }),
        ("bit masks by row", Processors { row_mask: Some(grammar), ..off }),
    ];
    let warped = |(name, warping)| (name, World { warping, ..plain_world() });
    let processed = |(name, processors)| (name, World { processors, ..plain_world() });
    warpings.map(warped).into_iter().chain(processors.map(processed)).collect()
}

#[test]
fn every_sampling_parameter_is_exact_by_itself() {
    for (name, world) in one_parameter_each() {
        assert!(bias(&world, Step::new(rejection_law)) < 1e-12, "{name}");
        assert!(bias(&world, Step::new(block_law)) < 1e-12, "{name}");
        let plain = bias_against(&plain_world(), &world, Step::new(rejection_law));
        assert!(plain > 1e-3, "{name} changes nothing");
    }
}

#[test]
fn a_history_that_lacks_a_rows_own_candidate_shows() {
    let names = ["repetition", "frequency", "presence", "minimum length", "bad words", "bit masks by row"];
    for name in names {
        let (_, world) = one_parameter_each().into_iter().find(|(other, _)| *other == name).unwrap();
        let world = World { unseen: 1, ..world };
        assert!(bias(&world, Step::new(rejection_law)) > 1e-3, "{name}");
        assert!(bias(&world, Step::new(block_law)) > 1e-3, "{name}");
    }
}

#[test]
fn block_accepts_more_tokens_somewhere() {
    let world = plain_world();
    let gain = expected_accepted(&world, block_law) - expected_accepted(&world, rejection_law);
    assert!(gain > 1e-3, "gain {gain}");
}

#[test]
fn a_residual_without_clamping_shows() {
    fn unclamped(weights: Vec<(f64, Row)>, p: &[Row], q: &[Row]) -> Vec<(f64, Row)> {
        let bonus = |a: usize| match q.get(a) {
            Some(q) => p[a].iter().zip(q).map(|(p, q)| (p - q).abs()).collect(),
            None => p[a].clone(),
        };
        weights.into_iter().enumerate().map(|(a, (mass, _))| (mass, bonus(a))).collect()
    }
    let by_rejection: Law = |p, q, draft| unclamped(rejection_law(p, q, draft), p, q);
    let by_block: Law = |p, q, draft| unclamped(block_law(p, q, draft), p, q);
    assert!(bias(&plain_world(), Step::new(by_rejection)) > 1e-3);
    assert!(bias(&plain_world(), Step::new(by_block)) > 1e-3);
}

#[test]
fn a_bonus_from_the_target_instead_of_the_residual_shows() {
    let law: Law = |p, q, draft| {
        rejection_law(p, q, draft)
            .into_iter()
            .enumerate()
            .map(|(a, (mass, _))| (mass, p[a].clone()))
            .collect()
    };
    assert!(bias(&plain_world(), Step::new(law)) > 1e-3);
}

#[test]
fn a_draft_distribution_from_before_warping_shows() {
    /// Cuts the draft's distribution by top-k with k = 2, which the acceptance rule is not told about.
    fn top_2(q: &[f64]) -> Row {
        let least = (0..VOCAB).min_by(|&a, &b| q[a].total_cmp(&q[b])).unwrap();
        (0..VOCAB).map(|id| if id == least { 0.0 } else { q[id] / (1.0 - q[least]) }).collect()
    }
    for law in [rejection_law, block_law] {
        assert!(bias(&plain_world(), Step { law, drawn: top_2 }) > 1e-3);
    }
}

/// The drafts are drawn after the bias and the mask, which the acceptance rule must be told about.
#[test]
fn a_draft_distribution_from_before_bias_and_mask_shows() {
    fn biased() -> Processors {
        Processors { bias: vec![(1, 1.2)], mask: Some(vec![0b011]), ..Processors::OFF }
    }
    fn processed(q: &[f64]) -> Row {
        warp(&process_draft(&logits(q), &biased()), &Warping::temperature(1.0)).probabilities
    }
    for law in [rejection_law, block_law] {
        let world = World { processors: biased(), ..plain_world() };
        assert!(bias(&world, Step { law, drawn: processed }) > 1e-3);
        let world = World { processors_on_drafts: true, ..world };
        assert!(bias(&world, Step::new(law)) < 1e-12);
    }
}

#[test]
fn an_acceptance_that_always_passes_shows() {
    let law: Law = |p, q, draft| {
        let mut law = rejection_law(p, q, draft);
        law.iter_mut().enumerate().for_each(|(a, (mass, _))| *mass = f64::from(u8::from(a == draft.len())));
        law
    };
    assert!(bias(&plain_world(), Step::new(law)) > 1e-3);
}

//! Tests of the reports that policies receive, and of the limits of their choices.

use std::sync::{Arc, Mutex};

use flexdraft::acceptance::Rule;
use flexdraft::decode::{
    BatchView, BlockRecord, Choice, ComparedToken, Confidence, Flex, Mode, Policy, Record, Request,
    SequenceStep, StepView,
};
use flexdraft::layout::GroupSet;
use flexdraft::sampling::SamplingParams;

use crate::support::models::Spec;
use crate::support::runs::{engine, run};

type Steps = Arc<Mutex<Vec<Vec<SequenceStep>>>>;

/// A policy that drafts or not, always reports that it drafts, and stores the reports that it receives.
struct Spy {
    draft: bool,
    steps: Steps,
}

impl Policy for Spy {
    fn choose(&mut self, batch: &BatchView<'_>) -> Vec<Choice> {
        let choice = |view| Choice { draft: self.draft, ..Choice::drafting(view, GroupSet::NONE) };
        batch.sequences.iter().map(choice).collect()
    }

    fn observe(&mut self, step: &StepView<'_>) {
        assert!(step.seconds >= 0.0);
        self.steps.lock().unwrap().push(step.sequences.to_vec());
    }

    fn name(&self) -> &'static str {
        "spy"
    }
}

/// A policy that drafts in one step of six and verifies one token of every second draft. It stores the reports that it receives.
struct Seldom {
    step: usize,
    steps: Steps,
}

impl Policy for Seldom {
    fn choose(&mut self, batch: &BatchView<'_>) -> Vec<Choice> {
        let draft = self.step.is_multiple_of(6);
        let verify_len = self.step / 6 % 2;
        self.step += 1;
        let choice = |_| Choice { verify_len, groups: GroupSet::NONE, draft };
        batch.sequences.iter().map(choice).collect()
    }

    fn observe(&mut self, step: &StepView<'_>) {
        self.steps.lock().unwrap().push(step.sequences.to_vec());
    }

    fn name(&self) -> &'static str {
        "seldom"
    }
}

/// Returns the comparisons that each step after the prompt must report: of the draft tokens that no step verified with the
/// tokens of the output.
fn comparisons(records: &[Record]) -> Vec<Option<ComparedToken>> {
    let mut pending: Option<(&BlockRecord, usize)> = None;
    let mut found = Vec::new();
    for record in records {
        let next = match record {
            Record::Prefill(next) => next,
            Record::Step(step) => {
                let rest = pending.take().filter(|_| step.accepted == step.verify_len);
                let compared = rest.and_then(|(block, slot)| {
                    let slot = slot + step.verify_len;
                    let is_equal = *block.draft.get(slot)? == step.next.bonus;
                    pending = is_equal.then_some((block, slot + 1));
                    Some(ComparedToken { slot, confidence: block.confidence[slot], is_equal })
                });
                found.push(compared);
                &step.next
            }
        };
        if !next.draft.is_empty() {
            pending = Some((next, 0));
        }
    }
    found
}

#[test]
fn draft_tokens_that_no_step_verified_are_compared_with_the_output() {
    for (rule, temperature, compares) in
        [(Rule::Rejection, 0.0, true), (Rule::Match, 1.0, true), (Rule::Rejection, 1.0, false)]
    {
        let (mut equal, mut different) = (0, 0);
        for seed in 0..8 {
            // With few tokens, even the drafts of a random model are sometimes right.
            let spec = Spec { vocab: 4, gain: 0.5, seed, ..Spec::default() };
            let steps = Steps::default();
            let policy = Seldom { step: 0, steps: steps.clone() };
            let request = Request { rule, ..request(3, temperature) };
            let output = run(&mut engine(&spec, policy), vec![request]).remove(0);
            let found: Vec<Option<ComparedToken>> =
                steps.lock().unwrap().iter().flatten().skip(1).map(|step| step.compared).collect();
            if !compares {
                assert_eq!(found, vec![None; found.len()]);
                continue;
            }
            assert_eq!(found, comparisons(&output.records));
            equal += found.iter().flatten().filter(|compared| compared.is_equal).count();
            different += found.iter().flatten().filter(|compared| !compared.is_equal).count();
        }
        assert!(!compares || equal > 0 && different > 0, "{equal} equal, {different} different");
    }
}

fn request(prompt_len: usize, temperature: f32) -> Request {
    Request {
        record: true,
        rule: Rule::Rejection,
        sampling: SamplingParams::at_temperature(temperature),
        confidence: Confidence { threshold: 0.0, ..Confidence::default() },
        ..Request::new((0..prompt_len as u32).collect(), 20)
    }
}

#[test]
fn every_step_is_reported_as_it_happened() {
    for draft in [true, false] {
        let steps = Steps::default();
        let mut engine = engine(&Spec::default(), Spy { draft, steps: steps.clone() });
        let output = run(&mut engine, vec![request(3, 0.0)]).remove(0);
        // The first step of a request reads the prompt and has no mode.
        let prompt = SequenceStep {
            index: 0,
            mode: None,
            cached: 0,
            candidates: 3,
            groups: 0,
            block_size: Spec::default().block_size,
            had_draft: false,
            drafted: draft,
            drafted_apart: draft,
            committed: 1,
            compared: None,
        };
        let mut expected = vec![prompt];
        expected.extend(output.records.iter().filter_map(|record| match record {
            Record::Prefill(_) => None,
            Record::Step(step) => Some(SequenceStep {
                mode: Some(step.mode),
                cached: step.position,
                candidates: step.verify_len + 1,
                had_draft: draft,
                committed: step.accepted + 1,
                ..prompt
            }),
        }));
        let found: Vec<SequenceStep> = steps.lock().unwrap().iter().flatten().copied().collect();
        assert!(found.len() > 1);
        assert_eq!(found, expected);
    }
}

#[test]
fn what_tokens_depend_on_is_not_for_policies_to_choose() {
    // With `rejection`, tokens depend on the verified drafts; with greedy decoding they do not.
    for (temperature, drafted) in [(1.0, true), (0.0, false)] {
        let steps = Steps::default();
        let requests = vec![request(5, temperature)];
        run(&mut engine(&Spec::default(), Spy { draft: false, steps: steps.clone() }), requests);
        let steps = steps.lock().unwrap();
        assert!(steps.len() > 1);
        assert!(steps.iter().flatten().all(|sequence| sequence.drafted == drafted), "{temperature}");
    }
}

#[test]
fn statistics_have_the_durations_that_the_policy_expected() {
    let mut flex = engine(&Spec::default(), Flex::default());
    assert_eq!(flex.stats().step_times, None);
    run(&mut flex, vec![request(5, 0.0)]);
    let times = flex.stats().step_times.unwrap();
    assert!(times.expected_seconds > 0.0 && times.seconds > 0.0 && times.median_error >= 0.0, "{times:?}");
    let mut fixed = engine(&Spec::default(), Mode::Sequential);
    run(&mut fixed, vec![request(5, 0.0)]);
    assert_eq!(fixed.stats().step_times, None);
}

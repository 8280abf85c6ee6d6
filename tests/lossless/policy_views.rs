//! Tests of the reports that policies receive, and of the limits of their choices.

use std::sync::{Arc, Mutex};

use flexdraft::acceptance::Rule;
use flexdraft::decode::{
    BatchView, Choice, Confidence, Flex, Mode, Policy, Record, Request, SequenceStep, StepView,
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

//! Steps that decode without drafts and without comparing alternatives, because drafts were clearly not worth their
//! time in earlier steps.
//!
//! Comparing plans before every step cost a small model, whose step takes a few hundred microseconds, up to a tenth of
//! its speed (`replay/README.md`, "Real runs"), probably because the threads that compute the step go to sleep
//! meanwhile. Drafts that cost more than they gain seldom become worth their time from one step to the next, so most
//! comparisons can be skipped.

use super::choice::{BatchPlan, DraftingWay};
use crate::decode::explanation::Alternative;
use crate::decode::policy::SequenceView;

/// The margin of worth by which a step without drafts has to beat every other step, as a fraction of the tokens that
/// its time would yield otherwise.
const FAR: f64 = 0.1;

/// The largest number of steps between two comparisons.
const LONGEST: usize = 12;

/// For how many comparisons decoding without drafts was better by far, and for how many further steps comparisons are
/// skipped.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Settled {
    /// Number of sequences of the last comparison.
    sequences: usize,
    /// Number of comparisons in a row that decoding without drafts won by far.
    wins: usize,
    /// Number of further steps without a comparison.
    left: usize,
}

impl Settled {
    /// Records a comparison: the alternatives with the index of the chosen plan among them, and the price of time in tokens
    /// per second.
    pub(super) fn compared(
        &mut self,
        sequences: usize,
        plan: &BatchPlan,
        (alternatives, chosen): (&[Alternative], usize),
        price: f64,
    ) {
        let least = plan.worth(price) - FAR * price * plan.seconds;
        let is_far = |(index, other): (usize, &Alternative)| {
            index == chosen || other.tokens - price * other.seconds < least
        };
        let by_far = plan.drafting == DraftingWay::None && alternatives.iter().enumerate().all(is_far);
        self.wins = if by_far { self.wins + 1 } else { 0 };
        self.left = self.wins.min(LONGEST);
        self.sequences = sequences;
    }

    /// Returns whether the next step decodes without drafts and without a comparison. This needs a batch in which every
    /// sequence decodes one token, with the same number of sequences as in the last comparison.
    pub(super) fn goes_on(&mut self, views: &[SequenceView<'_>]) -> bool {
        let plain = |view: &SequenceView<'_>| {
            let is_free = view.verify_len_is_free || !view.may_draft;
            is_free && view.reads == 0 && view.draws && !view.proposes && view.confidence.is_empty()
        };
        if self.left == 0 || views.len() != self.sequences || !views.iter().all(plain) {
            self.left = 0;
            return false;
        }
        self.left -= 1;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::LONGEST;
    use crate::decode::explanation::Reason;
    use crate::decode::flex::{CostModel, Flex, StepShape};
    use crate::decode::policy::{BatchView, Choice, Policy, SequenceStep, SequenceView, StepView};
    use crate::decode::record::StepMode;

    fn view() -> SequenceView<'static> {
        SequenceView {
            position: 100,
            block_size: 8,
            draws: true,
            may_draft: true,
            wanted: 100,
            verify_len: 7,
            verify_len_is_free: true,
            ..SequenceView::default()
        }
    }

    /// Returns a policy with the cost model of a machine on which rows are so expensive that no draft pays.
    fn policy() -> Flex {
        let mut cost = CostModel::default();
        for candidates in [1, 2, 4, 8, 16] {
            for draft_rows in [0, 8] {
                let shape = StepShape { sequences: 1, candidates, draft_rows, ..StepShape::default() };
                let rows = (candidates + draft_rows) as f64;
                (0..20).for_each(|_| cost.observe(&shape, 1e-3 * rows));
            }
        }
        Flex::new(cost)
    }

    /// Takes a step. Returns the choice for the first sequence and whether steps were compared.
    fn step(flex: &mut Flex, views: &[SequenceView<'_>]) -> (Choice, bool) {
        let choices = flex.choose(&BatchView { sequences: views, groups_allowed: true });
        let ran = |(index, choice): (usize, &Choice)| SequenceStep {
            index,
            mode: Some(StepMode::Autoregressive),
            cached: 100,
            candidates: choice.verify_len + 1,
            block_size: 8,
            drafted: choice.draft,
            drafted_apart: choice.draft,
            committed: 1,
            ..SequenceStep::default()
        };
        let sequences: Vec<SequenceStep> = choices.iter().enumerate().map(ran).collect();
        let rows: usize = sequences.iter().map(|ran| ran.candidates + 8 * usize::from(ran.drafted)).sum();
        flex.observe(&StepView { seconds: 1e-3 * rows as f64, sequences: &sequences });
        let reason = flex.explanation().unwrap().reason;
        (choices[0], reason != Reason::Settled)
    }

    #[test]
    fn steps_are_compared_less_often_while_drafts_do_not_pay() {
        let mut flex = policy();
        let compared: Vec<bool> = (0..200).map(|_| step(&mut flex, &[view()]).1).collect();
        assert!(compared[0], "the first step has nothing to go on from");
        let share = compared[100..].iter().filter(|&&compared| compared).count();
        assert!((100 / (LONGEST + 1)..25).contains(&share), "{share} of the last 100 steps were compared");
    }

    #[test]
    fn what_changes_the_batch_is_compared_at_once() {
        let confidence = [0.5; 7];
        let changes: [(&str, Vec<SequenceView<'_>>); 5] = [
            ("another sequence", vec![view(), view()]),
            ("a prompt", vec![SequenceView { reads: 9, ..view() }]),
            ("a proposer", vec![SequenceView { proposes: true, ..view() }]),
            ("a pending draft", vec![SequenceView { confidence: &confidence, ..view() }]),
            ("a draft that must be made", vec![SequenceView { verify_len_is_free: false, ..view() }]),
        ];
        for (what, views) in &changes {
            let mut flex = policy();
            // The step after a comparison skips comparing, so the change occurs at such a step.
            while step(&mut flex, &[view()]).1 {}
            let (choice, compared) = step(&mut flex, views);
            assert!(compared, "{what}");
            assert!(views[0].verify_len_is_free || choice.draft, "{what}: the draft must be made");
        }
    }
}

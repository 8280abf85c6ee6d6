//! The tokens that a step draws, and the mask groups that it drafts from.

use super::plan::SequencePlan;
use crate::decode::sequence::Sequence;
use crate::device::SlotRows;
use crate::layout::GroupSet;

/// A reference to a plan that draws a token from the target's logits, so that the verification gives it a verdict.
#[derive(Clone, Copy, Debug)]
pub(super) struct Draw {
    /// Index of the plan among all plans of the step.
    pub(super) plan: usize,
    /// Index of the plan's verdict among all verdicts of the step.
    pub(super) verdict: usize,
    /// The row of the joint pass with the first candidate whose logits are used: the bonus token, or a prompt's last
    /// token.
    pub(super) first_candidate: usize,
    /// The row of this candidate's logits among the target's logits. The rows of the draft tokens follow.
    pub(super) first_logits: usize,
}

impl Draw {
    /// Returns references to all plans that draw a token, in order.
    pub(super) fn all(plans: &[SequencePlan]) -> Vec<Self> {
        let (mut candidates, mut logits, mut draws) = (0, 0, Vec::new());
        for (plan, of) in plans.iter().enumerate() {
            if of.draws() {
                draws.push(Self {
                    plan,
                    verdict: draws.len(),
                    first_candidate: candidates + of.certain(),
                    first_logits: logits,
                });
                logits += of.rows() - of.certain();
            }
            candidates += of.rows();
        }
        draws
    }

    /// Returns the number of tokens in a drafted block of the plan's sequence: S − 1.
    pub(super) fn drafted<B>(self, sequences: &[Sequence<B>], plans: &[SequencePlan]) -> usize {
        sequences[plans[self.plan].sequence].block_size.saturating_sub(1)
    }
}

/// The mask groups of one sequence in the joint pass or in a drafting pass.
#[derive(Clone, Debug)]
pub(super) struct Drafting {
    /// The plan whose bonus token the draft follows.
    pub(super) draw: Draw,
    /// The accepted lengths, as the verdict counts them, each with a mask group that drafts the tokens after it. Empty
    /// if the only group is for whatever length is accepted.
    pub(super) lengths: GroupSet,
    /// The first row of the first group, among the rows that `rows` names.
    pub(super) first_row: usize,
    /// Whether `first_row` counts rows of the pass or rows of the logits.
    pub(super) rows: SlotRows,
    /// Index of the draft's first token among all draft tokens of the step, once the draft has a place.
    pub(super) first_draw: usize,
}

impl Drafting {
    /// Makes the entry for the groups of one sequence that are rows of a pass, from `first_row` on.
    pub(super) fn in_pass(draw: Draw, lengths: GroupSet, first_row: usize) -> Self {
        let rows = SlotRows::Pass { first_logits: 0 };
        Self { draw, lengths, first_row, rows, first_draw: 0 }
    }

    /// Returns the number of accepted lengths that have a mask group.
    pub(super) fn count(&self) -> usize {
        self.lengths.iter().count()
    }

    /// Returns whether there is a mask group for the accepted length `accepted`.
    pub(super) fn has(&self, accepted: usize) -> bool {
        self.lengths.is_empty() || self.lengths.contains(accepted)
    }

    /// Returns the row of logits from which the first of `drafted` draft tokens was drawn, for the accepted length
    /// `accepted`.
    pub(super) fn logits_row(&self, accepted: usize, drafted: usize) -> usize {
        match self.rows {
            SlotRows::Pass { first_logits } => first_logits,
            SlotRows::Logits => {
                let rank = self.lengths.iter().position(|k| k == accepted).unwrap_or(0);
                self.first_row + rank * drafted
            }
        }
    }
}

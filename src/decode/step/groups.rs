//! The tokens that a step draws, and the mask groups that it drafts from.

use super::plan::SequencePlan;
use crate::decode::sequence::Sequence;
use crate::device::SlotRows;
use crate::layout::GroupSet;

/// A plan that draws a token, so that the verification has a verdict for it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Draw {
    /// Index of the plan.
    pub(super) plan: usize,
    /// Index of the verdict.
    pub(super) verdict: usize,
    /// The first candidate that is verified, as a row of the pass.
    pub(super) first_candidate: usize,
    /// The row of the target's logits for that candidate. The other candidates' rows follow.
    pub(super) first_logits: usize,
}

impl Draw {
    /// Returns the draws of a step, in the order of the plans.
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

    /// Returns the number of tokens that a block of the draw's sequence drafts: S − 1.
    pub(super) fn drafted<B>(self, sequences: &[Sequence<B>], plans: &[SequencePlan]) -> usize {
        sequences[plans[self.plan].sequence].block_size.saturating_sub(1)
    }
}

/// The groups of one sequence in the pass that ran last.
#[derive(Clone, Debug)]
pub(super) struct Drafting {
    /// The token that the draft follows.
    pub(super) draw: Draw,
    /// The accepted lengths that the groups are for, as the verdict counts them. Empty if the only group is for
    /// whatever length is accepted.
    pub(super) lengths: GroupSet,
    /// The first row of the first group.
    pub(super) first_row: usize,
    /// Whether the groups have rows of the pass or of the logits.
    pub(super) rows: SlotRows,
    /// The place of the draft among the step's draws, once it has been drawn.
    pub(super) first_draw: usize,
}

impl Drafting {
    /// Groups that are rows of the pass.
    pub(super) fn in_pass(draw: Draw, lengths: GroupSet, first_row: usize) -> Self {
        let rows = SlotRows::Pass { first_logits: 0 };
        Self { draw, lengths, first_row, rows, first_draw: 0 }
    }

    /// Returns the number of groups.
    pub(super) fn count(&self) -> usize {
        self.lengths.iter().count()
    }

    /// Returns whether there is a group for `accepted`.
    pub(super) fn has(&self, accepted: usize) -> bool {
        self.lengths.is_empty() || self.lengths.contains(accepted)
    }

    /// Returns the row of the logits that the first of `drafted` tokens after `accepted` was drawn from.
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

//! The prospects of a sequence: the properties that the choice of a step depends on.

use crate::layout::GroupSet;

/// The properties of a sequence that the choice depends on.
#[derive(Clone, Debug, Default)]
pub(super) struct Prospect {
    /// Number of prompt rows that the step computes; 0 if the sequence decodes.
    pub(super) reads: usize,
    /// Number of cached positions.
    pub(super) cached: usize,
    /// S: the block size.
    pub(super) slots: usize,
    /// The verify length, if the batch may not choose it.
    pub(super) fixed: Option<usize>,
    /// The chance that the first j + 1 draft tokens are all accepted, for each slot j from 0 on.
    pub(super) survival: Vec<f32>,
    /// The value of the next draft in tokens, if it may be made.
    pub(super) value: Option<f64>,
    /// Whether the drafter may make the next draft.
    pub(super) may_draft: bool,
    /// Whether the next draft must be made.
    pub(super) must_draft: bool,
    /// Whether the step draws a token.
    pub(super) draws: bool,
}

impl Prospect {
    fn survival_to(&self, length: usize) -> f32 {
        if length == 0 { 1.0 } else { self.survival.get(length - 1).copied().unwrap_or(0.0) }
    }

    /// Returns the chance that exactly `length` draft tokens are accepted, if `verified` are verified.
    fn chance_of(&self, length: usize, verified: usize) -> f32 {
        let reached = self.survival_to(length);
        if length >= verified { reached } else { reached - self.survival_to(length + 1) }
    }

    /// Returns the accepted lengths whose chance is at least `least`, and the chance that the accepted length is another.
    pub(super) fn groups(&self, verified: usize, least: f32) -> (GroupSet, f32) {
        let chosen: GroupSet =
            (0..=verified).filter(|&length| self.chance_of(length, verified) >= least).collect();
        let hit: f32 = chosen.iter().map(|length| self.chance_of(length, verified)).sum();
        (chosen, (1.0 - hit).clamp(0.0, 1.0))
    }
}

/// A draft token that may be verified.
#[derive(Clone, Copy, Debug)]
pub(super) struct VerifiableToken {
    /// The chance that the token and all earlier tokens of its draft are accepted.
    pub(super) chance: f32,
    /// The chance that all earlier tokens of the draft are accepted.
    pub(super) chance_before: f32,
    /// Index of the sequence.
    pub(super) sequence: usize,
    /// The verify length that includes the token and no later token.
    pub(super) length: usize,
}

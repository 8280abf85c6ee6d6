//! A sweep over growing verify lengths, which keeps up the rows of a step that drafts in its verification pass.
//!
//! The sweep takes the draft tokens of a batch one by one, by descending chance. Each token changes the mask groups of one
//! sequence only, so a step of the sweep costs the same for every batch size.

use super::cost::{CostModel, StepShape};
use super::prospect::{Prospect, VerifiableToken};

/// The chance of a sequence's mask groups below which the logarithm does not fall further.
const LEAST_HIT: f64 = 1e-9;

/// The chance that a step needs a drafting pass, below which the step is expected to have none.
const LEAST_MISS: f64 = 1e-4;

/// The mask groups of one sequence.
#[derive(Clone, Copy, Debug, Default)]
struct SequenceGroups {
    /// Number of groups.
    count: usize,
    /// The chance that the accepted length has no group.
    miss: f32,
    /// The logarithm of the chance that the accepted length has a group.
    log_hit: f64,
}

impl SequenceGroups {
    /// Returns the groups with another number and another chance. Most changes leave the chance as it is, and a logarithm
    /// takes longer than the rest of the change.
    fn with(self, count: usize, miss: f32) -> Self {
        let log_hit =
            if miss == self.miss { self.log_hit } else { (1.0 - f64::from(miss)).max(LEAST_HIT).ln() };
        Self { count, miss, log_hit }
    }
}

/// The rows of a step with mask groups, and the chances that a drafting pass is needed, while verify lengths grow.
#[derive(Debug)]
pub(super) struct Sweep<'a> {
    prospects: &'a [Prospect],
    /// The chance below which an accepted length has no group.
    least: f32,
    /// The groups of each sequence; `None` if the sequence does not draft.
    groups: Vec<Option<SequenceGroups>>,
    shape: StepShape,
    /// The logarithm of the chance that no sequence needs a drafting pass.
    hit: f64,
    /// The expected rows and cached positions of the drafting pass.
    missed_rows: f64,
    missed_cached: f64,
}

impl<'a> Sweep<'a> {
    /// Begins with the step `base`, in which the sequences `drafting` also draft in the verification pass, with groups for all
    /// accepted lengths of at least the chance `least`. `verify_lens` has the verify lengths of the step `base`.
    pub(super) fn new(
        prospects: &'a [Prospect],
        (base, verify_lens): (&StepShape, &[usize]),
        drafting: &[usize],
        least: f32,
    ) -> Self {
        let groups = vec![None; prospects.len()];
        let mut sweep =
            Self { prospects, least, groups, shape: *base, hit: 0.0, missed_rows: 0.0, missed_cached: 0.0 };
        for &index in drafting {
            let (set, miss) = prospects[index].groups(verify_lens[index], least);
            sweep.change(
                index,
                SequenceGroups::default(),
                SequenceGroups::default().with(set.iter().count(), miss),
            );
        }
        sweep
    }

    /// Verifies one more token.
    pub(super) fn take(&mut self, token: &VerifiableToken) {
        self.shape.candidates += 1;
        let Some(groups) = self.groups[token.sequence] else { return };
        // Verifying one more token splits the chance of the longest accepted length in two.
        let (all, longest) = (token.chance_before, token.chance);
        let shorter = all - longest;
        let has_group = |chance: f32| chance >= self.least;
        let count = groups.count - usize::from(has_group(all))
            + usize::from(has_group(shorter))
            + usize::from(has_group(longest));
        let left_out = |chance: f32| if has_group(chance) { 0.0 } else { chance };
        let miss = groups.miss - left_out(all) + left_out(shorter) + left_out(longest);
        self.change(token.sequence, groups, groups.with(count, miss.clamp(0.0, 1.0)));
    }

    /// Replaces the groups of a sequence.
    fn change(&mut self, index: usize, old: SequenceGroups, new: SequenceGroups) {
        let prospect = &self.prospects[index];
        self.groups[index] = Some(new);
        self.shape.mask_rows = self.shape.mask_rows + new.count * prospect.slots - old.count * prospect.slots;
        self.shape.group_cached =
            self.shape.group_cached + new.count * prospect.cached - old.count * prospect.cached;
        if old.miss == 0.0 && new.miss == 0.0 {
            return;
        }
        for (groups, sign) in [(old, -1.0), (new, 1.0)] {
            let miss = sign * f64::from(groups.miss);
            self.hit += sign * groups.log_hit;
            self.missed_rows += miss * prospect.slots as f64;
            self.missed_cached += miss * prospect.cached as f64;
        }
    }

    /// Returns the expected duration in seconds, and the more likely shape.
    pub(super) fn seconds(&self, cost: &CostModel) -> (f64, StepShape) {
        let seconds = cost.seconds(&self.shape);
        let missed = 1.0 - self.hit.min(0.0).exp();
        if missed < LEAST_MISS {
            return (seconds, self.shape);
        }
        // The rows of a drafting pass, if one is needed.
        let rows = (self.missed_rows / missed).max(1.0).round() as usize;
        let cached = (self.missed_cached / missed).round() as usize;
        let with = StepShape { draft_rows: rows, draft_cached: cached, ..self.shape };
        let expected = (1.0 - missed) * seconds + missed * cost.seconds(&with);
        (expected, if missed > 0.5 { with } else { self.shape })
    }
}

//! The choice of a step: verify lengths and group sets of all sequences, by their cost and their gain.
//!
//! The worth of a step is its expected number of tokens, plus the value of the drafts that it makes, minus the price of
//! its duration: the tokens that the same time would yield otherwise. The price of time is the rate that the policy has
//! reached. A step of larger worth than earlier steps therefore raises the rate, and with the rate the price
//! (fractional programming: Dinkelbach 1967).

use super::cost::{CostModel, StepShape};
use crate::decode::explanation::Alternative;
use crate::layout::GroupSet;

/// The probabilities below which a group set leaves an accepted length out; one plan is made for each.
const LEFT_OUT: [f32; 6] = [0.0, 0.003, 0.01, 0.03, 0.1, 0.25];

/// The acceptance probability below which verifying a draft token is not considered.
const LEAST_CHANCE: f32 = 0.004;

/// The maximum number of total verify lengths (sums over the sequences of the batch) that are compared.
const COMPARED: usize = 192;

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
    fn groups(&self, verified: usize, least: f32) -> (GroupSet, f32) {
        let chosen: GroupSet =
            (0..=verified).filter(|&length| self.chance_of(length, verified) >= least).collect();
        let hit: f32 = chosen.iter().map(|length| self.chance_of(length, verified)).sum();
        (chosen, (1.0 - hit).clamp(0.0, 1.0))
    }
}

/// The way in which the step drafts.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum DraftingWay {
    /// No sequence drafts.
    None,
    /// Some sequences draft, in a separate drafting pass.
    Apart,
    /// Sequences draft in the verification pass, for all accepted lengths with at least this chance.
    InPass(f32),
}

impl DraftingWay {
    /// Returns the name of the way in explanations.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::None => "no drafts",
            Self::Apart => "separate drafts",
            Self::InPass(_) => "parallel drafts",
        }
    }
}

/// A plan for a step.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct BatchPlan {
    pub(super) drafting: DraftingWay,
    /// The verify length v of each sequence.
    pub(super) verify_lens: Vec<usize>,
    /// Whether each sequence drafts.
    pub(super) drafts: Vec<bool>,
    /// The group set K of each sequence.
    pub(super) groups: Vec<GroupSet>,
    /// The expected number of tokens plus the value of the drafts, in tokens.
    pub(super) tokens: f64,
    /// The expected duration in seconds.
    pub(super) seconds: f64,
    /// The rows that the plan expects to run.
    pub(super) shape: StepShape,
}

impl BatchPlan {
    pub(super) fn worth(&self, price: f64) -> f64 {
        self.tokens - price * self.seconds
    }

    /// Returns the plan's numbers, for explanations.
    pub(super) fn summary(&self) -> Alternative {
        Alternative {
            name: self.drafting.name(),
            tokens: self.tokens,
            seconds: self.seconds,
            candidates: self.shape.candidates,
            mask_rows: self.shape.mask_rows,
            draft_rows: self.shape.draft_rows,
        }
    }
}

/// The plans that are compared for a step, and the numbers that they share.
pub(super) struct Planner<'a> {
    cost: &'a CostModel,
    prospects: &'a [Prospect],
    /// The price of time in tokens per second.
    price: f64,
    /// Draft tokens that may be verified, by descending chance: the chance, the sequence, and the verify length that
    /// includes the token.
    slots: Vec<(f32, usize, usize)>,
    /// The step that verifies only draft tokens that must be verified, and makes no drafts.
    base: StepShape,
    /// Tokens of the base step.
    base_tokens: f64,
    base_lens: Vec<usize>,
}

impl<'a> Planner<'a> {
    pub(super) fn new(cost: &'a CostModel, prospects: &'a [Prospect], price: f64) -> Self {
        let (mut base, mut base_tokens) = (StepShape::default(), 0.0);
        let (mut slots, mut base_lens) = (Vec::new(), Vec::new());
        for (index, prospect) in prospects.iter().enumerate() {
            let fixed = prospect.fixed.unwrap_or(0);
            base.sequences += 1;
            base.reads += prospect.reads;
            base.cached += prospect.cached;
            base.candidates += if prospect.reads > 0 { prospect.reads } else { fixed + 1 };
            base_lens.push(fixed);
            if prospect.draws {
                base_tokens += 1.0;
                base_tokens +=
                    prospect.survival.iter().take(fixed).map(|&chance| f64::from(chance)).sum::<f64>();
            }
            if prospect.fixed.is_none() && prospect.reads == 0 {
                let chances = prospect.survival.iter().enumerate();
                let likely = chances.take_while(|&(_, &chance)| chance >= LEAST_CHANCE);
                slots.extend(likely.map(|(slot, &chance)| (chance, index, slot + 1)));
            }
        }
        slots.sort_by(|a, b| b.0.total_cmp(&a.0));
        Self { cost, prospects, price, slots, base, base_tokens, base_lens }
    }

    /// Returns the base step, which verifies only draft tokens that must be verified and makes no drafts.
    pub(super) fn base(&self) -> &StepShape {
        &self.base
    }

    /// Returns the best plan without drafts, if no sequence must draft.
    pub(super) fn without_drafts(&self) -> Option<BatchPlan> {
        if self.prospects.iter().any(|prospect| prospect.must_draft && prospect.draws) {
            return None;
        }
        Some(self.with_drafts_apart(0))
    }

    /// Returns the best plan with a separate drafting pass, for at least `least` sequences.
    pub(super) fn apart(&self, least: usize) -> Option<BatchPlan> {
        let order = self.drafting_order();
        let must = order.iter().filter(|&&index| self.prospects[index].must_draft).count();
        let (mut rows, mut cached, mut value) = (0, 0, 0.0);
        let mut best: Option<(f64, usize)> = None;
        for (count, &index) in (1..).zip(&order) {
            let prospect = &self.prospects[index];
            rows += prospect.slots;
            cached += prospect.cached;
            value += prospect.value.unwrap_or(0.0);
            let with = StepShape { draft_rows: rows, draft_cached: cached, ..self.base };
            let worth = value - self.price * self.cost.seconds(&with);
            if count >= must.max(least).max(1) && best.is_none_or(|(most, _)| worth > most) {
                best = Some((worth, count));
            }
        }
        best.map(|(_, count)| self.with_drafts_apart(count))
    }

    /// Returns the sequences that may draft: first the sequences that must draft, then the others by descending value
    /// of their drafts.
    fn drafting_order(&self) -> Vec<usize> {
        let mut order: Vec<usize> = (0..self.prospects.len())
            .filter(|&index| self.prospects[index].draws && self.prospects[index].value.is_some())
            .collect();
        let key = |index: usize| {
            let prospect = &self.prospects[index];
            if prospect.must_draft { f64::INFINITY } else { prospect.value.unwrap_or(0.0) }
        };
        order.sort_by(|&a, &b| key(b).total_cmp(&key(a)));
        order
    }

    /// Returns the plan in which the first `count` sequences of the drafting order draft in a separate pass.
    fn with_drafts_apart(&self, count: usize) -> BatchPlan {
        let order = self.drafting_order();
        let drafting = &order[..count];
        let mut shape = self.base;
        for &index in drafting {
            shape.draft_rows += self.prospects[index].slots;
            shape.draft_cached += self.prospects[index].cached;
        }
        let stride = self.slots.len().div_ceil(COMPARED).max(1);
        let (mut gained, mut best) = (0.0, (f64::NEG_INFINITY, 0, 0.0));
        for taken in 0..=self.slots.len() {
            if taken > 0 {
                gained += f64::from(self.slots[taken - 1].0);
            }
            if taken % stride == 0 || taken == self.slots.len() {
                let with = StepShape { candidates: shape.candidates + taken, ..shape };
                let worth = gained - self.price * self.cost.seconds(&with);
                if worth > best.0 {
                    best = (worth, taken, gained);
                }
            }
        }
        let (_, taken, gained) = best;
        let mut verify_lens = self.base_lens.clone();
        for &(_, index, length) in &self.slots[..taken] {
            verify_lens[index] = length;
        }
        shape.candidates += taken;
        let mut drafts = vec![false; self.prospects.len()];
        drafting.iter().for_each(|&index| drafts[index] = true);
        let value: f64 = drafting.iter().map(|&index| self.prospects[index].value.unwrap_or(0.0)).sum();
        BatchPlan {
            drafting: if count == 0 { DraftingWay::None } else { DraftingWay::Apart },
            verify_lens,
            drafts,
            groups: vec![GroupSet::NONE; self.prospects.len()],
            tokens: self.base_tokens + gained + value,
            seconds: self.cost.seconds(&shape),
            shape,
        }
    }

    /// Returns the best plan that drafts in the verification pass, for all sequences whose draft is worth its rows.
    pub(super) fn in_pass(&self) -> Option<BatchPlan> {
        let drafting: Vec<usize> = self
            .drafting_order()
            .into_iter()
            .filter(|&index| {
                self.prospects[index].must_draft || self.prospects[index].value.unwrap_or(0.0) > 0.0
            })
            .collect();
        if drafting.is_empty() {
            return None;
        }
        let plans = LEFT_OUT.iter().map(|&least| self.with_groups(&drafting, least));
        plans.max_by(|a, b| a.worth(self.price).total_cmp(&b.worth(self.price)))
    }

    /// Returns the plan in which the sequences `drafting` draft in the verification pass, with groups for all accepted
    /// lengths of at least the chance `least`.
    fn with_groups(&self, drafting: &[usize], least: f32) -> BatchPlan {
        let mut drafts = vec![false; self.prospects.len()];
        drafting.iter().for_each(|&index| drafts[index] = true);
        let mut verify_lens = self.base_lens.clone();
        let mut sweep = Sweep { shape: self.base, hit: 0.0, missed_rows: 0.0, missed_cached: 0.0 };
        let mut parts: Vec<(usize, f32)> = vec![(0, 0.0); self.prospects.len()];
        for &index in drafting {
            let prospect = &self.prospects[index];
            let (groups, miss) = prospect.groups(verify_lens[index], least);
            parts[index] = (groups.iter().count(), miss);
            sweep.add(prospect, parts[index], 1.0);
        }
        let stride = self.slots.len().div_ceil(COMPARED).max(1);
        let (mut gained, mut best) = (0.0, (f64::NEG_INFINITY, 0, 0.0, 0.0, StepShape::default()));
        for taken in 0..=self.slots.len() {
            if taken > 0 {
                let (chance, index, length) = self.slots[taken - 1];
                gained += f64::from(chance);
                sweep.shape.candidates += 1;
                if drafts[index] {
                    let prospect = &self.prospects[index];
                    sweep.add(prospect, parts[index], -1.0);
                    // Verifying one more token splits the chance of the longest accepted length in two.
                    let (count, miss) = parts[index];
                    let before = prospect.survival_to(length - 1);
                    let had = before >= least;
                    let (stays, comes) = (before - chance >= least, chance >= least);
                    let count = count - usize::from(had) + usize::from(stays) + usize::from(comes);
                    let left_out = |chance: f32, is_in: bool| if is_in { 0.0 } else { chance };
                    let miss = miss - left_out(before, had)
                        + left_out(before - chance, stays)
                        + left_out(chance, comes);
                    parts[index] = (count, miss.clamp(0.0, 1.0));
                    sweep.add(prospect, parts[index], 1.0);
                }
            }
            if taken % stride == 0 || taken == self.slots.len() {
                let (seconds, shape) = sweep.seconds(self.cost);
                let worth = gained - self.price * seconds;
                if worth > best.0 {
                    best = (worth, taken, gained, seconds, shape);
                }
            }
        }
        let (_, taken, gained, seconds, shape) = best;
        for &(_, index, length) in &self.slots[..taken] {
            verify_lens[index] = length;
        }
        let groups = (0..self.prospects.len()).map(|index| {
            if drafts[index] {
                self.prospects[index].groups(verify_lens[index], least).0
            } else {
                GroupSet::NONE
            }
        });
        let value: f64 = drafting.iter().map(|&index| self.prospects[index].value.unwrap_or(0.0)).sum();
        BatchPlan {
            drafting: DraftingWay::InPass(least),
            groups: groups.collect(),
            verify_lens,
            drafts,
            tokens: self.base_tokens + gained + value,
            seconds,
            shape,
        }
    }
}

/// The rows of a step with mask groups, and the chances that a drafting pass is needed, while verify lengths grow.
struct Sweep {
    shape: StepShape,
    /// The logarithm of the chance that no sequence needs a drafting pass.
    hit: f64,
    /// The expected rows and cached positions of the drafting pass.
    missed_rows: f64,
    missed_cached: f64,
}

impl Sweep {
    /// Adds the groups of a sequence, or takes them away if `sign` is −1.
    fn add(&mut self, prospect: &Prospect, (groups, miss): (usize, f32), sign: f64) {
        let miss = f64::from(miss);
        self.hit += sign * (1.0 - miss).max(1e-9).ln();
        self.missed_rows += sign * miss * prospect.slots as f64;
        self.missed_cached += sign * miss * prospect.cached as f64;
        let rows = groups * prospect.slots;
        let cached = groups * prospect.cached;
        if sign > 0.0 {
            self.shape.mask_rows += rows;
            self.shape.group_cached += cached;
        } else {
            self.shape.mask_rows -= rows;
            self.shape.group_cached -= cached;
        }
    }

    /// Returns the expected duration in seconds, and the more likely shape.
    fn seconds(&self, cost: &CostModel) -> (f64, StepShape) {
        let seconds = cost.seconds(&self.shape);
        let missed = 1.0 - self.hit.min(0.0).exp();
        if missed < 1e-4 {
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

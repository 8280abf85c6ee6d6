//! The choice of a step: verify lengths and group sets of all sequences, by what they cost and what they bring.
//!
//! A step is worth its expected tokens, plus the value of the drafts that it makes, minus its duration at a price: the
//! tokens that the same time would bring otherwise. That price is the rate that the policy has reached. A step of larger worth
//! than the steps so far therefore raises the rate, and with it the price (fractional programming: Dinkelbach 1967).

use super::cost::{CostModel, StepShape};
use crate::decode::explanation::Alternative;
use crate::layout::GroupSet;

/// A group set leaves out the accepted lengths that are less likely than one of these chances.
const LEFT_OUT: [f32; 6] = [0.0, 0.003, 0.01, 0.03, 0.1, 0.25];

/// The chance of a draft token below which verifying it is not considered.
const LEAST_CHANCE: f32 = 0.004;

/// The most verify lengths of the batch, as sums over its sequences, that are compared.
const COMPARED: usize = 192;

/// What the choice needs to know about a sequence.
#[derive(Clone, Debug, Default)]
pub(super) struct Prospect {
    /// Rows that the step reads; 0 if it decodes.
    pub(super) reads: usize,
    /// Positions in the cache.
    pub(super) cached: usize,
    /// S.
    pub(super) slots: usize,
    /// The verify length, if it is not for the batch to choose.
    pub(super) fixed: Option<usize>,
    /// The chances that the first j + 1 draft tokens are all accepted `[0 to S − 1]`.
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

/// How the step drafts.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum DraftingWay {
    /// No sequence drafts.
    None,
    /// Some sequences draft, in a pass of their own.
    Apart,
    /// Sequences draft in the pass that verifies, for all accepted lengths with at least this chance.
    InPass(f32),
}

impl DraftingWay {
    /// Returns the name of the way in explanations.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::None => "no drafts",
            Self::Apart => "drafts apart",
            Self::InPass(_) => "drafts in the pass",
        }
    }
}

/// A plan of a step.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct BatchPlan {
    pub(super) drafting: DraftingWay,
    /// v of each sequence.
    pub(super) verify_lens: Vec<usize>,
    /// Whether each sequence drafts.
    pub(super) drafts: Vec<bool>,
    /// K of each sequence.
    pub(super) groups: Vec<GroupSet>,
    /// The expected tokens and the value of the drafts, in tokens.
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
    candidates: &'a [Prospect],
    /// Tokens per second.
    price: f64,
    /// Draft tokens that may be verified: chance, sequence, verify length that includes the token. Descending chances.
    slots: Vec<(f32, usize, usize)>,
    /// The step without any draft token whose verification is for the batch to choose, and without drafts.
    base: StepShape,
    /// Tokens of the base step.
    base_tokens: f64,
    base_lens: Vec<usize>,
}

impl<'a> Planner<'a> {
    pub(super) fn new(cost: &'a CostModel, candidates: &'a [Prospect], price: f64) -> Self {
        let (mut base, mut base_tokens) = (StepShape::default(), 0.0);
        let (mut slots, mut base_lens) = (Vec::new(), Vec::new());
        for (index, candidate) in candidates.iter().enumerate() {
            let fixed = candidate.fixed.unwrap_or(0);
            base.sequences += 1;
            base.reads += candidate.reads;
            base.cached += candidate.cached;
            base.candidates += if candidate.reads > 0 { candidate.reads } else { fixed + 1 };
            base_lens.push(fixed);
            if candidate.draws {
                base_tokens += 1.0;
                base_tokens +=
                    candidate.survival.iter().take(fixed).map(|&chance| f64::from(chance)).sum::<f64>();
            }
            if candidate.fixed.is_none() && candidate.reads == 0 {
                let chances = candidate.survival.iter().enumerate();
                let likely = chances.take_while(|&(_, &chance)| chance >= LEAST_CHANCE);
                slots.extend(likely.map(|(slot, &chance)| (chance, index, slot + 1)));
            }
        }
        slots.sort_by(|a, b| b.0.total_cmp(&a.0));
        Self { cost, candidates, price, slots, base, base_tokens, base_lens }
    }

    /// Returns the base step: nothing is verified that does not have to be, and nothing is drafted.
    pub(super) fn base(&self) -> &StepShape {
        &self.base
    }

    /// Returns the best plan without drafts, if no sequence must draft.
    pub(super) fn without_drafts(&self) -> Option<BatchPlan> {
        if self.candidates.iter().any(|candidate| candidate.must_draft && candidate.draws) {
            return None;
        }
        Some(self.with_drafts_apart(0))
    }

    /// Returns the best plan that drafts in a pass of its own, for at least `least` sequences.
    pub(super) fn apart(&self, least: usize) -> Option<BatchPlan> {
        let order = self.drafting_order();
        let must = order.iter().filter(|&&index| self.candidates[index].must_draft).count();
        let (mut rows, mut cached, mut value) = (0, 0, 0.0);
        let mut best: Option<(f64, usize)> = None;
        for (count, &index) in (1..).zip(&order) {
            let candidate = &self.candidates[index];
            rows += candidate.slots;
            cached += candidate.cached;
            value += candidate.value.unwrap_or(0.0);
            let with = StepShape { draft_rows: rows, draft_cached: cached, ..self.base };
            let worth = value - self.price * self.cost.seconds(&with);
            if count >= must.max(least).max(1) && best.is_none_or(|(most, _)| worth > most) {
                best = Some((worth, count));
            }
        }
        best.map(|(_, count)| self.with_drafts_apart(count))
    }

    /// Returns the sequences that may draft: first those that must, then by the value of their drafts.
    fn drafting_order(&self) -> Vec<usize> {
        let mut order: Vec<usize> = (0..self.candidates.len())
            .filter(|&index| self.candidates[index].draws && self.candidates[index].value.is_some())
            .collect();
        let key = |index: usize| {
            let candidate = &self.candidates[index];
            if candidate.must_draft { f64::INFINITY } else { candidate.value.unwrap_or(0.0) }
        };
        order.sort_by(|&a, &b| key(b).total_cmp(&key(a)));
        order
    }

    /// Returns the plan in which the first `count` sequences of the drafting order draft in a pass of their own.
    fn with_drafts_apart(&self, count: usize) -> BatchPlan {
        let order = self.drafting_order();
        let drafting = &order[..count];
        let mut shape = self.base;
        for &index in drafting {
            shape.draft_rows += self.candidates[index].slots;
            shape.draft_cached += self.candidates[index].cached;
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
        let mut drafts = vec![false; self.candidates.len()];
        drafting.iter().for_each(|&index| drafts[index] = true);
        let value: f64 = drafting.iter().map(|&index| self.candidates[index].value.unwrap_or(0.0)).sum();
        BatchPlan {
            drafting: if count == 0 { DraftingWay::None } else { DraftingWay::Apart },
            verify_lens,
            drafts,
            groups: vec![GroupSet::NONE; self.candidates.len()],
            tokens: self.base_tokens + gained + value,
            seconds: self.cost.seconds(&shape),
            shape,
        }
    }

    /// Returns the best plan that drafts in the pass that verifies, for all sequences whose draft is worth its rows.
    pub(super) fn in_pass(&self) -> Option<BatchPlan> {
        let drafting: Vec<usize> = self
            .drafting_order()
            .into_iter()
            .filter(|&index| {
                self.candidates[index].must_draft || self.candidates[index].value.unwrap_or(0.0) > 0.0
            })
            .collect();
        if drafting.is_empty() {
            return None;
        }
        let plans = LEFT_OUT.iter().map(|&least| self.with_groups(&drafting, least));
        plans.max_by(|a, b| a.worth(self.price).total_cmp(&b.worth(self.price)))
    }

    /// Returns the plan in which the sequences `drafting` draft in the pass that verifies, with groups for all accepted
    /// lengths of at least the chance `least`.
    fn with_groups(&self, drafting: &[usize], least: f32) -> BatchPlan {
        let mut drafts = vec![false; self.candidates.len()];
        drafting.iter().for_each(|&index| drafts[index] = true);
        let mut verify_lens = self.base_lens.clone();
        let mut sweep = Sweep { shape: self.base, hit: 0.0, missed_rows: 0.0, missed_cached: 0.0 };
        let mut parts: Vec<(usize, f32)> = vec![(0, 0.0); self.candidates.len()];
        for &index in drafting {
            let candidate = &self.candidates[index];
            let (groups, miss) = candidate.groups(verify_lens[index], least);
            parts[index] = (groups.iter().count(), miss);
            sweep.add(candidate, parts[index], 1.0);
        }
        let stride = self.slots.len().div_ceil(COMPARED).max(1);
        let (mut gained, mut best) = (0.0, (f64::NEG_INFINITY, 0, 0.0, 0.0, StepShape::default()));
        for taken in 0..=self.slots.len() {
            if taken > 0 {
                let (chance, index, length) = self.slots[taken - 1];
                gained += f64::from(chance);
                sweep.shape.candidates += 1;
                if drafts[index] {
                    let candidate = &self.candidates[index];
                    sweep.add(candidate, parts[index], -1.0);
                    // The token splits the chance of the longest accepted length in two.
                    let (count, miss) = parts[index];
                    let before = candidate.survival_to(length - 1);
                    let had = before >= least;
                    let (stays, comes) = (before - chance >= least, chance >= least);
                    let count = count - usize::from(had) + usize::from(stays) + usize::from(comes);
                    let left_out = |chance: f32, is_in: bool| if is_in { 0.0 } else { chance };
                    let miss = miss - left_out(before, had)
                        + left_out(before - chance, stays)
                        + left_out(chance, comes);
                    parts[index] = (count, miss.clamp(0.0, 1.0));
                    sweep.add(candidate, parts[index], 1.0);
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
        let groups = (0..self.candidates.len()).map(|index| {
            if drafts[index] {
                self.candidates[index].groups(verify_lens[index], least).0
            } else {
                GroupSet::NONE
            }
        });
        let value: f64 = drafting.iter().map(|&index| self.candidates[index].value.unwrap_or(0.0)).sum();
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
    fn add(&mut self, candidate: &Prospect, (groups, miss): (usize, f32), sign: f64) {
        let miss = f64::from(miss);
        self.hit += sign * (1.0 - miss).max(1e-9).ln();
        self.missed_rows += sign * miss * candidate.slots as f64;
        self.missed_cached += sign * miss * candidate.cached as f64;
        let rows = groups * candidate.slots;
        let cached = groups * candidate.cached;
        if sign > 0.0 {
            self.shape.mask_rows += rows;
            self.shape.group_cached += cached;
        } else {
            self.shape.mask_rows -= rows;
            self.shape.group_cached -= cached;
        }
    }

    /// Returns the expected duration in seconds, and the likeliest shape.
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

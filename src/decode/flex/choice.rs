//! The choice of a step: verify lengths and group sets of all sequences, by their cost and their gain.
//!
//! The worth of a step is its expected number of tokens, plus the value of the drafts that it makes, minus the price of
//! its duration: the tokens that the same time would yield otherwise. The price of time is the rate that the policy has
//! reached. A step of larger worth than earlier steps therefore raises the rate, and with the rate the price
//! (fractional programming: Dinkelbach 1967).

use super::cost::{CostModel, StepShape};
use super::prospect::{Prospect, VerifiableToken};
use super::sweep::Sweep;
use crate::decode::explanation::Alternative;
use crate::layout::GroupSet;

/// The probabilities below which a group set leaves an accepted length out; one plan is made for each.
const LEFT_OUT: [f32; 6] = [0.0, 0.003, 0.01, 0.03, 0.1, 0.25];

/// The acceptance probability below which verifying a draft token is not considered.
const LEAST_CHANCE: f32 = 0.004;

/// The maximum number of total verify lengths (sums over the sequences of the batch) that are compared.
const COMPARED: usize = 192;

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

/// The number of draft tokens that a plan verifies, and the plan's expectations.
#[derive(Clone, Copy, Debug)]
struct Verified {
    /// Number of verified tokens, counted from the most likely token on.
    count: usize,
    /// The expected number of accepted tokens among them.
    gained: f64,
    seconds: f64,
    shape: StepShape,
}

/// The plans that are compared for a step, and the numbers that they share.
pub(super) struct Planner<'a> {
    cost: &'a CostModel,
    prospects: &'a [Prospect],
    /// The price of time in tokens per second.
    price: f64,
    /// Draft tokens that may be verified, by descending chance.
    tokens: Vec<VerifiableToken>,
    /// The sequences that may draft: first the sequences that must draft, then the others by descending value of their
    /// drafts.
    drafting_order: Vec<usize>,
    /// The step that verifies only draft tokens that must be verified, and makes no drafts.
    base: StepShape,
    /// Tokens of the base step.
    base_tokens: f64,
    base_lens: Vec<usize>,
}

impl<'a> Planner<'a> {
    pub(super) fn new(cost: &'a CostModel, prospects: &'a [Prospect], price: f64) -> Self {
        let (mut base, mut base_tokens) = (StepShape::default(), 0.0);
        let (mut tokens, mut base_lens) = (Vec::new(), Vec::new());
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
                let mut chance_before = 1.0;
                let likely = prospect.survival.iter().take_while(|&&chance| chance >= LEAST_CHANCE);
                for (length, &chance) in (1..).zip(likely) {
                    tokens.push(VerifiableToken { chance, chance_before, sequence: index, length });
                    chance_before = chance;
                }
            }
        }
        tokens.sort_by(|a, b| b.chance.total_cmp(&a.chance));
        let drafting_order = drafting_order(prospects);
        Self { cost, prospects, price, tokens, drafting_order, base, base_tokens, base_lens }
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
        let order = &self.drafting_order;
        let must = order.iter().filter(|&&index| self.prospects[index].must_draft).count();
        let (mut rows, mut cached, mut value) = (0, 0, 0.0);
        let mut best: Option<(f64, usize)> = None;
        for (count, &index) in (1..).zip(order) {
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

    /// Returns the plan in which the first `count` sequences of the drafting order draft in a separate pass.
    fn with_drafts_apart(&self, count: usize) -> BatchPlan {
        let drafting = &self.drafting_order[..count];
        let mut shape = self.base;
        for &index in drafting {
            shape.draft_rows += self.prospects[index].slots;
            shape.draft_cached += self.prospects[index].cached;
        }
        let sweep = Sweep::new(self.prospects, (&shape, &self.base_lens), &[], 0.0);
        let way = if count == 0 { DraftingWay::None } else { DraftingWay::Apart };
        self.plan(way, drafting, &self.best(sweep))
    }

    /// Returns the best plan that drafts in the verification pass, for all sequences whose draft is worth its rows.
    pub(super) fn in_pass(&self) -> Option<BatchPlan> {
        let is_worth = |&index: &usize| {
            let prospect = &self.prospects[index];
            prospect.must_draft || prospect.value.unwrap_or(0.0) > 0.0
        };
        let drafting: Vec<usize> = self.drafting_order.iter().copied().filter(is_worth).collect();
        if drafting.is_empty() {
            return None;
        }
        let value = self.value(&drafting);
        let worth = |verified: &Verified| self.tokens_of(verified, value) - self.price * verified.seconds;
        let with_groups = |&least: &f32| {
            let sweep = Sweep::new(self.prospects, (&self.base, &self.base_lens), &drafting, least);
            (least, self.best(sweep))
        };
        let bests = LEFT_OUT.iter().map(with_groups);
        let (least, verified) = bests.max_by(|(_, a), (_, b)| worth(a).total_cmp(&worth(b)))?;
        Some(self.plan(DraftingWay::InPass(least), &drafting, &verified))
    }

    /// Returns the number of verified tokens at which `sweep` has the largest worth.
    fn best(&self, mut sweep: Sweep<'_>) -> Verified {
        let stride = self.tokens.len().div_ceil(COMPARED).max(1);
        let mut gained = 0.0;
        let mut best = Verified { count: 0, gained, seconds: 0.0, shape: self.base };
        let mut most = f64::NEG_INFINITY;
        for count in 0..=self.tokens.len() {
            if count > 0 {
                let token = &self.tokens[count - 1];
                gained += f64::from(token.chance);
                sweep.take(token);
            }
            if count % stride == 0 || count == self.tokens.len() {
                let (seconds, shape) = sweep.seconds(self.cost);
                let worth = gained - self.price * seconds;
                if worth > most {
                    (most, best) = (worth, Verified { count, gained, seconds, shape });
                }
            }
        }
        best
    }

    /// Returns the sum of the values of the drafts of the sequences `drafting`.
    fn value(&self, drafting: &[usize]) -> f64 {
        drafting.iter().map(|&index| self.prospects[index].value.unwrap_or(0.0)).sum()
    }

    /// Returns the expected number of tokens plus the value of the drafts, in tokens.
    fn tokens_of(&self, verified: &Verified, value: f64) -> f64 {
        self.base_tokens + verified.gained + value
    }

    /// Returns the plan that verifies the tokens `verified`, and in which the sequences `drafting` draft.
    fn plan(&self, way: DraftingWay, drafting: &[usize], verified: &Verified) -> BatchPlan {
        let mut verify_lens = self.base_lens.clone();
        for token in &self.tokens[..verified.count] {
            verify_lens[token.sequence] = token.length;
        }
        let mut drafts = vec![false; self.prospects.len()];
        let mut groups = vec![GroupSet::NONE; self.prospects.len()];
        for &index in drafting {
            drafts[index] = true;
            if let DraftingWay::InPass(least) = way {
                groups[index] = self.prospects[index].groups(verify_lens[index], least).0;
            }
        }
        BatchPlan {
            drafting: way,
            verify_lens,
            drafts,
            groups,
            tokens: self.tokens_of(verified, self.value(drafting)),
            seconds: verified.seconds,
            shape: verified.shape,
        }
    }
}

/// Returns the sequences that may draft: first the sequences that must draft, then the others by descending value of their
/// drafts.
fn drafting_order(prospects: &[Prospect]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..prospects.len())
        .filter(|&index| prospects[index].draws && prospects[index].value.is_some())
        .collect();
    let key = |index: usize| {
        let prospect = &prospects[index];
        if prospect.must_draft { f64::INFINITY } else { prospect.value.unwrap_or(0.0) }
    };
    order.sort_by(|&a, &b| key(b).total_cmp(&key(a)));
    order
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{LEFT_OUT, Planner, Prospect, Sweep};
    use crate::decode::flex::cost::{CostModel, StepShape};

    const PRICE: f64 = 1.5;

    prop_compose! {
        /// A sequence with a pending draft of up to seven tokens, whose next draft may be made.
        fn prospect()(
            factors in prop::collection::vec(0.0f32..1.0, 0..8),
            sharpness in 0.05f32..2.0,
            cached in 0usize..3000,
            value in 0.1f64..4.0,
            fixed in prop::option::weighted(0.2, 0usize..4),
        ) -> Prospect {
            let mut chance = 1.0;
            let survival: Vec<f32> =
                factors.iter().map(|factor| { chance *= factor.powf(sharpness); chance }).collect();
            let fixed = fixed.map(|fixed| fixed.min(survival.len()));
            Prospect { cached, slots: 8, fixed, survival, value: Some(value), may_draft: true, draws: true, ..Prospect::default() }
        }
    }

    /// Returns the tokens that the step with the first `count` draft tokens is expected to gain, its duration and its shape
    /// without a drafting pass, computed from the verify lengths of all sequences.
    fn direct(planner: &Planner<'_>, count: usize, least: f32) -> (f64, f64, StepShape) {
        let tokens = &planner.tokens[..count];
        let (mut shape, mut hit, mut missed_rows, mut missed_cached) = (planner.base, 1.0, 0.0, 0.0);
        shape.candidates += count;
        for (index, prospect) in planner.prospects.iter().enumerate() {
            let of_sequence = tokens.iter().filter(|token| token.sequence == index).count();
            let (groups, miss) = prospect.groups(planner.base_lens[index] + of_sequence, least);
            shape.mask_rows += groups.iter().count() * prospect.slots;
            shape.group_cached += groups.iter().count() * prospect.cached;
            hit *= 1.0 - f64::from(miss);
            missed_rows += f64::from(miss) * prospect.slots as f64;
            missed_cached += f64::from(miss) * prospect.cached as f64;
        }
        let missed = 1.0 - hit;
        let draft_rows = (missed_rows / missed.max(1e-9)).round() as usize;
        let draft_cached = (missed_cached / missed.max(1e-9)).round() as usize;
        let with = StepShape { draft_rows: draft_rows.max(1), draft_cached, ..shape };
        let seconds = hit * planner.cost.seconds(&shape) + missed * planner.cost.seconds(&with);
        (tokens.iter().map(|token| f64::from(token.chance)).sum(), seconds, shape)
    }

    proptest! {
        #[test]
        fn a_sweep_has_the_rows_and_the_time_of_its_verify_lengths(
            prospects in prop::collection::vec(prospect(), 1..8),
            least in prop::sample::select(&LEFT_OUT[..]),
        ) {
            let cost = CostModel::default();
            let planner = Planner::new(&cost, &prospects, PRICE);
            let all: Vec<usize> = (0..prospects.len()).collect();
            let mut sweep = Sweep::new(&prospects, (&planner.base, &planner.base_lens), &all, least);
            for count in 0..=planner.tokens.len() {
                if count > 0 {
                    sweep.take(&planner.tokens[count - 1]);
                }
                let (seconds, shape) = sweep.seconds(&cost);
                let (_, expected, rows) = direct(&planner, count, least);
                prop_assert_eq!(StepShape { draft_rows: 0, draft_cached: 0, ..shape }, rows, "{} tokens", count);
                // Chances are f32, and a drafting pass has a whole number of rows.
                prop_assert!((seconds / expected - 1.0).abs() < 1e-3, "{count} tokens: {seconds} s, not {expected} s");
            }
        }

        #[test]
        fn no_verify_lengths_and_groups_beat_the_plan(prospects in prop::collection::vec(prospect(), 1..6)) {
            let cost = CostModel::default();
            let planner = Planner::new(&cost, &prospects, PRICE);
            let value: f64 = prospects.iter().filter_map(|prospect| prospect.value).sum();
            let plan = planner.in_pass().unwrap();
            for least in LEFT_OUT {
                for count in 0..=planner.tokens.len() {
                    let (gained, seconds, _) = direct(&planner, count, least);
                    let worth = planner.base_tokens + gained + value - PRICE * seconds;
                    prop_assert!(worth < plan.worth(PRICE) + 1e-3 * PRICE * seconds, "{least}, {count} tokens: {worth}");
                }
            }
            let super::DraftingWay::InPass(least) = plan.drafting else { panic!("{:?}", plan.drafting) };
            for (index, prospect) in prospects.iter().enumerate() {
                prop_assert_eq!(plan.groups[index], prospect.groups(plan.verify_lens[index], least).0);
            }
        }
    }
}

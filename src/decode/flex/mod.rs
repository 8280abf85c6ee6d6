//! The policy `Flex`: chooses verify length and mask groups per sequence, by their cost and their gain.
//!
//! The choice depends on three estimates that are learned while running: the cost of a step ([`CostModel`]), the
//! acceptance rate of draft tokens with a given confidence, and the number of tokens that a draft gains in the next
//! step. The policy chooses the step with the most expected tokens per second (the paper's Flex Decoding, arXiv
//! 2605.20022, per sequence).
//!
//! **What v may depend on.** If the tokens of a sequence depend on v, then whether v ≥ j may depend only on the
//! confidences of slots 1 to j and on a price of a row that was fixed before the draft was drawn. It may not depend on
//! a later confidence, which may depend on d_j, or on the number of rows of other sequences in the step.

mod calibration;
mod choice;
mod cost;
mod prospect;
mod settled;
mod sweep;
mod trial;
mod value;

use std::collections::{HashMap, HashSet, VecDeque};

use self::calibration::ConfidenceCalibration;
use self::choice::{BatchPlan, DraftingWay, Planner};
pub use self::cost::{CostModel, StepShape};
use self::prospect::Prospect;
use self::settled::Settled;
use self::trial::{Budget, Runs, StepSeconds};
use self::value::Drafts;
use super::explanation::{Alternative, ExplainedChoice, Explanation, Reason};
use super::policy::{BatchView, Choice, ComparedToken, Policy, SequenceView, StepTimes, StepView};
use crate::layout::GroupSet;

/// Number of iterations that compute the first price of time, each from the best rate at the previous price.
const ROUNDS: usize = 3;

/// Number of steps whose durations are compared with the expected durations.
const TIMES: usize = 200;

/// Number of steps that the rate is averaged over.
const RATE_MEMORY: f64 = 96.0;

/// Number of steps without prompts that count before the first step, in the rate of all steps: a batch that begins reads its
/// prompts first, and time is not cheap because of that.
const FIRST_STEPS: usize = 256;

/// Number of steps without drafts after which the estimated value of drafts is out of date, so that a trial may update
/// it.
const STALE: u64 = 24;

/// A policy that chooses the verify length and the group set of every sequence, and whether to draft.
///
/// Greedy and `match` outputs do not depend on the choice. Requests whose tokens depend on the verify length (see
/// [`SequenceView::verify_len_is_free`]) keep the verify length of their threshold, always get drafts, and do not
/// influence the choice for other requests.
#[derive(Debug)]
pub struct Flex {
    cost: CostModel,
    /// The calibrations: of drafts whose tokens do not depend on v, of drafts whose tokens do, and of proposals.
    calibrations: [ConfidenceCalibration; 3],
    drafts: Drafts,
    budget: Budget,
    /// The price of verifying a row, in tokens, that was fixed before the pending draft of each sequence was drawn.
    row_prices: HashMap<u64, f64>,
    /// The last choice, with the numbers that it was based on.
    last: Last,
    /// Number of steps since a draft was last asked for.
    since_drafts: u64,
    runs: Runs,
    settled: Settled,
    /// The rates of the last steps: of steps without prompts, and of all steps.
    rates: [Rates; 2],
    /// The expected and the measured seconds of the last steps.
    times: VecDeque<(f64, f64)>,
}

/// Rates of steps, computed from expected durations so that an outlier does not change the price.
#[derive(Clone, Copy, Debug, Default)]
struct Rates {
    reached: Rate,
    /// The rate that the steps would have had without drafts.
    without_drafts: Rate,
}

impl Rates {
    /// Returns the largest rate that was reached or that could have been reached without drafts.
    fn price(&self) -> Option<f64> {
        let rate = self.reached.per_second()?;
        Some(rate.max(self.without_drafts.per_second().unwrap_or(0.0)))
    }
}

/// Tokens per second, averaged over the last steps.
#[derive(Clone, Copy, Debug, Default)]
struct Rate {
    tokens: f64,
    seconds: f64,
}

impl Rate {
    fn add(&mut self, tokens: f64, seconds: f64) {
        let kept = 1.0 - 1.0 / RATE_MEMORY;
        (self.tokens, self.seconds) = (self.tokens * kept + tokens, self.seconds * kept + seconds);
    }

    fn per_second(self) -> Option<f64> {
        (self.seconds > 0.0 && self.tokens > 0.0).then(|| self.tokens / self.seconds)
    }
}

/// The last choice, with the numbers that it was based on.
#[derive(Debug, Default)]
struct Last {
    sequences: Vec<LastSequence>,
    /// The price of verifying a row, in tokens.
    row_price: f64,
    seconds: f64,
    /// The price of time in tokens per second.
    price: f64,
    /// The plans that were compared, the index of the chosen plan, and the reason.
    compared: Vec<Alternative>,
    chosen: usize,
    reason: Reason,
}

#[derive(Debug)]
struct LastSequence {
    number: u64,
    choice: Choice,
    confidence: Vec<f32>,
    /// Index of the calibration of the sequence's drafts.
    calibration: usize,
    /// Whether the confidences come from the drafter.
    is_draft: bool,
}

/// The decision on a step.
struct PlannedStep {
    plan: BatchPlan,
    /// The expected cost in seconds, if the step is a trial.
    trial: Option<f64>,
    /// The plans that were compared.
    compared: Vec<Alternative>,
    /// Index of the plan among the compared plans.
    chosen: usize,
    reason: Reason,
}

impl Flex {
    /// Makes a policy that begins with a cost model, such as one fitted to a probe of the device.
    pub fn new(cost: CostModel) -> Self {
        let of_drafter = ConfidenceCalibration::of_drafter;
        let calibrations = [of_drafter(), of_drafter(), ConfidenceCalibration::default()];
        Self {
            cost,
            calibrations,
            drafts: Drafts::default(),
            budget: Budget::default(),
            row_prices: HashMap::new(),
            last: Last::default(),
            since_drafts: 0,
            runs: Runs::default(),
            settled: Settled::default(),
            rates: Default::default(),
            times: VecDeque::new(),
        }
    }

    /// Returns the cost model as fitted so far.
    pub fn cost(&self) -> &CostModel {
        &self.cost
    }
}

impl Default for Flex {
    /// Makes a policy that knows nothing about the machine.
    fn default() -> Self {
        Self::new(CostModel::default())
    }
}

impl Policy for Flex {
    fn choose(&mut self, batch: &BatchView<'_>) -> Vec<Choice> {
        let views = batch.sequences;
        if self.settled.goes_on(views) {
            return self.without_comparison(views);
        }
        let mut prospects: Vec<Prospect> = views.iter().map(|view| self.prospect(view)).collect();
        let (price, row_price) = self.prices(&prospects, batch.groups_allowed);
        let of_any = self.drafts.value_of_any(row_price);
        for (prospect, view) in prospects.iter_mut().zip(views) {
            if view.may_draft && view.draws {
                let most = view.wanted.saturating_sub(2);
                let prices = (row_price, of_any);
                prospect.value = Some(self.drafts.value(view.number, &self.calibrations, prices, most));
            }
        }
        let PlannedStep { plan, trial, compared, chosen, reason } =
            self.plan(&prospects, price, batch.groups_allowed);
        self.runs.add(plan.drafting, prospects.len());
        self.settled.compared(views.len(), &plan, (&compared, chosen), price);
        if let Some(cost) = trial {
            self.budget.begin(cost);
        }
        self.since_drafts = if plan.drafts.contains(&true) { 0 } else { self.since_drafts + 1 };
        let choice = |(index, view): (usize, &SequenceView<'_>)| Choice {
            verify_len: plan.verify_lens[index],
            groups: plan.groups[index],
            // Without a drafter, a proposal costs nothing.
            draft: plan.drafts[index] || view.proposes && !view.may_draft,
        };
        let choices: Vec<Choice> = views.iter().enumerate().map(choice).collect();
        self.last = Last {
            sequences: views
                .iter()
                .zip(&choices)
                .map(|(view, &choice)| LastSequence {
                    number: view.number,
                    choice,
                    confidence: if view.reads == 0 { view.confidence.to_vec() } else { Vec::new() },
                    calibration: calibration_of(view),
                    is_draft: view.may_draft,
                })
                .collect(),
            row_price,
            seconds: plan.seconds,
            price,
            compared,
            chosen,
            reason,
        };
        choices
    }

    fn observe(&mut self, step: &StepView<'_>) {
        let shape = StepShape::of(step);
        let mut learned = false;
        for sequence in step.sequences {
            let Some(last) = self.last.sequences.get(sequence.index) else { continue };
            let (verified, accepted) = (sequence.verified(), sequence.accepted());
            learned |= verified > 0 && !last.confidence.is_empty();
            let calibration = &mut self.calibrations[last.calibration];
            calibration.observe(&last.confidence, verified, accepted);
            // If a part of the draft was verified, its acceptance says more about the tokens that are worth verifying.
            if let Some(ComparedToken { confidence, is_equal, .. }) = sequence.compared
                && verified == 0
            {
                calibration.compare(confidence, is_equal);
                learned = true;
            }
            if last.is_draft && !last.confidence.is_empty() {
                let calibration = (&self.calibrations[..], last.calibration);
                self.drafts.add(last.number, &last.confidence, calibration, self.last.sequences.len());
            }
            if sequence.drafted {
                self.row_prices.insert(last.number, self.last.row_price);
            }
        }
        self.drafts.end_step(&self.calibrations, learned);
        let sequences = &self.last.sequences;
        if self.row_prices.len() > 2 * sequences.len() + 16 {
            let there: HashSet<u64> = sequences.iter().map(|last| last.number).collect();
            self.row_prices.retain(|number, _| there.contains(number));
            self.drafts.keep(|number| there.contains(&number));
        }
        if self.times.len() >= TIMES {
            self.times.pop_front();
        }
        let expected = self.cost.seconds(&shape);
        let committed: usize = step.sequences.iter().map(|sequence| sequence.committed).sum();
        self.rates[1].reached.add(committed as f64, expected);
        if shape.reads == 0 {
            self.rates[0].reached.add(committed as f64, expected);
        }
        self.times.push_back((expected, step.seconds));
        self.cost.observe(&shape, step.seconds);
        self.budget.step(self.step_seconds(&shape, step.seconds));
    }

    fn step_times(&self) -> Option<StepTimes> {
        let &(expected_seconds, seconds) = self.times.back()?;
        let mut errors: Vec<f64> =
            self.times.iter().map(|(expected, seen)| (expected / seen - 1.0).abs()).collect();
        errors.sort_by(f64::total_cmp);
        Some(StepTimes { expected_seconds, seconds, median_error: errors[errors.len() / 2] })
    }

    fn explanation(&self) -> Option<Explanation> {
        let Last { sequences, price, compared, chosen, reason, .. } = &self.last;
        let choice = |last: &LastSequence| {
            let Choice { verify_len, groups, draft } = last.choice;
            ExplainedChoice { number: last.number, verify_len, groups, draft }
        };
        (!sequences.is_empty()).then(|| Explanation {
            price: *price,
            alternatives: compared.clone(),
            chosen: *chosen,
            reason: *reason,
            choices: sequences.iter().map(choice).collect(),
        })
    }

    fn name(&self) -> &'static str {
        "auto"
    }
}

impl Flex {
    /// Returns the choices of a step that decodes one token of every sequence, like the step of the last comparison.
    fn without_comparison(&mut self, views: &[SequenceView<'_>]) -> Vec<Choice> {
        let count = views.len();
        let cached = views.iter().map(|view| view.position).sum();
        let shape = StepShape { sequences: count, candidates: count, cached, ..StepShape::default() };
        let seconds = self.cost.seconds(&shape);
        for rates in &mut self.rates {
            rates.without_drafts.add(count as f64, seconds);
        }
        self.runs.add(DraftingWay::None, count);
        self.since_drafts += 1;
        let choice = Choice { verify_len: 0, groups: GroupSet::NONE, draft: false };
        self.last.sequences.clear();
        self.last.sequences.extend(views.iter().map(|view| LastSequence {
            number: view.number,
            choice,
            confidence: Vec::new(),
            calibration: calibration_of(view),
            is_draft: view.may_draft,
        }));
        self.last.seconds = seconds;
        self.last.reason = Reason::Settled;
        vec![choice; count]
    }

    /// Returns the durations of a step that ran with this shape and took `measured` seconds.
    fn step_seconds(&self, shape: &StepShape, measured: f64) -> StepSeconds {
        let decoding = match shape.without_reads() {
            without if without.candidates == 0 => 0.0,
            without => self.cost.seconds(&without),
        };
        StepSeconds { measured, planned: self.last.seconds, expected: self.cost.seconds(shape), decoding }
    }

    /// Returns the properties of a sequence that the choice depends on, without the value of its next draft.
    fn prospect(&self, view: &SequenceView<'_>) -> Prospect {
        let decodes = view.reads == 0 && view.draws;
        let mut survival = Vec::new();
        if decodes {
            let most = view.confidence.len().min(view.wanted.saturating_sub(1));
            let calibration = &self.calibrations[calibration_of(view)];
            calibration.survival(&view.confidence[..most], &mut survival);
        }
        let fixed = if !decodes {
            Some(0)
        } else if !view.verify_len_is_free {
            Some(view.verify_len)
        } else if view.tokens_depend_on_verify_len {
            // The length is decided slot by slot, at a price from before the draft.
            let price = self.row_prices.get(&view.number).copied().unwrap_or(0.0);
            Some(survival.iter().take_while(|&&chance| f64::from(chance) > price).count())
        } else {
            None
        };
        Prospect {
            reads: view.reads,
            cached: if view.reads == 0 { view.position } else { 0 },
            slots: view.block_size,
            fixed,
            survival,
            value: None,
            may_draft: view.may_draft && view.draws,
            must_draft: !view.verify_len_is_free && view.may_draft,
            draws: view.draws,
        }
    }

    /// Returns the price of time in tokens per second, which is the rate of the last steps, and the price of verifying
    /// one row of the batch, in tokens. The price of the first step is the largest expected rate of the batch: without
    /// drafts, with a separate drafting pass, or with drafts in the verification pass.
    fn prices(&mut self, prospects: &[Prospect], groups_allowed: bool) -> (f64, f64) {
        let mut base = StepShape { sequences: prospects.len(), ..StepShape::default() };
        let (mut tokens, mut drafting, mut slots) = (0.0, 0.0, 0);
        for prospect in prospects {
            base.candidates += prospect.reads.max(1);
            base.reads += prospect.reads;
            base.cached += prospect.cached;
            tokens += f64::from(u8::from(prospect.draws));
            if prospect.may_draft {
                drafting += 1.0;
                slots += prospect.slots;
            }
        }
        // Prompts take time that drafts do not save. If every step reads a prompt, time has a low price, but an
        // occasional prompt must not lower the price in the steps after it.
        let reads = base.reads > 0;
        if tokens == 0.0
            && let Some(price) = self.rates[usize::from(reads)].price()
        {
            return (price, self.last.row_price);
        }
        let alone = self.cost.seconds(&base);
        let decoding = StepShape { candidates: prospects.len(), reads: 0, ..base };
        if self.rates[1].reached.seconds == 0.0 {
            // No step has run yet, so prompts are assumed to be rare, and every sequence decodes when its prompt is read.
            let (decoded, seconds) = (prospects.len() as f64, self.cost.seconds(&decoding));
            let Rates { reached, without_drafts } = &mut self.rates[1];
            for rate in [reached, without_drafts] {
                (0..FIRST_STEPS).for_each(|_| rate.add(decoded, seconds));
            }
        }
        self.rates[1].without_drafts.add(tokens, alone);
        if !reads {
            self.rates[0].without_drafts.add(tokens, alone);
        }
        // The price is a rate that the policy has reached, or could have reached without drafts. An expected rate could
        // be too high: at a price above all rates that can be reached, every step has a negative worth, and the
        // shortest step would be chosen although its rate is the lowest.
        let reached = self.rates[usize::from(reads)].price();
        let mut best = (tokens, alone);
        let mut row_price = 0.0;
        let mut price = 0.0;
        for _ in 0..ROUNDS {
            let (gain, rows) = self.drafts.mean_above(row_price);
            let rows = (drafting * rows).round().max(1.0) as usize;
            let verifying = StepShape { candidates: base.candidates + rows, ..base };
            let seconds = self.cost.seconds(&verifying);
            let apart = StepShape { draft_rows: slots, draft_cached: base.cached, ..verifying };
            let with = tokens + drafting * gain;
            let mut compare = |seconds: f64| {
                if with / seconds > best.0 / best.1 {
                    best = (with, seconds);
                }
            };
            compare(self.cost.seconds(&apart));
            if groups_allowed {
                let groups = rows as f64 / f64::max(drafting, 1.0) + 1.0;
                let mask_rows = (slots as f64 * groups).round() as usize;
                let group_cached = (base.cached as f64 * groups) as usize;
                compare(self.cost.seconds(&StepShape { mask_rows, group_cached, ..verifying }));
            }
            price = reached.unwrap_or(best.0 / best.1);
            row_price = price * (seconds - alone).max(0.0) / rows as f64;
        }
        (price, row_price)
    }

    /// Returns the decision on the step.
    fn plan(&self, prospects: &[Prospect], price: f64, groups_allowed: bool) -> PlannedStep {
        let planner = Planner::new(&self.cost, prospects, price);
        let in_pass = if groups_allowed { planner.in_pass() } else { None };
        let plans: Vec<BatchPlan> =
            [planner.without_drafts(), planner.apart(0), in_pass].into_iter().flatten().collect();
        let compared: Vec<Alternative> = plans.iter().map(BatchPlan::summary).collect();
        let decide = |(chosen, plan): (usize, BatchPlan), trial, reason| {
            let mut compared = compared.clone();
            if chosen == compared.len() {
                compared.push(plan.summary());
            }
            PlannedStep { plan, trial, compared, chosen, reason }
        };
        let best =
            plans.iter().enumerate().max_by(|(_, a), (_, b)| a.worth(price).total_cmp(&b.worth(price)));
        let Some((place, best)) = best else {
            return decide((0, empty_plan(planner.base(), prospects.len())), None, Reason::Best);
        };
        let worth = best.worth(price);
        for (index, plan) in plans.iter().enumerate().filter(|&(index, _)| index != place) {
            let loss = ((worth - plan.worth(price)) / price).max(0.0);
            let cost = loss.max(plan.seconds - best.seconds);
            // The error takes longer to compute than the rest of the choice, and the budget rarely allows a trial.
            let may_be_better = || {
                let of_model = self.cost.error_between(&plan.shape, &best.shape);
                of_model.hypot(self.runs.error(plan.drafting, prospects.len()) * plan.seconds) > loss
            };
            if self.budget.allows(cost) && may_be_better() {
                return decide((index, plan.clone()), Some(cost), Reason::UnknownDuration);
            }
        }
        let stale = self.since_drafts >= STALE && best.drafting == DraftingWay::None;
        if stale && let Some(plan) = planner.apart(1) {
            let cost = plan.seconds - best.seconds;
            if self.budget.allows(cost) {
                return decide((plans.len(), plan), Some(cost), Reason::OldDrafts);
            }
        }
        decide((place, best.clone()), None, Reason::Best)
    }
}

/// Returns the index of the calibration for the confidences of a sequence.
fn calibration_of(view: &SequenceView<'_>) -> usize {
    if view.proposes { 2 } else { usize::from(view.tokens_depend_on_verify_len) }
}

/// Returns a plan without tokens and drafts, for a step in which no plan is possible.
fn empty_plan(base: &StepShape, sequences: usize) -> BatchPlan {
    BatchPlan {
        drafting: DraftingWay::None,
        verify_lens: vec![0; sequences],
        drafts: vec![false; sequences],
        groups: vec![GroupSet::NONE; sequences],
        tokens: 0.0,
        seconds: 0.0,
        shape: *base,
    }
}

#[cfg(test)]
mod tests {
    use super::{BatchView, CostModel, Flex, Policy, SequenceView, StepShape};

    #[test]
    fn time_is_not_cheap_while_the_first_prompts_are_read() {
        let decodes = SequenceView { position: 100, draws: true, wanted: 100, ..SequenceView::default() };
        let reads = SequenceView { reads: 64, wanted: 100, ..SequenceView::default() };
        let mut views = vec![reads; 7];
        views.push(decodes);
        let mut flex = Flex::new(CostModel::default());
        flex.choose(&BatchView { sequences: &views, groups_allowed: true });
        let shape = StepShape { sequences: 8, candidates: 8, cached: 100, ..StepShape::default() };
        let rate = 8.0 / CostModel::default().seconds(&shape);
        let price = flex.explanation().unwrap().price;
        assert!(
            price > 0.8 * rate,
            "the price is {price}, but eight sequences decode {rate} tokens a second"
        );
    }
}

//! The value of a draft: how many tokens the next step is expected to gain from it.
//!
//! The value of a draft is the sum, over the slots whose acceptance probability is above the price of a row, of that
//! probability minus the price. The confidences of the next draft are not known when the policy asks for it, so the
//! value is an average over earlier drafts: drafts of the same sequence, whose weight grows with their number, and
//! drafts of all sequences.

use std::collections::{HashMap, VecDeque};

use super::calibration::ConfidenceCalibration;

/// Number of drafts over which the averages of all sequences are taken: this many per sequence, within the bounds
/// below.
const PER_SEQUENCE: usize = 4;
const LEAST: usize = 96;
const MOST: usize = 512;
/// Number of drafts over which the average of one sequence is taken.
const OWN: usize = 6;
/// Number of a sequence's own drafts that weigh as much as the average over all sequences.
const PRIOR: f64 = 6.0;

/// Number of drafts of all sequences whose chances are computed anew after each step, because the calibration of confidences has
/// changed since.
const RENEWED: usize = 32;
/// Number of steps after which the chances of a sequence's own drafts are computed anew.
const RENEW_OWN_EVERY: u64 = 16;

/// A draft that was made.
#[derive(Clone, Debug)]
struct PastDraft {
    confidence: Vec<f32>,
    /// Index of the calibration of the confidences.
    calibration: usize,
    /// The chances that the first j + 1 draft tokens are all accepted, for each slot j.
    chances: Vec<f32>,
}

impl PastDraft {
    fn renew(&mut self, calibrations: &[ConfidenceCalibration]) {
        self.chances.clear();
        calibrations[self.calibration].survival(&self.confidence, &mut self.chances);
    }
}

/// The last drafts of a sequence.
#[derive(Clone, Debug, Default)]
struct OwnDrafts {
    drafts: VecDeque<PastDraft>,
    /// The step in which all chances were last computed.
    renewed: u64,
}

/// The survival curves of earlier drafts.
#[derive(Clone, Debug, Default)]
pub(super) struct Drafts {
    all: VecDeque<PastDraft>,
    own: HashMap<u64, OwnDrafts>,
    /// Number of steps so far.
    step: u64,
    /// Place in `all` of the draft that is renewed next, and the number of drafts to renew since the calibration changed.
    next: usize,
    outdated: usize,
}

impl Drafts {
    /// Adds a draft of the sequence `number`, one of `sequences`. The confidences have the calibration `calibration` among
    /// `calibrations`.
    pub(super) fn add(
        &mut self,
        number: u64,
        confidence: &[f32],
        (calibrations, calibration): (&[ConfidenceCalibration], usize),
        sequences: usize,
    ) {
        while self.all.len() >= (PER_SEQUENCE * sequences).clamp(LEAST, MOST) {
            self.all.pop_front();
        }
        let mut draft = PastDraft { confidence: confidence.to_vec(), calibration, chances: Vec::new() };
        draft.renew(calibrations);
        let own = self.own.entry(number).or_default();
        if own.drafts.len() >= OWN {
            own.drafts.pop_front();
        }
        own.drafts.push_back(draft.clone());
        self.all.push_back(draft);
    }

    /// Ends a step: computes the chances of some drafts anew. `changed` says whether the step verified draft tokens, so that the
    /// calibrations changed.
    pub(super) fn end_step(&mut self, calibrations: &[ConfidenceCalibration], changed: bool) {
        self.step += 1;
        if changed {
            self.outdated = self.all.len();
        }
        let renewed = self.outdated.min(RENEWED);
        self.outdated -= renewed;
        for _ in 0..renewed {
            self.next = (self.next + 1) % self.all.len();
            self.all[self.next].renew(calibrations);
        }
    }

    /// Forgets the drafts of sequences for which `is_there` returns false.
    pub(super) fn keep(&mut self, is_there: impl Fn(u64) -> bool) {
        self.own.retain(|&number, _| is_there(number));
    }

    /// Returns two means over all drafts: the sum of the chances above `price`, which is the number of tokens that a
    /// draft gains, and the number of such chances, which is the number of rows that verify them.
    pub(super) fn mean_above(&self, price: f64) -> (f64, f64) {
        if self.all.is_empty() {
            // Before the first draft, a trained drafter is assumed to gain this much.
            return (1.5, 3.0);
        }
        let mut sums = (0.0, 0.0);
        let chances = self.all.iter().flat_map(|draft| &draft.chances);
        for &chance in chances.filter(|&&chance| f64::from(chance) > price) {
            sums.0 += f64::from(chance);
            sums.1 += 1.0;
        }
        (sums.0 / self.all.len() as f64, sums.1 / self.all.len() as f64)
    }

    /// Returns the value of a draft of any sequence, in tokens, if verifying a row costs `price` tokens.
    pub(super) fn value_of_any(&self, price: f64) -> f64 {
        let (chances, rows) = self.mean_above(price);
        chances - price * rows
    }

    /// Returns the value of the next draft of the sequence `number`, in tokens, if verifying a row costs `price` tokens and
    /// `of_any` is the value of a draft of any sequence. At most `most` tokens of a draft are wanted.
    pub(super) fn value(
        &mut self,
        number: u64,
        calibrations: &[ConfidenceCalibration],
        (price, of_any): (f64, f64),
        most: usize,
    ) -> f64 {
        let Some(own) = self.own.get_mut(&number) else { return of_any.min(most as f64) };
        // Sequences take turns, so that no step renews the drafts of all.
        let turn = number % RENEW_OWN_EVERY;
        if (self.step + turn) / RENEW_OWN_EVERY > (own.renewed + turn) / RENEW_OWN_EVERY {
            own.renewed = self.step;
            own.drafts.iter_mut().for_each(|draft| draft.renew(calibrations));
        }
        let value = |draft: &PastDraft| {
            let chances = draft.chances.iter().take(most).map(|&chance| (f64::from(chance) - price).max(0.0));
            chances.sum::<f64>()
        };
        let sum: f64 = own.drafts.iter().map(value).sum();
        ((sum + PRIOR * of_any) / (own.drafts.len() as f64 + PRIOR)).min(most as f64)
    }
}

#[cfg(test)]
mod tests {
    use super::{ConfidenceCalibration, Drafts, RENEW_OWN_EVERY};

    #[test]
    fn drafts_are_valued_with_what_was_learned_since() {
        let mut calibrations = [ConfidenceCalibration::default()];
        let mut drafts = Drafts::default();
        for _ in 0..96 {
            drafts.add(7, &[0.9, 0.9], (&calibrations, 0), 1);
        }
        let value = |drafts: &mut Drafts, calibrations: &[ConfidenceCalibration]| {
            let of_any = drafts.value_of_any(0.0);
            drafts.value(7, calibrations, (0.0, of_any), 2)
        };
        assert!((value(&mut drafts, &calibrations) - 1.71).abs() < 1e-5);
        (0..400).for_each(|_| calibrations[0].observe(&[0.9, 0.9], 2, 0));
        for step in 0..2 * RENEW_OWN_EVERY {
            drafts.end_step(&calibrations, step == 0);
        }
        let value = value(&mut drafts, &calibrations);
        assert!(value < 0.1, "no draft token was accepted, but a draft is worth {value}");
    }
}

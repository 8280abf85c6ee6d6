//! The value of a draft: how many tokens the next step is expected to gain from it.
//!
//! The value of a draft is the sum, over the slots whose acceptance probability is above the price of a row, of that
//! probability minus the price. The confidences of the next draft are not known when the policy asks for it, so the
//! value is an average over earlier drafts: drafts of the same sequence, whose weight grows with their number, and
//! drafts of all sequences.

use std::collections::{HashMap, VecDeque};

/// Number of drafts over which the averages of all sequences are taken: this many per sequence, within the bounds
/// below.
const PER_SEQUENCE: usize = 4;
const LEAST: usize = 96;
const MOST: usize = 512;
/// Number of drafts over which the average of one sequence is taken.
const OWN: usize = 6;
/// Number of a sequence's own drafts that weigh as much as the average over all sequences.
const PRIOR: f64 = 6.0;

/// The chances that the first j + 1 draft tokens are all accepted, for each slot j.
pub(super) type Curve = Vec<f32>;

/// The survival curves of earlier drafts.
#[derive(Clone, Debug, Default)]
pub(super) struct Drafts {
    all: VecDeque<Curve>,
    own: HashMap<u64, VecDeque<Curve>>,
}

impl Drafts {
    /// Adds a draft of the sequence `number`, one of `sequences`.
    pub(super) fn add(&mut self, number: u64, curve: &[f32], sequences: usize) {
        while self.all.len() >= (PER_SEQUENCE * sequences).clamp(LEAST, MOST) {
            self.all.pop_front();
        }
        self.all.push_back(curve.to_vec());
        let own = self.own.entry(number).or_default();
        if own.len() >= OWN {
            own.pop_front();
        }
        own.push_back(curve.to_vec());
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
        for &chance in self.all.iter().flatten().filter(|&&chance| f64::from(chance) > price) {
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
    pub(super) fn value(&self, number: u64, price: f64, of_any: f64, most: usize) -> f64 {
        let Some(own) = self.own.get(&number) else { return of_any.min(most as f64) };
        let value = |curve: &Curve| {
            let chances = curve.iter().take(most).map(|&chance| (f64::from(chance) - price).max(0.0));
            chances.sum::<f64>()
        };
        let sum: f64 = own.iter().map(value).sum();
        ((sum + PRIOR * of_any) / (own.len() as f64 + PRIOR)).min(most as f64)
    }
}

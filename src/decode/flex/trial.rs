//! Trials: steps that are not expected to be the best, taken to learn their cost or their gain.
//!
//! Trials may take at most 1% of the time. A trial lasts one step. Its measurement then influences the next choice like
//! any other measurement, so a trial that costs twice as much as the best step is not repeated.

use super::choice::DraftingWay;

/// The fraction of all time that trials may take.
const SHARE: f64 = 0.01;

/// Number of steps whose share of time is available from the beginning.
const FIRST_STEPS: f64 = 60.0;

/// The time that trials may take.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Budget {
    /// Seconds that trials may take now. Negative after a trial that took longer than expected.
    seconds: f64,
    /// Seconds that the trial of the current step is expected to cost, if there is one.
    expected: Option<f64>,
    started: bool,
}

impl Budget {
    /// Returns whether a trial that is expected to cost `seconds` may run.
    pub(super) fn allows(&self, seconds: f64) -> bool {
        seconds <= self.seconds
    }

    /// Begins a trial that is expected to cost `seconds`.
    pub(super) fn begin(&mut self, seconds: f64) {
        self.expected = Some(seconds);
    }

    /// Records a step that took `seconds` and was expected to take `expected` seconds. Without the prompts that it
    /// read, the step would have taken `decoding` seconds: a long prompt at the beginning must not pay for trials.
    pub(super) fn step(&mut self, seconds: f64, expected: f64, decoding: impl Fn() -> f64) {
        if !self.started {
            (self.started, self.seconds) = (true, SHARE * FIRST_STEPS * decoding().min(seconds));
        }
        // An outlier must not pay for trials.
        self.seconds += SHARE * seconds.min(2.0 * expected);
        self.seconds = self.seconds.min(SHARE * 1000.0 * expected);
        if let Some(cost) = self.expected.take() {
            self.seconds -= cost + (seconds - expected).max(0.0);
        }
    }
}

/// How often each way of drafting has run recently, by batch size.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Runs([[f64; SIZES]; 3]);

/// Number of classes of batch sizes: all sizes with the same number of binary digits.
const SIZES: usize = 16;

/// Relative error of the expected duration of a step that never ran at a batch size.
const NEVER_RAN: f64 = 0.15;

/// Number of steps after which the weight of a run has fallen to 1/e.
const MEMORY: f64 = 400.0;

impl Runs {
    fn place(drafting: DraftingWay, batch: usize) -> (usize, usize) {
        let way = match drafting {
            DraftingWay::None => 0,
            DraftingWay::Apart => 1,
            DraftingWay::InPass(_) => 2,
        };
        (way, (batch.max(1).ilog2() as usize).min(SIZES - 1))
    }

    /// Records a step that drafts in one way, and reduces the weight of all earlier steps.
    pub(super) fn add(&mut self, drafting: DraftingWay, batch: usize) {
        self.0.iter_mut().flatten().for_each(|count| *count *= 1.0 - 1.0 / MEMORY);
        let (way, size) = Self::place(drafting, batch);
        self.0[way][size] += 1.0;
    }

    /// Returns the relative error that the expected duration of a step may have because similar steps have not run, or
    /// not recently.
    pub(super) fn error(&self, drafting: DraftingWay, batch: usize) -> f64 {
        let (way, size) = Self::place(drafting, batch);
        NEVER_RAN / (1.0 + self.0[way][size]).sqrt()
    }
}

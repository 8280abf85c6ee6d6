//! Trials: steps that are not expected to be the best, taken to learn their cost or their gain.
//!
//! Trials may take at most 1% of the time that decoding takes. A trial lasts one step. Its measurement then influences the
//! next choice like any other measurement, so a trial that costs twice as much as the best step is not repeated.

use super::choice::DraftingWay;

/// The fraction of the time of decoding that trials may take.
const SHARE: f64 = 0.01;

/// Number of decoding steps whose share of time is available from the beginning.
const FIRST_STEPS: f64 = 60.0;

/// Number of decoding steps whose share of time the budget can hold.
const MOST_STEPS: f64 = 1000.0;

/// Durations of a step in seconds.
#[derive(Clone, Copy, Debug)]
pub(super) struct StepSeconds {
    /// The measured duration.
    pub(super) measured: f64,
    /// The duration that was expected when the step was chosen.
    pub(super) planned: f64,
    /// The duration that the cost model expects of the rows that ran.
    pub(super) expected: f64,
    /// The duration that the cost model expects of the same rows without prompts; 0 if all rows read prompts.
    pub(super) decoding: f64,
}

/// The time that trials may take.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Budget {
    /// Seconds that trials may take now. Negative after a trial that took longer than expected.
    seconds: f64,
    /// Seconds that the trial of the current step is expected to cost, if there is one.
    trial: Option<f64>,
    /// Whether a step has decoded.
    started: bool,
}

impl Budget {
    /// Returns whether a trial that is expected to cost `seconds` may run.
    pub(super) fn allows(&self, seconds: f64) -> bool {
        seconds <= self.seconds
    }

    /// Begins a trial that is expected to cost `seconds`.
    pub(super) fn begin(&mut self, seconds: f64) {
        self.trial = Some(seconds);
    }

    /// Records a step. Only the part of the step's time that decodes pays for trials, because long prompts would pay for many
    /// trials. For the same reason, a trial is not charged for prompts that took longer than expected.
    pub(super) fn step(&mut self, step: StepSeconds) {
        let StepSeconds { measured, planned, expected, decoding } = step;
        let part = if decoding > 0.0 { (decoding / expected).min(1.0) } else { 0.0 };
        if part > 0.0 {
            if !self.started {
                (self.started, self.seconds) = (true, SHARE * FIRST_STEPS * decoding.min(measured));
            }
            // An outlier must not pay for trials.
            self.seconds += SHARE * part * measured.min(2.0 * planned);
            self.seconds = self.seconds.min(SHARE * MOST_STEPS * part * planned);
        }
        if let Some(cost) = self.trial.take() {
            self.seconds -= cost + part * (measured - planned).max(0.0);
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

#[cfg(test)]
mod tests {
    use super::{Budget, StepSeconds};

    const DECODES: StepSeconds =
        StepSeconds { measured: 1e-3, planned: 1e-3, expected: 1e-3, decoding: 1e-3 };
    /// A step that decodes like [`DECODES`] and reads a prompt.
    const READS_TOO: StepSeconds =
        StepSeconds { measured: 8e-3, planned: 8e-3, expected: 8e-3, decoding: 1e-3 };
    const READS: StepSeconds = StepSeconds { decoding: 0.0, ..READS_TOO };

    /// Returns the budget after `count` steps.
    fn after(count: usize, step: StepSeconds) -> f64 {
        let mut budget = Budget::default();
        (0..count).for_each(|_| budget.step(step));
        budget.seconds
    }

    #[test]
    fn prompts_do_not_pay_for_trials() {
        for count in [1, 2, 100, 5000] {
            let (with, without) = (after(count, READS_TOO), after(count, DECODES));
            assert!(
                (with / without - 1.0).abs() < 1e-9,
                "{count} steps: {with} s, without prompts {without} s"
            );
        }
        assert_eq!(after(100, READS), 0.0);
    }

    #[test]
    fn steps_that_only_read_leave_the_budget_as_it_is() {
        let mut budget = Budget::default();
        budget.step(READS);
        (0..10).for_each(|_| budget.step(DECODES));
        assert!((budget.seconds - 7e-4).abs() < 1e-12, "the share of 60 + 10 steps, not {}", budget.seconds);
        budget.step(READS);
        assert!((budget.seconds - 7e-4).abs() < 1e-12, "{}", budget.seconds);
        assert!(budget.allows(6e-4) && !budget.allows(8e-4));
        budget.begin(6e-4);
        budget.step(StepSeconds { measured: 1.3e-3, ..DECODES });
        // The trial took 0.3 ms longer than expected.
        let rest = 7e-4 + 1.3e-5 - 6e-4 - 3e-4;
        assert!((budget.seconds - rest).abs() < 1e-12, "{}", budget.seconds);
        budget.begin(0.0);
        budget.step(StepSeconds { measured: 8.8e-3, ..READS_TOO });
        // Of the 0.8 ms that the step took longer, an eighth is for decoding.
        let rest = rest + 1.1e-5 - 1e-4;
        assert!((budget.seconds - rest).abs() < 1e-12, "{}", budget.seconds);
    }
}

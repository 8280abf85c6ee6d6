//! The policy `auto`, which measures every mode and chooses the mode that takes the least time per token.
//!
//! An autoregressive step commits one token per sequence, and a step with drafts commits τ tokens on average (the
//! acceptance length). The time of a step depends on the machine, the model and the batch, and τ depends on the text;
//! none of the four is known beforehand. So [`Auto`] times the steps that are taken anyway, keeps an average per mode
//! and batch size, and at times gives another mode a short trial: soon if the mode was the best until recently, and
//! rarely if it has lost several trials. Two rules save trials. The larger the batch, the less is gained by drafting,
//! and by drafting in parallel. And a parallel step is never faster than an autoregressive step.

use std::collections::BTreeMap;

use super::policy::{BatchView, Choice, Mode, Policy, StepView};
use super::record::StepMode;

/// Number of measured steps after which a trial ends.
const TRIAL_STEPS: u32 = 4;

/// Number of steps after which a trial ends in any case: some steps are no measurements, such as steps that read
/// prompts.
const TRIAL_LIMIT: u32 = 16;

/// A trial ends early once the tried mode takes at least this many times the best mode's time per token: after the
/// first measured step, and after any later step.
const HOPELESS_AT_FIRST: f64 = 4.0;
const HOPELESS: f64 = 2.0;

/// Number of steps until a mode is tried again: the initial number, which grows with every lost trial, and the maximum.
const FIRST_PATIENCE: u64 = 32;
const MAX_PATIENCE: u64 = 1024;

/// Another mode becomes the best mode if it takes less than this fraction of the best mode's time per token.
const GAIN: f64 = 0.95;

/// Approximate number of past steps that an average takes into account.
const MEMORY: f64 = 16.0;

/// Factor on the weight of the average acceptance length when a trial brings drafts back after steps without drafts:
/// the text may have changed in between.
const FADED: f64 = 0.25;

/// The modes, in the order in which they are tried.
const MODES: [Mode; 3] = [Mode::Sequential, Mode::Autoregressive, Mode::Parallel];

/// A policy that chooses between autoregressive, sequential and parallel steps by their measured time per token.
///
/// Greedy and `match` outputs do not depend on the choice. Requests whose tokens depend on the verify length (see
/// [`SequenceView::verify_len_is_free`](super::SequenceView::verify_len_is_free)) always get drafts, so a batch with
/// such a request is never autoregressive.
#[derive(Debug)]
pub struct Auto {
    /// Number of steps that the policy has observed.
    steps: u64,
    /// The mode of the last choice.
    chosen: Mode,
    /// The mode with the least known time per token, which is chosen outside trials.
    best: Mode,
    trial: Option<Trial>,
    /// The measurements of each mode, in the order of [`MODES`].
    known: [Known; MODES.len()],
    /// τ: the average number of tokens that a step with drafts commits per sequence.
    tokens: Average,
}

#[derive(Clone, Copy, Debug)]
struct Trial {
    mode: Mode,
    batch: usize,
    taken: u32,
    measured: u32,
}

/// The measurements of one mode, and the time of its next trial.
#[derive(Debug)]
struct Known {
    costs: Costs,
    /// Whether a step in this decoding mode was timed before. The first step is not counted, because it allocates memory.
    warm: bool,
    /// The number of the step from which the next trial is due, and the number of steps from a trial to the one after
    /// it.
    due: u64,
    patience: u64,
    /// The batch sizes at which the mode was tried, and at which it lost: one bit for all sizes from one power of two
    /// to the next.
    tried: u64,
    lost: u64,
}

impl Default for Auto {
    fn default() -> Self {
        let known = || Known {
            costs: Costs::default(),
            warm: false,
            due: 0,
            patience: FIRST_PATIENCE,
            tried: 0,
            lost: 0,
        };
        Self {
            steps: 0,
            chosen: Mode::Sequential,
            best: Mode::Sequential,
            trial: None,
            known: [known(), known(), known()],
            tokens: Average::default(),
        }
    }
}

impl Policy for Auto {
    fn choose(&mut self, batch: &BatchView<'_>) -> Vec<Choice> {
        let may_skip_drafts = batch.sequences.iter().all(|view| view.verify_len_is_free);
        let allowed = |mode: Mode| {
            (may_skip_drafts || mode.drafts()) && (batch.groups_allowed || mode != Mode::Parallel)
        };
        self.chosen = self.mode(batch.sequences.len(), allowed);
        self.chosen.choose(batch)
    }

    fn observe(&mut self, step: &StepView<'_>) {
        self.steps += 1;
        let mode = self.chosen;
        let batch = step.sequences.len();
        let measures = measures(step, mode);
        if measures {
            let committed: usize = step.sequences.iter().map(|sequence| sequence.committed).sum();
            if mode.drafts() {
                self.tokens.add(committed as f64 / batch as f64);
            }
            let known = &mut self.known[place(mode)];
            if known.warm {
                known.costs.add(batch, step.seconds);
            }
            known.warm = true;
        }
        let Some(trial) = &mut self.trial else { return };
        trial.taken += 1;
        trial.measured += u32::from(measures);
        let Trial { mode, batch, taken, measured } = *trial;
        let times = match measured {
            0 => f64::INFINITY,
            1 => HOPELESS_AT_FIRST,
            _ => HOPELESS,
        };
        let hopeless = self.times_the_best(mode, batch).is_some_and(|found| found >= times);
        if measured >= TRIAL_STEPS || taken >= TRIAL_LIMIT || hopeless {
            self.trial = None;
            self.judge(mode, batch, measured);
        }
    }

    fn name(&self) -> &'static str {
        "auto"
    }
}

impl Auto {
    /// Returns the mode of the next step.
    fn mode(&mut self, batch: usize, allowed: impl Fn(Mode) -> bool) -> Mode {
        if let Some(trial) = self.trial.filter(|trial| allowed(trial.mode)) {
            return trial.mode;
        }
        self.trial = None;
        let before = self.best;
        if !allowed(self.best) {
            self.best = Mode::Sequential;
        }
        for mode in MODES {
            if allowed(mode) && self.times_the_best(mode, batch).is_some_and(|times| times < GAIN) {
                self.best = mode;
            }
        }
        if self.best != before {
            // The former best mode was good until now, so it gets a trial soon.
            let known = &mut self.known[place(before)];
            (known.patience, known.due) = (FIRST_PATIENCE, self.steps + FIRST_PATIENCE);
        }
        match MODES.into_iter().find(|&mode| allowed(mode) && self.is_due(mode, batch)) {
            Some(mode) => self.try_out(mode, batch),
            None => self.best,
        }
    }

    fn try_out(&mut self, mode: Mode, batch: usize) -> Mode {
        if mode.drafts() && !self.best.drafts() {
            self.tokens.weight *= FADED;
        }
        let known = &mut self.known[place(mode)];
        known.tried |= size_bit(batch);
        known.due = self.steps + known.patience;
        self.trial = Some(Trial { mode, batch, taken: 0, measured: 0 });
        mode
    }

    /// Ends a trial: decides from the times per token whether the mode lost, and when to try it again.
    fn judge(&mut self, mode: Mode, batch: usize, measured: u32) {
        let times = self.times_the_best(mode, batch).unwrap_or(1.0);
        // A loss also rules out other batch sizes, because larger batches gain less by drafting, and less by drafting
        // in parallel. A loss of sequential drafting against parallel drafting says nothing about other batch sizes.
        let telling = mode != Mode::Sequential || self.best == Mode::Autoregressive;
        let known = &mut self.known[place(mode)];
        if measured == 0 {
            known.tried &= !size_bit(batch);
        } else if times >= 1.0 {
            known.lost |= if telling { size_bit(batch) } else { 0 };
            // The slower the mode was in its trial, the later it is tried again.
            known.patience = (known.patience as f64 * 2.0 * times).min(MAX_PATIENCE as f64) as u64;
        } else {
            known.lost &= !size_bit(batch);
            known.patience = FIRST_PATIENCE;
        }
        known.due = self.steps + known.patience;
    }

    /// Returns a mode's time per token of one sequence in seconds, if it is known.
    fn cost(&self, mode: Mode, batch: usize) -> Option<f64> {
        let seconds = self.known[place(mode)].costs.at(batch)?;
        let tokens = if mode.drafts() { self.tokens.mean()? } else { 1.0 };
        Some(seconds / tokens)
    }

    /// Returns a mode's time per token divided by the best mode's time per token, if both are known.
    fn times_the_best(&self, mode: Mode, batch: usize) -> Option<f64> {
        Some(self.cost(mode, batch)? / self.cost(self.best, batch)?)
    }

    fn is_due(&self, mode: Mode, batch: usize) -> bool {
        let Some(best) = self.cost(self.best, batch).filter(|_| mode != self.best) else { return false };
        let known = &self.known[place(mode)];
        if mode == Mode::Parallel
            && let (Some(ar), Some(tokens)) =
                (self.known[place(Mode::Autoregressive)].costs.at(batch), self.tokens.mean())
            && ar / tokens >= GAIN * best
        {
            // Even if a parallel step took only the time of an autoregressive step, the parallel mode would not become
            // the best mode.
            return false;
        }
        let size = size_bit(batch);
        // Two bit masks over classes of batch sizes: the classes up to that of `batch`, and the classes from it on.
        let (smaller, larger) = (size | (size - 1), !(size - 1));
        let hopeless = known.lost & if mode.drafts() { smaller } else { larger } != 0;
        let unknown_here = known.tried & size == 0 && !hopeless;
        unknown_here || self.steps >= known.due
    }
}

/// Returns whether this step is a valid timing sample for `mode`: no sequence read a prompt, and at least three
/// quarters of the sequences ran in `mode`. The other sequences have just joined or are about to end.
fn measures(step: &StepView<'_>, mode: Mode) -> bool {
    let expected = match mode {
        Mode::Autoregressive => StepMode::Autoregressive,
        Mode::Sequential => StepMode::Sequential,
        Mode::Parallel => StepMode::Parallel,
    };
    let others = step.sequences.iter().filter(|sequence| {
        sequence.mode != Some(expected) || mode.drafts() && !(sequence.had_draft && sequence.drafted)
    });
    let prompts = step.sequences.iter().any(|sequence| sequence.mode.is_none());
    !step.sequences.is_empty() && !prompts && 4 * others.count() <= step.sequences.len()
}

fn place(mode: Mode) -> usize {
    match mode {
        Mode::Sequential => 0,
        Mode::Autoregressive => 1,
        Mode::Parallel => 2,
    }
}

/// Returns the bit that stands for all batch sizes with as many binary digits as `batch`.
fn size_bit(batch: usize) -> u64 {
    1 << batch.max(1).ilog2().min(62)
}

/// A running average, in which old values lose weight.
#[derive(Clone, Copy, Debug, Default)]
struct Average {
    value: f64,
    /// The number of values that the average counts as, at most [`MEMORY`].
    weight: f64,
}

impl Average {
    fn add(&mut self, value: f64) {
        let mean = self.mean().unwrap_or(value);
        self.weight = (self.weight + 1.0).min(MEMORY);
        self.value = mean + (value - mean) / self.weight;
    }

    fn mean(&self) -> Option<f64> {
        (self.weight > 0.0).then_some(self.value)
    }
}

/// The average duration of a mode's steps in seconds, for each batch size.
#[derive(Debug, Default)]
struct Costs(BTreeMap<usize, Average>);

impl Costs {
    fn add(&mut self, batch: usize, seconds: f64) {
        let average = self.0.entry(batch).or_default();
        // A step may be slow because of another program, so it counts as no more than twice the average.
        let seconds = average.mean().map_or(seconds, |mean| seconds.min(2.0 * mean));
        average.add(seconds);
    }

    /// Returns the expected duration of a step with `batch` sequences: the average at this batch size; otherwise the
    /// linear interpolation between the nearest smaller and larger size; otherwise the average at the nearest size, of
    /// which one half is scaled with the number of sequences.
    fn at(&self, batch: usize) -> Option<f64> {
        let mean = |(&size, average): (&usize, &Average)| Some((size as f64, average.mean()?));
        let below = self.0.range(..=batch).next_back().and_then(mean);
        let above = self.0.range(batch..).next().and_then(mean);
        let batch = batch as f64;
        match (below, above) {
            (Some((size, cost)), Some((next_size, next_cost))) if next_size > size => {
                Some(cost + (next_cost - cost) * (batch - size) / (next_size - size))
            }
            (Some((size, cost)), _) | (None, Some((size, cost))) => Some(cost * (1.0 + batch / size) / 2.0),
            (None, None) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::policy::{SequenceStep, SequenceView};
    use super::*;
    use crate::acceptance::Rule;

    const VERIFY_LEN: usize = 7;
    const SLOTS: f64 = 8.0;

    /// A simulated machine after the roofline model: a pass takes the time to read the weights or the time to compute
    /// its rows, whichever is longer.
    #[derive(Clone, Debug)]
    struct Machine {
        /// Seconds to read the weights in a pass, and seconds to compute one row.
        read: f64,
        row: f64,
        /// The fraction of the model's layers that mask rows go through.
        tail: f64,
        /// The largest random addition to a step's time, as a fraction of that time.
        noise: f64,
        random: u64,
        groups_allowed: bool,
    }

    impl Machine {
        /// Returns a GPU, which computes a row in a 267th of the time to read the weights.
        fn gpu() -> Self {
            Self { read: 5e-3, row: 5e-3 / 267.0, tail: 0.15, noise: 0.05, random: 1, groups_allowed: true }
        }

        /// Returns a CPU, which computes ten rows in the time to read the weights.
        fn cpu() -> Self {
            Self { row: 5e-4, ..Self::gpu() }
        }

        fn uniform(&mut self) -> f64 {
            self.random = self.random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (self.random >> 11) as f64 / (1u64 << 53) as f64
        }

        /// Returns the duration of a step in seconds, without noise.
        fn seconds(&self, mode: Mode, batch: usize) -> f64 {
            let batch = batch as f64;
            let pass = |rows: f64| self.read.max(self.row * rows);
            let candidates = batch * (VERIFY_LEN + 1) as f64;
            match mode {
                Mode::Autoregressive => pass(batch),
                Mode::Sequential => pass(candidates) + self.tail * pass(batch * SLOTS),
                Mode::Parallel => pass(candidates * (1.0 + self.tail * SLOTS)),
            }
        }

        /// Returns the fastest mode, with its seconds per committed token of a sequence.
        fn best(&self, batch: usize, tau: f64) -> (Mode, f64) {
            let costs = MODES.map(|mode| {
                let tokens = if mode.drafts() { tau } else { 1.0 };
                (mode, self.seconds(mode, batch) / tokens)
            });
            costs.into_iter().min_by(|a, b| a.1.total_cmp(&b.1)).unwrap()
        }

        /// Runs steps of `batch` sequences with acceptance length `tau`. Returns how often each mode was chosen, and
        /// the total numbers of seconds and tokens.
        fn run(&mut self, auto: &mut Auto, steps: usize, batch: usize, tau: f64) -> ([usize; 3], f64, f64) {
            let (mut modes, mut total, mut tokens) = ([0; 3], 0.0, 0.0);
            let mut had_draft = false;
            for _ in 0..steps {
                let view = view(true);
                let choice = auto.choose(&BatchView {
                    sequences: &vec![view; batch],
                    groups_allowed: self.groups_allowed,
                })[0];
                let mode = match choice {
                    Choice { draft: false, .. } => Mode::Autoregressive,
                    Choice { groups, .. } if groups.contains(0) => Mode::Parallel,
                    _ => Mode::Sequential,
                };
                modes[place(mode)] += 1;
                // A drafting step with no draft to verify takes the same time and commits one token per sequence.
                let seconds = self.seconds(mode, batch) * (1.0 + self.noise * self.uniform());
                let sequences: Vec<_> = (0..batch)
                    .map(|_| {
                        // The number of committed tokens is random, between 1 and 8, with mean τ.
                        let more = if had_draft { tau - 1.0 } else { 0.0 };
                        let accepted = (0..VERIFY_LEN).filter(|_| self.uniform() < more / VERIFY_LEN as f64);
                        SequenceStep {
                            mode: Some(match mode {
                                Mode::Autoregressive if had_draft => StepMode::Sequential,
                                Mode::Autoregressive => StepMode::Autoregressive,
                                Mode::Sequential => StepMode::Sequential,
                                Mode::Parallel => StepMode::Parallel,
                            }),
                            had_draft,
                            drafted: mode.drafts(),
                            committed: 1 + accepted.count(),
                            ..SequenceStep::default()
                        }
                    })
                    .collect();
                auto.observe(&StepView { seconds, sequences: &sequences });
                had_draft = mode.drafts();
                total += seconds;
                tokens += sequences.iter().map(|sequence| sequence.committed as f64).sum::<f64>();
            }
            (modes, total, tokens)
        }
    }

    fn view(verify_len_is_free: bool) -> SequenceView<'static> {
        SequenceView {
            position: 100,
            block_size: 8,
            confidence: &[1.0; VERIFY_LEN],
            verify_len: VERIFY_LEN,
            verify_len_is_free,
            rule: Rule::Match,
            ..SequenceView::default()
        }
    }

    #[test]
    fn finds_the_best_mode() {
        for (mut machine, batch, tau, expected) in [
            (Machine::gpu(), 1, 3.0, Mode::Parallel),
            (Machine::gpu(), 64, 5.0, Mode::Sequential),
            (Machine::gpu(), 64, 1.1, Mode::Autoregressive),
            (Machine::cpu(), 1, 3.0, Mode::Sequential),
            (Machine::cpu(), 1, 1.05, Mode::Autoregressive),
            (Machine::cpu(), 16, 3.0, Mode::Autoregressive),
        ] {
            assert_eq!(machine.best(batch, tau).0, expected, "{machine:?} {batch} {tau}");
            let mut auto = Auto::default();
            let (modes, ..) = machine.run(&mut auto, 1000, batch, tau);
            assert!(modes[place(expected)] > 850, "{machine:?} {batch} {tau}: {modes:?}");
        }
    }

    #[test]
    fn parallel_is_never_chosen_where_groups_are_not_allowed() {
        for (tau, expected) in [(3.0, Mode::Sequential), (1.05, Mode::Autoregressive)] {
            let mut machine = Machine { groups_allowed: false, ..Machine::gpu() };
            let (modes, ..) = machine.run(&mut Auto::default(), 1000, 1, tau);
            assert_eq!(modes[place(Mode::Parallel)], 0);
            assert!(modes[place(expected)] > 850, "{tau}: {modes:?}");
        }
    }

    #[test]
    fn follows_the_batch_and_the_text() {
        let mut machine = Machine::gpu();
        let mut auto = Auto::default();
        for _ in 0..2 {
            for (batch, tau) in [(1, 4.0), (64, 4.0), (3, 4.0), (64, 1.1), (2, 4.0)] {
                machine.run(&mut auto, 200, batch, tau);
                let (modes, ..) = machine.run(&mut auto, 400, batch, tau);
                let (best, _) = machine.best(batch, tau);
                assert!(modes[place(best)] > 300, "batch {batch}, tau {tau}: {modes:?}, not {best:?}");
            }
        }
    }

    #[test]
    fn requests_that_must_be_drafted_for_are() {
        let mut auto = Auto::default();
        Machine::cpu().run(&mut auto, 500, 2, 1.0);
        assert_eq!(auto.best, Mode::Autoregressive);
        for _ in 0..100 {
            let choices =
                auto.choose(&BatchView { sequences: &[view(true), view(false)], groups_allowed: true });
            assert!(choices.iter().all(|choice| choice.draft));
        }
    }

    #[test]
    fn prompts_are_not_measured_and_trials_end() {
        let mut auto = Auto::default();
        Machine::cpu().run(&mut auto, 30, 1, 3.0);
        let costs = |auto: &Auto| MODES.map(|mode| auto.cost(mode, 1));
        let before = costs(&auto);
        for _ in 0..2000 {
            auto.choose(&BatchView { sequences: &[view(true)], groups_allowed: true });
            let reading = SequenceStep::default();
            auto.observe(&StepView { seconds: 1.0, sequences: &[reading] });
            assert!(auto.trial.is_none_or(|trial| trial.taken < TRIAL_LIMIT));
        }
        assert_eq!(costs(&auto), before);
        // A step without sequences changes no measurement, and causes no division by zero.
        auto.choose(&BatchView { sequences: &[], groups_allowed: true });
        auto.observe(&StepView { seconds: 1.0, sequences: &[] });
    }

    #[test]
    fn costs_of_unknown_batches_lie_between_those_of_known_ones() {
        let mut costs = Costs::default();
        assert_eq!(costs.at(4), None);
        costs.add(4, 1.0);
        assert_eq!([2, 4, 8].map(|batch| costs.at(batch)), [Some(0.75), Some(1.0), Some(1.5)]);
        costs.add(8, 3.0);
        assert_eq!([4, 6, 8, 16].map(|batch| costs.at(batch)), [Some(1.0), Some(2.0), Some(3.0), Some(4.5)]);
        // A very slow step counts as no more than twice the average.
        costs.add(4, 1000.0);
        assert_eq!(costs.at(4), Some(1.5));
    }

    proptest! {
        /// On any simulated machine, at any batch size and acceptance length, `Auto` takes at most 15 % more time per
        /// token than the fastest mode.
        #[test]
        fn little_is_lost(
            row in 1e-5f64..1e-3,
            tail in 0.02f64..0.6,
            noise in 0.0f64..0.2,
            batch in 1usize..65,
            tau in 1.0f64..7.0,
            random in any::<u64>(),
        ) {
            let mut machine = Machine { row, tail, noise, random, ..Machine::gpu() };
            let mut auto = Auto::default();
            let (modes, seconds, tokens) = machine.run(&mut auto, 4000, batch, tau);
            let best = machine.best(batch, tau);
            let lost = seconds / tokens * batch as f64 / (best.1 * (1.0 + noise / 2.0));
            prop_assert!(lost < 1.15, "{:.3} of the best, {:?}; chosen {:?}", lost, best, modes);
        }
    }
}

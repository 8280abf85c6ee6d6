//! The policy that measures: the mode that costs the least time a token.
//!
//! An autoregressive step yields one token a sequence, a drafted one the acceptance length τ. What a step costs
//! depends on the machine, the model and the batch, and τ on the text; none of them is known beforehand. So
//! [`Auto`] times the steps that are taken anyway, keeps an average for each mode and batch, and now and then
//! gives the other modes a short trial: soon after they were last good, rarely after they have lost again and
//! again. Two orders spare trials: the larger the batch, the less there is to gain by drafting, and by drafting in
//! parallel; and no joint pass is cheaper than an autoregressive step.

use std::collections::BTreeMap;

use super::policy::{BatchView, Choice, Mode, Policy, StepView};
use super::record::StepMode;

/// Steps of a trial that are measured.
const TRIAL_STEPS: u32 = 4;

/// Steps of a trial at most: steps that read prompts, say, measure nothing.
const TRIAL_LIMIT: u32 = 16;

/// A trial is given up once the mode has taken this many times the best one's time: after its first step, and
/// later.
const HOPELESS_AT_FIRST: f64 = 4.0;
const HOPELESS: f64 = 2.0;

/// Steps until a mode that has lost its trial gets another one: first, and at most.
const FIRST_PATIENCE: u64 = 32;
const MAX_PATIENCE: u64 = 1024;

/// What another mode must take less than, in parts of the current one's time.
const GAIN: f64 = 0.95;

/// Steps that an average reaches back, about.
const MEMORY: f64 = 16.0;

/// What remains of the weight of an acceptance length from before a trial: the text may have changed.
const FADED: f64 = 0.25;

/// The modes, in the order in which they are tried.
const MODES: [Mode; 3] = [Mode::Sequential, Mode::Autoregressive, Mode::Parallel];

/// Chooses between autoregressive, sequential and parallel steps by the time that they take a token.
///
/// Greedy and `match` outputs do not depend on it. Requests whose tokens depend on what is verified (see
/// [`SequenceView::verify_len_is_free`](super::SequenceView::verify_len_is_free)) are always drafted for, so a
/// batch with one of them is never autoregressive.
#[derive(Debug)]
pub struct Auto {
    /// Steps taken.
    steps: u64,
    /// The mode of the last choice.
    chosen: Mode,
    /// The best mode known, outside trials.
    best: Mode,
    trial: Option<Trial>,
    /// What is known of a mode, by its place in [`MODES`].
    known: [Known; MODES.len()],
    /// τ: tokens a sequence and drafted step.
    tokens: Average,
}

#[derive(Clone, Copy, Debug)]
struct Trial {
    mode: Mode,
    batch: usize,
    taken: u32,
    measured: u32,
}

/// What is known of a mode.
#[derive(Debug)]
struct Known {
    costs: Costs,
    /// Whether a step was taken: the first one allocates, and counts for nothing.
    warm: bool,
    /// The step at which the next trial is due, and how long the one after it is put off.
    due: u64,
    patience: u64,
    /// Sizes of batches (by powers of two, a bit each) at which it was tried, and at which it lost.
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
        self.chosen = self.mode(batch.sequences.len(), may_skip_drafts);
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
    /// The mode of the next step.
    fn mode(&mut self, batch: usize, may_skip_drafts: bool) -> Mode {
        let allowed = |mode: Mode| may_skip_drafts || mode.drafts();
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
            // It was good until now: not to be forgotten.
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

    /// Draws the conclusion from a trial.
    fn judge(&mut self, mode: Mode, batch: usize, measured: u32) {
        let times = self.times_the_best(mode, batch).unwrap_or(1.0);
        // With larger batches there is less to gain by drafting, and by drafting in parallel. Where sequential
        // drafting lost to parallel, that says nothing about them.
        let telling = mode != Mode::Sequential || self.best == Mode::Autoregressive;
        let known = &mut self.known[place(mode)];
        if measured == 0 {
            known.tried &= !size_bit(batch);
        } else if times >= 1.0 {
            known.lost |= if telling { size_bit(batch) } else { 0 };
            // The worse, the longer.
            known.patience = (known.patience as f64 * 2.0 * times).min(MAX_PATIENCE as f64) as u64;
        } else {
            known.lost &= !size_bit(batch);
            known.patience = FIRST_PATIENCE;
        }
        known.due = self.steps + known.patience;
    }

    /// Seconds a token of one sequence, so far as is known.
    fn cost(&self, mode: Mode, batch: usize) -> Option<f64> {
        let seconds = self.known[place(mode)].costs.at(batch)?;
        let tokens = if mode.drafts() { self.tokens.mean()? } else { 1.0 };
        Some(seconds / tokens)
    }

    /// A mode's time a token over that of the best one, if both are known.
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
            // Were all its rows but one for nothing, it would still not gain.
            return false;
        }
        let size = size_bit(batch);
        // Sizes up to this one, and from it on.
        let (smaller, larger) = (size | (size - 1), !(size - 1));
        let hopeless = known.lost & if mode.drafts() { smaller } else { larger } != 0;
        let unknown_here = known.tried & size == 0 && !hopeless;
        unknown_here || self.steps >= known.due
    }
}

/// Whether this step is a valid timing sample for `mode`: no sequence read a prompt, and at least three quarters of
/// the sequences ran in `mode`. The rest have just come or are about to go.
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

/// The bit of all batches with as many binary digits.
fn size_bit(batch: usize) -> u64 {
    1 << batch.max(1).ilog2().min(62)
}

/// An average that forgets.
#[derive(Clone, Copy, Debug, Default)]
struct Average {
    value: f64,
    /// The number of values in it, so far as they are remembered: at most [`MEMORY`].
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

/// Seconds of a mode's steps, by batch.
#[derive(Debug, Default)]
struct Costs(BTreeMap<usize, Average>);

impl Costs {
    fn add(&mut self, batch: usize, seconds: f64) {
        let average = self.0.entry(batch).or_default();
        // A step that was held up by something else says little.
        let seconds = average.mean().map_or(seconds, |mean| seconds.min(2.0 * mean));
        average.add(seconds);
    }

    /// What is known of the batch itself; else on the line between the nearest ones; else, as a step costs
    /// something by itself and something for each sequence, half and half.
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

    /// A machine by the roofline: a pass takes the time to read its weights or to compute its rows.
    #[derive(Clone, Debug)]
    struct Machine {
        /// Seconds to read the weights, and to compute a row.
        read: f64,
        row: f64,
        /// The part of the model that mask rows go through.
        tail: f64,
        /// Up to this part of a step's time is noise.
        noise: f64,
        random: u64,
    }

    impl Machine {
        /// A GPU, whose rows cost a 267th of reading the weights.
        fn gpu() -> Self {
            Self { read: 5e-3, row: 5e-3 / 267.0, tail: 0.15, noise: 0.05, random: 1 }
        }

        /// A CPU, where the tenth row costs as much as the weights.
        fn cpu() -> Self {
            Self { row: 5e-4, ..Self::gpu() }
        }

        fn uniform(&mut self) -> f64 {
            self.random = self.random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (self.random >> 11) as f64 / (1u64 << 53) as f64
        }

        /// Seconds of a step without noise.
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

        /// Seconds per committed token in the fastest mode.
        fn best(&self, batch: usize, tau: f64) -> (Mode, f64) {
            let costs = MODES.map(|mode| {
                let tokens = if mode.drafts() { tau } else { 1.0 };
                (mode, self.seconds(mode, batch) / tokens)
            });
            costs.into_iter().min_by(|a, b| a.1.total_cmp(&b.1)).unwrap()
        }

        /// Takes steps of `batch` sequences with acceptance length `tau`. Returns how often each mode was chosen
        /// and the seconds and tokens.
        fn run(&mut self, auto: &mut Auto, steps: usize, batch: usize, tau: f64) -> ([usize; 3], f64, f64) {
            let (mut modes, mut total, mut tokens) = ([0; 3], 0.0, 0.0);
            let mut had_draft = false;
            for _ in 0..steps {
                let view = view(true);
                let choice = auto.choose(&BatchView { sequences: &vec![view; batch] })[0];
                let mode = match choice {
                    Choice { draft: false, .. } => Mode::Autoregressive,
                    Choice { groups, .. } if groups.contains(0) => Mode::Parallel,
                    _ => Mode::Sequential,
                };
                modes[place(mode)] += 1;
                // Without a draft, a drafting step costs as much and yields one token.
                let seconds = self.seconds(mode, batch) * (1.0 + self.noise * self.uniform());
                let sequences: Vec<_> = (0..batch)
                    .map(|_| {
                        // A distribution on 1..=8 with mean τ: whole tokens at random.
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
            let choices = auto.choose(&BatchView { sequences: &[view(true), view(false)] });
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
            auto.choose(&BatchView { sequences: &[view(true)] });
            let reading = SequenceStep { mode: None, had_draft: false, drafted: false, committed: 0 };
            auto.observe(&StepView { seconds: 1.0, sequences: &[reading] });
            assert!(auto.trial.is_none_or(|trial| trial.taken < TRIAL_LIMIT));
        }
        assert_eq!(costs(&auto), before);
        // Nothing took part: nothing to learn, and nothing divided by.
        auto.choose(&BatchView { sequences: &[] });
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
        // One step that was held up: no more than twice the others.
        costs.add(4, 1000.0);
        assert_eq!(costs.at(4), Some(1.5));
    }

    proptest! {
        /// On any such machine, at any batch and acceptance, finding out costs little.
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

//! The probe: a few steps of an idle engine, which measure the cost of steps on its device.
//!
//! The probe runs its own requests through the engine, with chosen verify lengths, group sets and drafting passes. Its
//! steps are therefore the steps that requests will run, with the same memory, padding and CUDA graphs.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use super::engine::Engine;
use super::error::DecodeError;
use super::flex::{CostModel, StepShape};
use super::policy::{BatchView, Choice, Policy, StepView};
use super::request::Request;
use super::request_id::RequestId;
use crate::device::{Device, DeviceError};
use crate::layout::GroupSet;
use crate::model::DrafterKind;

/// Batch sizes of the probe, ascending. The engine's largest batch joins them.
const BATCHES: [usize; 4] = [1, 4, 16, 64];

/// The maximum number of measured repetitions of a step. The first run of a step, which allocates memory, is not
/// measured.
const REPEATS: usize = 3;

/// The fraction of the probe's time after which a step is not repeated.
const SHARE: f64 = 0.04;

/// Number of prompt tokens that the probe reads for each batch size, over all sequences, and the fewest per sequence.
const PROMPT_ROWS: usize = 64;
const LEAST_PROMPT: usize = 4;

/// Number of prompt tokens of the sequence that measures the cost of cached positions.
const LONG_PROMPT: usize = 256;

/// Settings of a [probe](Engine::probe).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ProbeOptions {
    /// Seconds after which the probe begins no further step. A step that is expected to end later is left out; the first
    /// steps, of one sequence, always run.
    pub seconds: f64,
    /// S: the block size of the requests that will run; `None` for the drafter's.
    pub block_size: Option<usize>,
}

impl Default for ProbeOptions {
    fn default() -> Self {
        Self { seconds: 1.0, block_size: None }
    }
}

/// The duration of a step that the probe measured.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ProbedStep {
    /// The shape of the step.
    pub shape: StepShape,
    /// The median of the durations in seconds.
    pub seconds: f64,
    /// Number of durations that the median is taken over.
    pub repeats: usize,
}

/// The measurements of a [probe](Engine::probe).
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Probe {
    /// The measured steps, in the order in which they ran.
    pub steps: Vec<ProbedStep>,
}

impl Probe {
    /// Returns a cost model that is fitted to the measured steps, for [`Flex::new`](super::Flex::new).
    pub fn cost_model(&self) -> CostModel {
        let mut model = CostModel::default();
        // Steps of one kind follow each other in the list. Several rounds prevent the model from being fitted mostly to
        // the last kind.
        for round in 0..REPEATS {
            for step in self.steps.iter().filter(|step| step.repeats > round) {
                model.observe(&step.shape, step.seconds);
            }
        }
        model
    }
}

impl<D: Device> Engine<D> {
    /// Measures the cost of steps on the engine's device with a few requests of the probe itself, for the cost model of
    /// [`Flex`](super::Flex). Policy and statistics are the same afterwards; pages of the prefix cache may have been
    /// evicted.
    ///
    /// If the device runs out of memory, the probe ends with what it has measured.
    ///
    /// # Errors
    ///
    /// [`DecodeError::ProbeOfBusyEngine`] if the engine has requests, [`DecodeError::BlockSize`] if the block size is 0
    /// or larger than the drafter's, and errors of the device.
    pub fn probe(&mut self, options: &ProbeOptions) -> Result<Probe, DecodeError> {
        if !self.is_idle() {
            return Err(DecodeError::ProbeOfBusyEngine);
        }
        let script = Script::default();
        let mut run = ProbeRun {
            options: *options,
            script: script.clone(),
            began: Instant::now(),
            model: CostModel::default(),
            probe: Probe::default(),
            requests: Vec::new(),
            added: 0,
        };
        self.aside(Box::new(script), |engine| {
            let outcome = run.all(engine);
            run.requests.iter().for_each(|&id| _ = engine.cancel(id));
            match outcome {
                Err(error) if !is_out_of_memory(&error) || run.probe.steps.is_empty() => Err(error),
                _ => Ok(run.probe),
            }
        })
    }
}

fn is_out_of_memory(error: &DecodeError) -> bool {
    error.device().is_some_and(DeviceError::is_out_of_memory)
}

/// The choice that every sequence gets, and the last step that ran with it. The probe and its policy share them.
#[derive(Clone, Default)]
struct Script(Arc<Mutex<Scripted>>);

#[derive(Default)]
struct Scripted {
    kind: StepKind,
    seen: Option<(StepShape, f64)>,
}

/// The choice for every sequence in a step of the probe.
#[derive(Clone, Copy, Debug, Default)]
struct StepKind {
    verified: usize,
    groups: GroupSet,
    drafts: bool,
}

impl Script {
    fn lock(&self) -> MutexGuard<'_, Scripted> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Policy for Script {
    fn choose(&mut self, batch: &BatchView<'_>) -> Vec<Choice> {
        let StepKind { verified, groups, drafts } = self.lock().kind;
        let groups = if batch.groups_allowed { groups } else { GroupSet::NONE };
        batch.sequences.iter().map(|_| Choice { verify_len: verified, groups, draft: drafts }).collect()
    }

    fn observe(&mut self, step: &StepView<'_>) {
        self.lock().seen = Some((StepShape::of(step), step.seconds));
    }

    fn name(&self) -> &'static str {
        "probe"
    }
}

/// The state of a running probe.
struct ProbeRun {
    options: ProbeOptions,
    script: Script,
    began: Instant,
    /// A cost model of the steps so far, which predicts whether a step would take too long.
    model: CostModel,
    probe: Probe,
    requests: Vec<RequestId>,
    /// Number of requests that were added.
    added: usize,
}

impl ProbeRun {
    fn all<D: Device>(&mut self, engine: &mut Engine<D>) -> Result<(), DecodeError> {
        let most = engine.options().max_batch;
        let batches = BATCHES.into_iter().filter(|&batch| batch < most).chain([most]);
        for batch in batches {
            self.batch(engine, batch, (PROMPT_ROWS / batch).max(LEAST_PROMPT))?;
            if batch == 1 {
                // Fewer kinds of steps, because only the cost of cached positions is still unknown.
                self.batch(engine, batch, LONG_PROMPT)?;
            }
        }
        Ok(())
    }

    /// Measures the steps of `batch` sequences after prompts of `prompt_len` tokens, or of fewer tokens in a small cache.
    fn batch<D: Device>(
        &mut self,
        engine: &mut Engine<D>,
        batch: usize,
        prompt_len: usize,
    ) -> Result<(), DecodeError> {
        let options = engine.options();
        let room = (options.cache_tokens / batch).min(engine.model().config().context_len);
        // Half of the room is left for the tokens that the steps commit.
        let prompt_len = prompt_len.min(room / 2).max(1);
        let reading = StepShape { sequences: batch, candidates: batch * prompt_len, ..StepShape::default() };
        if room < 2 || !self.fits(&StepShape { reads: reading.candidates, ..reading }) {
            return Ok(());
        }
        self.requests.drain(..).for_each(|id| _ = engine.cancel(id));
        for _ in 0..batch {
            let prompt = self.prompt(prompt_len, engine.model().config().vocab_size);
            let block_size = self.options.block_size;
            self.requests
                .push(engine.add(Request { block_size, ..Request::new(prompt, room - prompt_len) })?);
        }
        let drafter = engine.model().drafter_kind();
        let trained = engine.model().block_size().unwrap_or(1);
        let slots = self.options.block_size.unwrap_or(trained).min(trained);
        self.read_prompts(engine)?;
        let most = slots.saturating_sub(1);
        let apart = |verified| StepKind { verified, groups: GroupSet::NONE, drafts: true };
        let in_pass = |verified, groups| StepKind { verified, groups, drafts: true };
        let mut kinds = vec![StepKind::default()];
        if drafter.is_some() && most > 0 {
            kinds.push(apart(0));
            let is_long = prompt_len == LONG_PROMPT;
            if !is_long {
                kinds.extend([apart(most.div_ceil(2)), apart(most)]);
            }
            if drafter.is_some_and(DrafterKind::drafts_while_verifying) {
                kinds.extend((!is_long).then(|| in_pass(0, GroupSet::all(0))));
                kinds.push(in_pass(most, GroupSet::all(most)));
            }
        }
        for kind in kinds {
            let mask_rows = batch * kind.groups.iter().count() * slots;
            let is_apart = kind.drafts && kind.groups == GroupSet::NONE;
            let expected = StepShape {
                sequences: batch,
                candidates: batch * (kind.verified + 1),
                cached: batch * prompt_len,
                mask_rows,
                group_cached: mask_rows / slots.max(1) * prompt_len,
                draft_rows: if is_apart { batch * slots } else { 0 },
                draft_cached: if is_apart { batch * prompt_len } else { 0 },
                ..StepShape::default()
            };
            if self.fits(&expected) {
                self.measure(engine, kind)?;
            }
        }
        Ok(())
    }

    /// Returns whether a step is expected to end within the probe's time. Steps of one sequence without drafts always are.
    fn fits(&self, shape: &StepShape) -> bool {
        let is_first = self.model.steps() < 3;
        is_first || self.began.elapsed().as_secs_f64() + self.model.seconds(shape) <= self.options.seconds
    }

    /// Returns a prompt that differs from all other prompts of the probe in its first tokens, so that no step can use
    /// the keys and values of another sequence.
    fn prompt(&mut self, len: usize, vocab_size: usize) -> Vec<u32> {
        self.added += 1;
        let token = |index: usize| ((self.added + index * 7) % vocab_size.max(1)) as u32;
        (0..len).map(token).collect()
    }

    /// Runs the steps that read the prompts, and measures all of them but the first of the probe.
    fn read_prompts<D: Device>(&mut self, engine: &mut Engine<D>) -> Result<(), DecodeError> {
        self.script.lock().kind = StepKind::default();
        loop {
            let Some((shape, seconds)) = self.step(engine)? else { return Ok(()) };
            if shape.reads == 0 {
                return Ok(());
            }
            if self.added > 1 {
                self.probe.steps.push(ProbedStep { shape, seconds, repeats: 1 });
            }
        }
    }

    /// Measures a step: runs it a few times and takes the median of its durations.
    fn measure<D: Device>(&mut self, engine: &mut Engine<D>, kind: StepKind) -> Result<(), DecodeError> {
        self.script.lock().kind = StepKind { drafts: true, ..StepKind::default() };
        let mut runs = Vec::new();
        let began = Instant::now();
        if kind.verified > 0 {
            // The first step needs a draft to verify.
            self.step(engine)?;
        }
        self.script.lock().kind = kind;
        while runs.len() <= REPEATS {
            let Some(run) = self.step(engine)? else { break };
            runs.push(run);
            if began.elapsed().as_secs_f64() > SHARE * self.options.seconds {
                break;
            }
        }
        // The first run allocates memory.
        if runs.len() > 1 {
            runs.remove(0);
        }
        runs.sort_by(|a, b| a.1.total_cmp(&b.1));
        if let Some(&(shape, seconds)) = runs.get(runs.len().saturating_sub(1) / 2) {
            self.probe.steps.push(ProbedStep { shape, seconds, repeats: runs.len() });
        }
        Ok(())
    }

    /// Runs a step. Returns what it ran and its duration in seconds; `None` if no sequence is left.
    fn step<D: Device>(&mut self, engine: &mut Engine<D>) -> Result<Option<(StepShape, f64)>, DecodeError> {
        engine.step()?;
        let seen = self.script.lock().seen.take().filter(|(shape, _)| shape.candidates > 0);
        if let Some((shape, seconds)) = seen {
            self.model.observe(&shape, seconds);
        }
        Ok(seen)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A machine whose rows cost time from the first row on, unlike the machine that a model begins with.
    fn seconds(shape: &StepShape) -> f64 {
        let drafting = if shape.draft_rows > 0 { 4e-4 } else { 0.0 };
        let rows = shape.candidates as f64 + 0.8 * (shape.mask_rows + shape.draft_rows) as f64;
        1e-4 + drafting + 2.5e-4 * rows + 1e-7 * shape.cached as f64
    }

    #[test]
    fn the_cost_model_expects_what_was_probed() {
        let slots = 16;
        let shape = |sequences, verified: usize, groups: usize, apart: bool| {
            let (candidates, cached) = (sequences * (verified + 1), sequences * 64);
            let draft_rows = if apart { sequences * slots } else { 0 };
            let mask_rows = sequences * groups * slots;
            let (group_cached, draft_cached) = (cached * groups, if apart { cached } else { 0 });
            let reads = 0;
            StepShape {
                sequences,
                candidates,
                reads,
                mask_rows,
                cached,
                group_cached,
                draft_rows,
                draft_cached,
            }
        };
        let mut probe = Probe::default();
        for sequences in [1, 4, 16] {
            for (verified, groups, apart) in
                [(0, 0, false), (0, 0, true), (8, 0, true), (15, 0, true), (0, 1, false), (15, 16, false)]
            {
                let shape = shape(sequences, verified, groups, apart);
                probe.steps.push(ProbedStep { shape, seconds: seconds(&shape), repeats: 3 });
            }
        }
        let model = probe.cost_model();
        for shape in
            [shape(1, 0, 0, false), shape(1, 4, 0, true), shape(1, 3, 2, false), shape(8, 3, 0, true)]
        {
            let (expected, found) = (seconds(&shape), model.seconds(&shape));
            assert!((found / expected - 1.0).abs() < 0.15, "{shape:?}: {found}, expected {expected}");
        }
    }
}

//! Runs prompts through the engine and writes the transcripts.

use std::collections::HashMap;
use std::iter::Peekable;

use flexdraft::decode::{Engine, EngineOptions, Finish, Request, RequestId};
use flexdraft::device::Device;
use flexdraft::model::ModelConfig;
use flexdraft::sampling::SamplingParams;

use super::order::{InOrder, Order};
use super::output::Output;
use super::prompts::Prompts;
use crate::engine_size::engine_options;
use crate::error::{Result, TuneError};
use crate::hash::random_bits;
use crate::transcripts::Transcript;

/// Purposes of the random numbers that seed requests: messages and responses have separate numbers.
const MESSAGE: u32 = 3;
const RESPONSE: u32 = 4;

/// Number of consecutive attempts without a new message after which the target is assumed to write none.
const PATIENCE: usize = 1000;

/// Settings for generating transcripts.
#[derive(Clone, Debug, PartialEq)]
pub struct Generation {
    /// Total number of transcripts, including existing ones.
    pub count: usize,
    /// Maximum number of tokens per response; the target's context is a further limit.
    pub max_response: usize,
    /// Ids that end a response; the id is kept as its last token.
    pub stop_ids: Vec<u32>,
    /// Temperature and truncation with which responses are sampled.
    pub sampling: SamplingParams,
    /// Seed of all random numbers.
    pub seed: u64,
    /// Maximum number of sequences that a step decodes together.
    pub batch: usize,
}

impl Generation {
    /// Checks the settings that depend neither on the prompts nor on the target.
    ///
    /// # Errors
    /// [`TuneError::Setting`] for responses of no tokens or an empty batch; [`TuneError::Runner`] for sampling
    /// parameters out of range.
    pub fn validate(&self) -> Result<()> {
        for (setting, value) in [("max_response", self.max_response), ("batch", self.batch)] {
            if value == 0 {
                return Err(TuneError::setting(setting, value, "at least 1"));
            }
        }
        Ok(self.sampling.validate().map_err(flexdraft::Error::from)?)
    }

    /// Returns the batch and cache sizes of an engine that generates responses to prompts of up to
    /// `longest_prompt` tokens.
    pub fn engine_options(&self, config: &ModelConfig, longest_prompt: usize) -> EngineOptions {
        engine_options(config, longest_prompt.saturating_add(self.max_response), 1, self.batch)
    }
}

/// Progress of a run that makes transcripts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Number of transcripts so far.
    pub done: usize,
    /// Number of transcripts that existed when the run began.
    pub before: usize,
    /// Number of tokens generated since the run began, including messages.
    pub tokens: usize,
}

/// The text that a sequence in the engine writes: a message that becomes a prompt, or the response to a prompt.
enum Task {
    Message(u64),
    Response { attempt: u64, prompt: Vec<u32> },
}

/// Generates transcripts until `output` has the requested number, or all that the prompts allow. Returns the number of
/// attempts at prompts. `observe` is called after every step. Messages and transcripts are written in the order of the
/// attempts, so the files do not depend on the batch; a run that is killed loses those that wait for an earlier attempt,
/// and the run that continues makes them again.
///
/// # Errors
/// [`TuneError::Runner`] if the engine refuses a request; [`TuneError::TooLittleData`] if the target writes no
/// messages; [`TuneError::Io`]; the errors of [`Generation::validate`].
pub fn generate<D: Device>(
    engine: &mut Engine<D>,
    prompts: &Prompts,
    generation: &Generation,
    output: &mut Output,
    observe: &mut dyn FnMut(&Progress),
) -> Result<usize> {
    generation.validate()?;
    let mut run = Run {
        engine,
        prompts,
        generation,
        output,
        known: prompts.known().peekable(),
        order: Order::default(),
        messages: InOrder::default(),
        transcripts: InOrder::default(),
        first: None,
        running: HashMap::new(),
        progress: Progress::default(),
    };
    loop {
        run.fill()?;
        if run.running.is_empty() {
            return Ok(run.order.judged());
        }
        run.step()?;
        observe(&run.progress);
    }
}

struct Run<'a, D: Device> {
    engine: &'a mut Engine<D>,
    prompts: &'a Prompts,
    generation: &'a Generation,
    output: &'a mut Output,
    known: Peekable<Box<dyn Iterator<Item = Vec<u32>> + 'a>>,
    order: Order,
    /// The messages that are not written yet.
    messages: InOrder<Option<Vec<u32>>>,
    /// The transcripts that are not written yet.
    transcripts: InOrder<Transcript>,
    /// The first attempt that gave a prompt.
    first: Option<u64>,
    /// Requests that the engine is running, with the tokens written so far.
    running: HashMap<RequestId, (Task, Vec<u32>)>,
    progress: Progress,
}

impl<D: Device> Run<'_, D> {
    /// Submits requests until the engine's batch is full. Responses come first, so that started prompts are finished.
    fn fill(&mut self) -> Result<()> {
        while self.running.len() < self.generation.batch {
            if let Some((attempt, prompt)) = self.order.next() {
                self.respond(attempt, prompt)?;
            } else if !self.attempt()? {
                break;
            }
        }
        Ok(())
    }

    /// Starts the response to a prompt, unless the prompt already has a transcript.
    fn respond(&mut self, attempt: u64, prompt: Vec<u32>) -> Result<()> {
        self.first.get_or_insert(attempt);
        if self.output.has(&prompt) {
            self.progress.done += 1;
            self.progress.before += 1;
            return Ok(());
        }
        let generation = self.generation;
        let request = Request {
            stop_ids: generation.stop_ids.clone(),
            sampling: generation.sampling,
            seed: random_bits(generation.seed, RESPONSE, attempt),
            ..Request::new(prompt.clone(), generation.max_response)
        };
        self.running.insert(self.engine.add(request)?, (Task::Response { attempt, prompt }, Vec::new()));
        self.transcripts.start(attempt);
        Ok(())
    }

    /// Takes the next given prompt, or lets the target start to write one. Returns whether another attempt was needed
    /// and possible.
    fn attempt(&mut self) -> Result<bool> {
        let self_prompt = self.prompts.self_prompt();
        if self_prompt.is_none() && self.known.peek().is_none() {
            return Ok(false);
        }
        let Some(attempt) = self.order.start(self.generation.count) else { return Ok(false) };
        let Some(self_prompt) = self_prompt else {
            self.order.end(attempt, self.known.next());
            return Ok(true);
        };
        if let Some(message) = self.output.message(attempt) {
            self.order.end(attempt, message.as_ref().map(|message| self_prompt.prompt(message)));
        } else {
            let request = self_prompt.request(random_bits(self.generation.seed, MESSAGE, attempt));
            self.running.insert(self.engine.add(request)?, (Task::Message(attempt), Vec::new()));
            self.messages.start(attempt);
        }
        Ok(true)
    }

    fn step(&mut self) -> Result<()> {
        for report in self.engine.step()? {
            let Some((_, written)) = self.running.get_mut(&report.id) else { continue };
            self.progress.tokens += report.tokens.len();
            written.extend(report.tokens);
            let Some(finish) = report.finish else { continue };
            if let Finish::Failed(error) = finish {
                return Err(error.into());
            }
            match self.running.remove(&report.id) {
                Some((Task::Message(attempt), written)) => self.end_message(attempt, written, &finish)?,
                Some((Task::Response { attempt, prompt }, response)) => {
                    self.transcripts.end(attempt, Transcript { prompt, response });
                    while let Some((attempt, transcript)) = self.transcripts.next() {
                        self.output.add(transcript, self.first == Some(attempt))?;
                    }
                    self.progress.done += 1;
                }
                None => {}
            }
        }
        Ok(())
    }

    fn end_message(&mut self, attempt: u64, written: Vec<u32>, finish: &Finish) -> Result<()> {
        let Some(self_prompt) = self.prompts.self_prompt() else { return Ok(()) };
        let message = self_prompt.message(written, finish);
        let prompt = message.as_ref().map(|message| self_prompt.prompt(message));
        self.messages.end(attempt, message);
        while let Some((attempt, message)) = self.messages.next() {
            self.output.add_message(attempt, message)?;
        }
        self.order.end(attempt, prompt);
        if self.order.rejected_in_a_row() >= PATIENCE {
            return Err(TuneError::TooLittleData {
                path: self.output.folder().into(),
                found: self.order.accepted(),
                unit: "different messages, and no more came in 1000 attempts",
                needed: self.generation.count,
            });
        }
        Ok(())
    }
}

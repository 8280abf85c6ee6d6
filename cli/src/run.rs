//! Runs samples on an engine and measures the time.

use std::collections::BTreeMap;
use std::io::Write;
use std::time::Instant;

use flexdraft::decode::{
    BlockRecord, Committed, DecodeError, Engine, Finish, Record, Request, StepRecord, TokenLogprobs,
};
use flexdraft::device::Device;

use crate::error::Result;
use crate::text::Text;

/// One sampled continuation of the prompt.
#[derive(Debug)]
pub struct Sample {
    pub index: usize,
    pub seed: u64,
    pub output_ids: Vec<u32>,
    /// The log-probabilities of the output, if they were requested.
    pub logprobs: Vec<TokenLogprobs>,
    /// The output's text; empty without a tokenizer.
    pub text: String,
    /// The record of reading the prompt; `None` while the prompt is being read, or if no tokens were requested.
    pub prefill: Option<BlockRecord>,
    pub steps: Vec<StepRecord>,
    pub finish: Option<Finish>,
    /// Seconds of the steps that read the sample's prompt, divided by the number of samples in each step.
    pub prefill_seconds: f64,
    /// Seconds of the steps after the prompt, divided by the number of samples in each step.
    pub decode_seconds: f64,
    /// The median error of the durations that the policy expected of the last steps, as a fraction of the measured duration,
    /// when the sample ended; `None` if the policy expects no durations.
    pub median_time_error: Option<f64>,
}

impl Sample {
    pub fn new(index: usize, seed: u64) -> Self {
        Self {
            index,
            seed,
            output_ids: Vec::new(),
            logprobs: Vec::new(),
            text: String::new(),
            prefill: None,
            steps: Vec::new(),
            finish: None,
            prefill_seconds: 0.0,
            decode_seconds: 0.0,
            median_time_error: None,
        }
    }

    /// Returns the number of tokens that decoding produced: all but the first, which reading the prompt produces.
    pub fn decoded_tokens(&self) -> usize {
        self.output_ids.len().saturating_sub(1)
    }

    /// Returns the acceptance length τ: the mean of accepted + 1 over the steps, before the output was cut; 0 if there
    /// are no steps.
    pub fn acceptance_length(&self) -> f64 {
        mean(self.steps.iter().map(|step| step.accepted + 1).sum(), self.steps.len())
    }

    /// Returns the decoded tokens per second of decoding; 0 if no tokens were decoded.
    pub fn tokens_per_second(&self) -> f64 {
        if self.decode_seconds > 0.0 { self.decoded_tokens() as f64 / self.decode_seconds } else { 0.0 }
    }

    fn take(&mut self, report: &mut Committed, seconds: f64) {
        match (&self.prefill, report.finish.as_ref(), &report.record) {
            // A sample that ended outside a step took no part in this step, so the step's time is not added to it.
            (_, Some(_), None) => {}
            (None, ..) => self.prefill_seconds += seconds,
            (Some(_), ..) => self.decode_seconds += seconds,
        }
        match report.record.take() {
            Some(Record::Prefill(block)) => self.prefill = Some(block),
            Some(Record::Step(step)) => self.steps.push(step),
            None => {}
        }
        self.output_ids.extend_from_slice(&report.tokens);
        self.logprobs.append(&mut report.logprobs);
    }
}

/// Returns `sum / count`, or 0 if `count` is 0.
pub fn mean(sum: usize, count: usize) -> f64 {
    if count == 0 { 0.0 } else { sum as f64 / count as f64 }
}

/// Receives the progress of samples while they run.
pub trait Observer {
    /// Observes a step that read a part of the prompts and committed nothing.
    fn reading(&mut self) {}

    /// Receives the texts of a commit, one per token; the first `accepted` tokens were drafted.
    fn committed(&mut self, _sample: &Sample, _texts: &[String], _accepted: usize) -> Result<()> {
        Ok(())
    }

    /// Returns whether the run must end now. Its samples are then complete as they are, without a [`Finish`].
    fn is_cancelled(&self) -> bool {
        false
    }

    /// Receives a complete sample, and the rest of its text, which no commit reported. Samples of a batch finish in any
    /// order.
    fn finished(&mut self, sample: Sample, rest: &str) -> Result<()>;
}

/// Collects complete samples, in order.
#[derive(Debug, Default)]
pub struct Collect {
    samples: BTreeMap<usize, Sample>,
}

impl Collect {
    /// Returns the seed of the completed sample with this index.
    pub fn seed(&self, index: usize) -> Option<u64> {
        self.samples.get(&index).map(|sample| sample.seed)
    }

    pub fn into_samples(self) -> Vec<Sample> {
        self.samples.into_values().collect()
    }
}

impl Observer for Collect {
    fn finished(&mut self, sample: Sample, _rest: &str) -> Result<()> {
        self.samples.insert(sample.index, sample);
        Ok(())
    }
}

/// Runs one request per seed, at most `batch` at a time. `text` starts the text of an output.
///
/// The time of a step is divided equally among the sequences that took part in it. If a request fails, the others run to
/// their ends, and its error is returned then. With `explain`, stderr gets the policy's explanation of each step.
pub fn run<D: Device>(
    engine: &mut Engine<D>,
    batch: usize,
    seeds: impl Iterator<Item = u64>,
    request: impl Fn(u64) -> Request,
    text: impl Fn() -> Result<Text>,
    explain: bool,
    observer: &mut dyn Observer,
) -> Result<()> {
    let mut seeds = seeds.enumerate();
    let mut running = BTreeMap::new();
    let mut failure = None;
    loop {
        while running.len() < batch
            && let Some((index, seed)) = seeds.next()
        {
            running.insert(engine.add(request(seed))?, (Sample::new(index, seed), text()?));
        }
        if running.is_empty() {
            return failure.map_or(Ok(()), |error: DecodeError| Err(error.into()));
        }
        if observer.is_cancelled() {
            for (id, (sample, text)) in running {
                engine.cancel(id);
                finish(engine, sample, text, observer)?;
            }
            return Ok(());
        }
        let start = Instant::now();
        let mut reports = engine.step()?;
        let seconds = start.elapsed().as_secs_f64();
        if explain {
            explain_step(engine);
        }
        let took_part = |report: &&Committed| report.record.is_some() || report.finish.is_none();
        let share = seconds / reports.iter().filter(took_part).count().max(1) as f64;

        if reports.iter().all(|report| report.tokens.is_empty()) {
            observer.reading();
        }
        for report in &mut reports {
            let Some((sample, text)) = running.get_mut(&report.id) else { continue };
            let accepted = match &report.record {
                Some(Record::Step(step)) => step.accepted,
                _ => 0,
            };
            let texts = text.push(&report.tokens)?;
            // Tokens after a stop string are not part of the output.
            report.tokens.truncate(texts.len());
            sample.take(report, share);
            texts.iter().for_each(|text| sample.text.push_str(text));
            if !texts.is_empty() {
                observer.committed(sample, &texts, accepted)?;
            }
            let end = if text.is_stopped() {
                engine.cancel(report.id);
                Finish::Stop
            } else {
                let Some(end) = report.finish.take() else { continue };
                end
            };
            let Some((mut sample, text)) = running.remove(&report.id) else { continue };
            if let Finish::Failed(error) = end {
                failure.get_or_insert(error);
                continue;
            }
            sample.finish = Some(end);
            finish(engine, sample, text, observer)?;
        }
    }
}

/// Returns a line about the durations that the mode `name` expected of its last steps, with the median error `error`.
pub fn time_error_line(name: &str, error: f64) -> String {
    format!("`{name}` expected the times of its last steps with a median error of {:.0}%.", error * 100.0)
}

/// Writes to stderr why the policy chose the last step, and the step's measured and expected duration. A failure to
/// write is ignored.
fn explain_step<D: Device>(engine: &Engine<D>) {
    let Some(explanation) = engine.explanation() else { return };
    let took = engine.stats().step_times.map_or(String::new(), |times| {
        let (seen, expected) = (times.seconds * 1e3, times.expected_seconds * 1e3);
        let error = times.median_error * 100.0;
        format!("  took {seen:.3} ms, {expected:.3} ms expected of these rows; median error {error:.0}%\n")
    });
    let _ = write!(anstream::stderr(), "{explanation}{took}");
}

/// Ends a sample: adds the rest of its text, which no commit reported, and hands it to the observer.
fn finish<D: Device>(
    engine: &Engine<D>,
    mut sample: Sample,
    text: Text,
    observer: &mut dyn Observer,
) -> Result<()> {
    let rest = text.finish()?;
    sample.median_time_error = engine.stats().step_times.map(|times| times.median_error);
    sample.text.push_str(&rest);
    observer.finished(sample, &rest)
}

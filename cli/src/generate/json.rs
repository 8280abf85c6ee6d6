//! Output as JSON Lines: one object per sample.
//!
//! Numbers are written with enough digits to read the same bits back.

use std::collections::BTreeMap;
use std::io::Write;

use flexdraft::decode::{BlockRecord, Finish, StepRecord, TokenLogprobs};
use serde::Serialize;

use crate::error::{CliError, Result};
use crate::progress::Progress;
use crate::run::{Observer, Sample};

#[derive(Serialize)]
struct Line<'a> {
    index: usize,
    seed: u64,
    prompt_ids: &'a [u32],
    output_ids: &'a [u32],
    /// The log-probabilities of `output_ids`, only with --logprobs.
    #[serde(skip_serializing_if = "Option::is_none")]
    logprobs: Option<Vec<Logprobs<'a>>>,
    text: &'a str,
    finish_reason: &'static str,
    /// The record of reading the prompt; `null` if no tokens were requested, so that no prompt was read.
    prefill: Option<Block<'a>>,
    steps: Vec<Step<'a>>,
    stats: Stats,
    /// Label that says that the device's results are not lossless; `None` if they are lossless.
    #[serde(skip_serializing_if = "Option::is_none")]
    label: Option<&'static str>,
}

/// The log-probabilities of one output token and of the most likely tokens at its place; `null` stands for −∞.
#[derive(Serialize)]
struct Logprobs<'a> {
    logprob: f32,
    /// Pairs of an id and its log-probability, in descending order.
    top: &'a [(u32, f32)],
}

#[derive(Serialize)]
struct Block<'a> {
    bonus: u32,
    draft: &'a [u32],
    confidence: &'a [f32],
}

#[derive(Serialize)]
struct Step<'a> {
    mode: &'static str,
    position: usize,
    verify_len: usize,
    groups: &'a [usize],
    candidates: &'a [u32],
    accepted: usize,
    #[serde(flatten)]
    next: Block<'a>,
}

#[derive(Serialize)]
struct Stats {
    tokens: usize,
    steps: usize,
    acceptance_length: f64,
    prefill_seconds: f64,
    decode_seconds: f64,
    tokens_per_second: f64,
    /// The median error of the step durations that the policy expected; `None` if the policy expects no durations.
    #[serde(skip_serializing_if = "Option::is_none")]
    median_time_error: Option<f64>,
}

impl<'a> From<&'a BlockRecord> for Block<'a> {
    fn from(block: &'a BlockRecord) -> Self {
        Self { bonus: block.bonus, draft: &block.draft, confidence: &block.confidence }
    }
}

impl<'a> From<&'a TokenLogprobs> for Logprobs<'a> {
    fn from(logprobs: &'a TokenLogprobs) -> Self {
        Self { logprob: logprobs.logprob, top: &logprobs.top }
    }
}

impl<'a> From<&'a StepRecord> for Step<'a> {
    fn from(step: &'a StepRecord) -> Self {
        Self {
            mode: step.mode.name(),
            position: step.position,
            verify_len: step.verify_len,
            groups: &step.groups,
            candidates: &step.candidates,
            accepted: step.accepted,
            next: (&step.next).into(),
        }
    }
}

/// Writes samples to `out` as they finish, in order.
pub struct JsonLines<'a, W: Write> {
    out: W,
    prompt_ids: &'a [u32],
    progress: &'a Progress,
    label: Option<&'static str>,
    /// Whether lines have the log-probabilities of their output.
    logprobs: bool,
    next: usize,
    /// Finished samples that wait, by index, until all samples with a smaller index are written.
    held: BTreeMap<usize, Sample>,
}

impl<'a, W: Write> JsonLines<'a, W> {
    pub fn new(out: W, prompt_ids: &'a [u32], progress: &'a Progress, label: Option<&'static str>) -> Self {
        Self { out, prompt_ids, progress, label, logprobs: false, next: 0, held: BTreeMap::new() }
    }

    /// Returns this writer, which writes the log-probabilities of each output if they were `asked` for.
    pub fn with_logprobs(self, asked: bool) -> Self {
        Self { logprobs: asked, ..self }
    }

    fn write(&mut self, sample: &Sample) -> Result<()> {
        let logprobs = sample.logprobs.iter().take(sample.output_ids.len());
        let line = Line {
            index: sample.index,
            seed: sample.seed,
            prompt_ids: self.prompt_ids,
            output_ids: &sample.output_ids,
            logprobs: self.logprobs.then(|| logprobs.map(Logprobs::from).collect()),
            text: &sample.text,
            finish_reason: if sample.finish == Some(Finish::Stop) { "stop" } else { "length" },
            prefill: sample.prefill.as_ref().map(Block::from),
            steps: sample.steps.iter().map(Step::from).collect(),
            stats: Stats {
                tokens: sample.output_ids.len(),
                steps: sample.steps.len(),
                acceptance_length: sample.acceptance_length(),
                prefill_seconds: sample.prefill_seconds,
                decode_seconds: sample.decode_seconds,
                tokens_per_second: sample.tokens_per_second(),
                median_time_error: sample.median_time_error,
            },
            label: self.label,
        };
        let mut line = serde_json::to_vec(&line).map_err(|error| CliError::Output(error.into()))?;
        line.push(b'\n');
        let out = &mut self.out;
        let written = self.progress.suspend(|| out.write_all(&line).and_then(|()| out.flush()));
        written.map_err(CliError::Output)
    }
}

impl<W: Write> Observer for JsonLines<'_, W> {
    fn reading(&mut self) {
        self.progress.reading();
    }

    fn committed(&mut self, _: &Sample, texts: &[String], _: usize) -> Result<()> {
        self.progress.committed(texts.len());
        Ok(())
    }

    fn finished(&mut self, sample: Sample, _rest: &str) -> Result<()> {
        self.progress.finished();
        self.held.insert(sample.index, sample);
        while let Some(sample) = self.held.remove(&self.next) {
            self.write(&sample)?;
            self.next += 1;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn a_label_is_in_every_line() {
        let progress = Progress::loading(Path::new("model"));
        let written = |label| {
            let mut out = Vec::new();
            let mut lines = JsonLines::new(&mut out, &[1], &progress, label);
            lines.finished(Sample::new(0, 7), "").unwrap();
            lines.finished(Sample::new(1, 8), "").unwrap();
            String::from_utf8(out).unwrap()
        };
        let label = "not lossless (--products any)";
        for line in written(Some(label)).lines() {
            let line: serde_json::Value = serde_json::from_str(line).unwrap();
            assert_eq!(line["label"], label);
        }
        assert_eq!(written(Some(label)).lines().count(), 2);
        assert!(!written(None).contains("label"));
    }
}

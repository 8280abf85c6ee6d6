//! Makes a recording: decodes prompts greedily with a draft at every position, and compares each draft with the tokens
//! that followed.

use std::error::Error;
use std::fs;
use std::path::Path;

use flexdraft::decode::{BatchView, BlockRecord, Choice, Engine, EngineOptions, Policy, Record, Request};
use flexdraft::device::cpu::{Cpu, CpuOptions};
use flexdraft::layout::GroupSet;
use flexdraft::model::{
    ChatMessage, ChatTemplate, DrafterWeights, LoadError, Model, TargetWeights, TemplateVariables, Tokenizer,
};

use crate::recording::{Draft, Recording};

/// A policy that drafts after every step and verifies nothing, so that every position has a draft.
struct EveryPosition;

impl Policy for EveryPosition {
    fn choose(&mut self, batch: &BatchView<'_>) -> Vec<Choice> {
        batch
            .sequences
            .iter()
            .map(|_| Choice { verify_len: 0, groups: GroupSet::NONE, draft: true })
            .collect()
    }

    fn name(&self) -> &'static str {
        "every position"
    }
}

/// The settings of a recording.
#[derive(Clone, Copy, Debug)]
pub struct Settings<'a> {
    /// The target's directory or GGUF file.
    pub target: &'a Path,
    /// The drafter's directory.
    pub drafter: &'a Path,
    /// A file with one JSON object per line, each with a `prompt`.
    pub prompts: &'a Path,
    /// Whether the target's chat template renders each prompt.
    pub chat: bool,
    /// Number of prompts, taken at equal distances from the file.
    pub count: usize,
    /// Number of new tokens per prompt.
    pub tokens: usize,
}

/// Decodes the prompts and returns the recording.
///
/// # Errors
///
/// Errors of the files and of the engine.
pub fn record(pair: &str, settings: Settings<'_>) -> Result<Recording, Box<dyn Error>> {
    let target = TargetWeights::read(settings.target)?;
    let drafter = DrafterWeights::read(settings.drafter, &target.config)?;
    let tokenizer = Tokenizer::read(settings.target, target.config.vocab_size)?;
    let template = if settings.chat { Some(ChatTemplate::read(settings.target)?) } else { None };
    let (block_size, stop_ids) = (drafter.config.block_size, target.config.eos_ids.clone());
    let model = Model::new(Cpu::new(CpuOptions::default())?, &target, Some(&drafter))?;
    let mut engine =
        Engine::new(model, EveryPosition, EngineOptions { max_batch: 8, ..EngineOptions::default() })?;
    let text = fs::read_to_string(settings.prompts)?;
    let lines: Vec<&str> = text.lines().filter(|line| !line.is_empty()).collect();
    let mut ids = Vec::new();
    for line in lines.iter().step_by((lines.len() / settings.count.max(1)).max(1)).take(settings.count) {
        let line: serde_json::Value = serde_json::from_str(line)?;
        let prompt = line["prompt"].as_str().ok_or("a line of the prompts has no `prompt`")?;
        let prompt = match &template {
            Some(template) => tokenizer.encode(&chat(template, prompt)?, false)?,
            None => tokenizer.encode(prompt, true)?,
        };
        let request = Request::new(prompt, settings.tokens);
        ids.push(engine.add(Request { record: true, stop_ids: stop_ids.clone(), ..request })?);
    }
    let mut steps = vec![Vec::new(); ids.len()];
    let mut outputs = vec![Vec::new(); ids.len()];
    while !engine.is_idle() {
        for committed in engine.step()? {
            let index = ids.iter().position(|&id| id == committed.id).ok_or("an unknown request")?;
            outputs[index].extend(committed.tokens);
            steps[index].extend(committed.record.map(|record| match record {
                Record::Prefill(next) => next,
                Record::Step(step) => step.next,
            }));
        }
    }
    // The draft after the token at index i is for the tokens from i + 1 on. Drafts that reach beyond the transcript's end
    // are left out, because their match lengths are not known.
    let transcripts = steps.iter().zip(&outputs).map(|(blocks, output)| {
        let known = output.len().saturating_sub(block_size - 1);
        let draft = |(at, block): (usize, &BlockRecord)| {
            let pairs = block.draft.iter().zip(&output[at + 1..]);
            let matches = pairs.take_while(|(draft, token)| draft == token).count();
            Draft { matches, confidence: block.confidence.clone() }
        };
        blocks.iter().take(known).enumerate().map(draft).collect()
    });
    Ok(Recording { pair: pair.to_owned(), block_size, transcripts: transcripts.collect() })
}

/// Returns the text of a conversation that begins with one message of the user.
fn chat(template: &ChatTemplate, prompt: &str) -> Result<String, LoadError> {
    let mut user = TemplateVariables::new(&[ChatMessage::new("user", prompt)], true);
    user.set("enable_thinking", false);
    template.render(&user)
}

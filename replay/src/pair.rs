//! Pairs of a target and a drafter on the CPU device, with prompts.

use std::error::Error;
use std::fs;
use std::path::Path;

use flexdraft::device::cpu::{Cpu, CpuOptions};
use flexdraft::model::{
    ChatMessage, ChatTemplate, DrafterWeights, LoadError, Model, TargetWeights, TemplateVariables, Tokenizer,
};

/// The files of a pair and of its prompts.
#[derive(Clone, Copy, Debug)]
pub struct PairFiles<'a> {
    /// The target's directory or GGUF file.
    pub target: &'a Path,
    /// The drafter's directory.
    pub drafter: &'a Path,
    /// A file with one JSON object per line, each with a `prompt`.
    pub prompts: &'a Path,
    /// Whether the target's chat template renders each prompt.
    pub chat: bool,
}

/// A pair on the CPU device, and prompts.
pub struct Pair {
    /// The target and its drafter.
    pub model: Model<Cpu>,
    /// S: the drafter's block size.
    pub block_size: usize,
    /// The ids that end an output.
    pub stop_ids: Vec<u32>,
    /// The prompts as token ids.
    pub prompts: Vec<Vec<u32>>,
}

impl Pair {
    /// Loads a pair and `count` of its prompts, taken at equal distances from their file.
    ///
    /// # Errors
    ///
    /// Errors of the files and of the device.
    pub fn load(files: PairFiles<'_>, count: usize) -> Result<Self, Box<dyn Error>> {
        let target = TargetWeights::read(files.target)?;
        let drafter = DrafterWeights::read(files.drafter, &target.config)?;
        let tokenizer = Tokenizer::read(files.target, target.config.vocab_size)?;
        let template = if files.chat { Some(ChatTemplate::read(files.target)?) } else { None };
        let text = fs::read_to_string(files.prompts)?;
        let lines: Vec<&str> = text.lines().filter(|line| !line.is_empty()).collect();
        let mut prompts = Vec::new();
        for line in lines.iter().step_by((lines.len() / count.max(1)).max(1)).take(count) {
            let line: serde_json::Value = serde_json::from_str(line)?;
            let prompt = line["prompt"].as_str().ok_or("a line of the prompts has no `prompt`")?;
            prompts.push(match &template {
                Some(template) => tokenizer.encode(&chat(template, prompt)?, false)?,
                None => tokenizer.encode(prompt, true)?,
            });
        }
        let (block_size, stop_ids) = (drafter.config.block_size, target.config.eos_ids.clone());
        let model = Model::new(Cpu::new(CpuOptions::default())?, &target, Some(&drafter))?;
        Ok(Self { model, block_size, stop_ids, prompts })
    }
}

/// Returns the text of a conversation that begins with one message of the user.
fn chat(template: &ChatTemplate, prompt: &str) -> Result<String, LoadError> {
    let mut user = TemplateVariables::new(&[ChatMessage::new("user", prompt)], true);
    user.set("enable_thinking", false);
    template.render(&user)
}

//! Makes a recording: decodes prompts greedily with a draft at every position, and compares each draft with the tokens
//! that followed.

use std::error::Error;

use flexdraft::decode::{BatchView, BlockRecord, Choice, Engine, EngineOptions, Policy, Record, Request};
use flexdraft::layout::GroupSet;

use crate::pair::{Pair, PairFiles};
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
    /// The pair and its prompts.
    pub files: PairFiles<'a>,
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
    let Settings { files, count, tokens } = settings;
    let Pair { model, block_size, stop_ids, prompts } = Pair::load(files, count)?;
    let mut engine =
        Engine::new(model, EveryPosition, EngineOptions { max_batch: 8, ..EngineOptions::default() })?;
    let mut ids = Vec::new();
    for prompt in prompts {
        let request = Request::new(prompt, tokens);
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

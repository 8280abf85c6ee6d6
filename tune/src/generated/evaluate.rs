//! Decodes prompts with a drafter, and without it to check that the tokens are the same.

use std::collections::HashMap;

use flexdraft::decode::{Engine, Finish, HookError, Mode, Proposal, Proposer, Request};
use flexdraft::device::Device;

use super::decoding::{Decoding, Run};
use super::report::{Report, Tally};
use crate::error::{Result, TuneError};

/// Progress of an evaluation, for display.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Number of prompts continued; a prompt that is decoded with and without drafts counts twice.
    pub done: usize,
    /// Number of tokens generated so far.
    pub tokens: usize,
}

/// The result of an evaluation.
#[derive(Clone, Debug, PartialEq)]
pub struct Evaluation {
    /// The measured numbers of the drafter.
    pub report: Report,
    /// The response to each prompt.
    pub responses: Vec<Vec<u32>>,
}

/// Decodes the prompts with drafts and, if the tokens must be the same, without drafts too. `observe` is called after
/// every step.
///
/// # Errors
/// [`TuneError::NotLossless`]; [`TuneError::Runner`] if the engine refuses a prompt or the settings, or if the model
/// has no drafter; [`TuneError::Setting`] for a batch of 0.
pub fn evaluate<D: Device>(
    engine: &mut Engine<D>,
    prompts: &[Vec<u32>],
    decoding: &Decoding,
    observe: &mut dyn FnMut(&Progress),
) -> Result<Evaluation> {
    if decoding.batch == 0 {
        return Err(TuneError::setting("batch", 0, "at least 1"));
    }
    let compared = decoding.is_compared();
    let mut progress = Progress::default();
    let mut observe = |finished, tokens| {
        progress.done += finished;
        progress.tokens += tokens;
        observe(&progress);
    };
    engine.set_policy(decoding.mode)?;
    let mut tally = Tally::default();
    let mut responses = Vec::new();
    for run in decode(engine, prompts, decoding, true, &mut observe)? {
        tally.add(&run);
        responses.push(run.response);
    }
    if compared {
        engine.set_policy(Mode::Autoregressive)?;
        let plain = decode(engine, prompts, decoding, false, &mut observe)?;
        for (prompt, plain) in plain.iter().enumerate() {
            compare(prompt, &responses[prompt], &plain.response)?;
        }
    }
    Ok(Evaluation { report: tally.report(compared), responses })
}

fn decode<D: Device>(
    engine: &mut Engine<D>,
    prompts: &[Vec<u32>],
    decoding: &Decoding,
    record: bool,
    observe: &mut dyn FnMut(usize, usize),
) -> Result<Vec<Run>> {
    let mut runs = vec![Run::default(); prompts.len()];
    let mut waiting = prompts.iter().enumerate();
    let mut running = HashMap::new();
    loop {
        while running.len() < decoding.batch
            && let Some((index, prompt)) = waiting.next()
        {
            let request = Request {
                stop_ids: decoding.stop_ids.clone(),
                sampling: decoding.sampling,
                rule: decoding.rule,
                seed: decoding.seed.wrapping_add(index as u64),
                confidence: decoding.confidence,
                proposer: decoding.as_certain.then(|| Box::new(keep) as Box<dyn Proposer>),
                record,
                ..Request::new(prompt.clone(), decoding.max_new_tokens)
            };
            running.insert(engine.add(request)?, index);
        }
        if running.is_empty() {
            return Ok(runs);
        }
        let before = running.len();
        let mut tokens = 0;
        for report in engine.step()? {
            let Some(&index) = running.get(&report.id) else { continue };
            tokens += report.tokens.len();
            runs[index].response.extend(report.tokens);
            if let Some(record) = report.record {
                runs[index].take(record);
            }
            match report.finish {
                None => continue,
                Some(Finish::Failed(error)) => return Err(error.into()),
                Some(_) => running.remove(&report.id),
            };
        }
        observe(before - running.len(), tokens);
    }
}

/// A proposer of the drafter's own tokens, which then count as certain.
fn keep(_: &[u32], proposal: &mut Proposal<'_>) -> Result<(), HookError> {
    proposal.keep_draft();
    Ok(())
}

fn compare(prompt: usize, drafted: &[u32], plain: &[u32]) -> Result<()> {
    let longest = drafted.len().max(plain.len());
    let Some(position) = (0..longest).find(|&position| drafted.get(position) != plain.get(position)) else {
        return Ok(());
    };
    let name = |tokens: &[u32]| tokens.get(position).map_or("none".into(), u32::to_string);
    Err(TuneError::NotLossless { prompt, position, found: name(drafted), expected: name(plain) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_difference_is_named() {
        assert!(compare(0, &[1, 2], &[1, 2]).is_ok());
        let error = compare(4, &[1, 2, 3], &[1, 9, 3]).unwrap_err().to_string();
        assert_eq!(error, "NOT LOSSLESS: prompt 4: token 1 is 2 with drafts, 9 without");
        let error = compare(0, &[1], &[1, 2]).unwrap_err().to_string();
        assert!(error.ends_with("token 1 is none with drafts, 2 without"), "{error}");
    }
}

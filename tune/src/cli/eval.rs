//! The command `flexdraft-tune eval`, which measures a drafter.

use std::collections::HashSet;
use std::path::Path;

use flexdraft::decode::{Confidence, ConfidenceStrategy, Engine};
use flexdraft::model::{ChatTemplate, LoadError, Model, ModelConfig};
use flexdraft::sampling::SamplingParams;
use flexdraft_tune::card::add_to_card;
use flexdraft_tune::engine_size::engine_options;
use flexdraft_tune::generated::{Decoding, Evaluation, evaluate, walk_greedy};
use flexdraft_tune::transcripts::{self, Transcript};
use flexdraft_tune::{Result, TuneError};

use super::args::EvalArgs;
use super::progress::Progress;
use super::values::RuleChoice;
use super::{models, output, prompts};

/// Measures a drafter on the prompts that the arguments name.
pub fn eval(args: &EvalArgs) -> Result<()> {
    let target = models::target(&args.target.target)?;
    let config = target.config.clone();
    let drafter = models::drafter(&args.draft, &config)?;
    let limit = args.limit.unwrap_or(usize::MAX);
    let mut transcripts = match &args.transcripts {
        Some(path) => read_transcripts(path, &config)?,
        None => Vec::new(),
    };
    transcripts.truncate(limit);
    let mut prompts = match &args.prompts {
        Some(path) => prompts::given(path, args.raw, &args.target.target, &config)?,
        None => transcripts.iter().map(|transcript| transcript.prompt.clone()).collect(),
    };
    prompts.truncate(limit);
    let decoding = Decoding {
        max_new_tokens: args.max_new_tokens,
        stop_ids: config.eos_ids.clone(),
        sampling: SamplingParams::at_temperature(args.temperature),
        rule: args.rule.into(),
        as_certain: args.rule == RuleChoice::IndependentMatch,
        confidence: Confidence {
            threshold: args.confidence_threshold,
            strategy: ConfidenceStrategy::CumulativeProduct,
        },
        mode: args.mode.into(),
        seed: args.seed,
        batch: args.batch,
    };
    let longest = prompts.iter().map(Vec::len).max().unwrap_or(0).saturating_add(args.max_new_tokens);
    let options = engine_options(&config, longest, drafter.config.block_size, args.batch);
    let model = Model::new(models::cpu(&args.target)?, &target, Some(&drafter))?;
    let mut engine = Engine::new(model, decoding.mode, options)?;

    let decodings = if decoding.is_compared() { 2 } else { 1 };
    let mut bar = Progress::new(decodings * prompts.len());
    let Evaluation { mut report, responses } = evaluate(&mut engine, &prompts, &decoding, &mut |progress| {
        bar.update(progress.done, 0, progress.tokens);
    })?;
    bar.finish();
    // The engine's copy of the weights is dropped before another copy is made, so that memory holds at most
    // two.
    drop(engine);
    if args.transcripts.is_some() && decoding.sampling.is_greedy() {
        report.walk = Some(walk_greedy(&target, &drafter, &transcripts, &responses, &decoding)?);
    }
    if args.card {
        let Some(tau) = report.tau else {
            let path = args.prompts.as_ref().or(args.transcripts.as_ref()).cloned().unwrap_or_default();
            let unit = "steps of decoding, whose acceptance length a card holds";
            return Err(TuneError::TooLittleData { path, found: 0, unit, needed: 1 });
        };
        write_card(args, drafter.config.block_size, tau)?;
    }
    output::print(&report, args.json)
}

/// Writes the measured acceptance length into the drafter's card, under the name of the prompts' file.
fn write_card(args: &EvalArgs, block_size: usize, tau: f64) -> Result<()> {
    let template = match ChatTemplate::read(&args.target.target) {
        _ if args.raw => None,
        Ok(template) => Some(template.hash()),
        Err(LoadError::NoChatTemplate { .. }) => None,
        Err(error) => return Err(error.into()),
    };
    let file = args.prompts.as_ref().or(args.transcripts.as_ref()).and_then(|path| path.file_stem());
    let prompts = file.map_or("prompts".into(), |name| name.to_string_lossy());
    add_to_card(&args.draft, template, block_size, &prompts, tau)
}

/// Returns the transcripts of a file, in order; of several with the same prompt, only the first.
fn read_transcripts(path: &Path, config: &ModelConfig) -> Result<Vec<Transcript>> {
    let mut seen = HashSet::new();
    let mut found = transcripts::read(path, config.vocab_size)?;
    found.retain(|transcript| seen.insert(transcript.prompt.clone()));
    if found.is_empty() {
        return Err(TuneError::TooLittleData { path: path.into(), found: 0, unit: "transcripts", needed: 1 });
    }
    Ok(found)
}

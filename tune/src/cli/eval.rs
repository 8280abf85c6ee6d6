//! The command `flexdraft-tune eval`, which measures a drafter.

use std::collections::HashSet;
use std::path::Path;

use flexdraft::decode::{Confidence, ConfidenceStrategy, Engine};
use flexdraft::model::{Model, ModelConfig};
use flexdraft::sampling::SamplingParams;
use flexdraft_tune::card::{Rendered, add_to_card};
use flexdraft_tune::data::DataFile;
use flexdraft_tune::engine_size::engine_options;
use flexdraft_tune::generated::{Decoding, Evaluation, evaluate, walk_greedy};
use flexdraft_tune::transcripts::{self, Transcript};
use flexdraft_tune::{Result, TuneError};

use super::args::EvalArgs;
use super::progress::Progress;
use super::values::{DraftingMode, RuleChoice};
use super::{models, output, prompts};

/// Measures a drafter on the prompts that the arguments name.
pub fn eval(args: &EvalArgs) -> Result<()> {
    let (target, drafter) = models::pair(&args.target.target, args.weights.into(), args.draft.as_deref())?;
    let config = target.config.clone();
    let limit = args.limit.unwrap_or(usize::MAX);
    let mut transcripts = match &args.transcripts {
        Some(path) => read_transcripts(path, &config)?,
        None => Vec::new(),
    };
    transcripts.truncate(limit);
    let thinking = args.thinking.value(args.prompts.is_some() && !args.raw)?;
    let mut prompts = match &args.prompts {
        Some(path) => prompts::given(path, args.raw, thinking, &args.target.target, &config)?,
        None => transcripts.iter().map(|transcript| transcript.prompt.clone()).collect(),
    };
    prompts.truncate(limit);
    let default_mode = match drafter.config.kind.drafts_while_verifying() {
        true => DraftingMode::Parallel,
        false => DraftingMode::Sequential,
    };
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
        mode: args.mode.unwrap_or(default_mode).into(),
        seed: args.seed,
        batch: args.batch,
    };
    let longest = prompts.iter().map(Vec::len).max().unwrap_or(0).saturating_add(args.max_new_tokens);
    let options = engine_options(&config, longest, drafter.config.block_size, args.batch);
    let model = Model::new(models::cpu(args.target.threads, args.dtype.into())?, &target, Some(&drafter))?;
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
        write_card(args, thinking, drafter.config.block_size, tau)?;
    }
    output::print(&report, args.json)
}

/// Writes the measured acceptance length into the drafter's card, under the name of the prompts' file.
fn write_card(args: &EvalArgs, thinking: Option<bool>, block_size: usize, tau: f64) -> Result<()> {
    let target = &args.target.target;
    // The folder of the transcripts says how their prompts were rendered.
    let folder = args.transcripts.as_ref().and_then(|path| path.parent());
    let rendered = match folder.map(DataFile::read).transpose()?.flatten() {
        _ if args.raw => Rendered::default(),
        Some(file) => Rendered::of_source(&file.settings.source, target)?,
        None => Rendered::with_template_of(target, thinking)?,
    };
    let file = args.prompts.as_ref().or(args.transcripts.as_ref()).and_then(|path| path.file_stem());
    let prompts = file.map_or("prompts".into(), |name| name.to_string_lossy());
    let dir = args.draft.as_ref().unwrap_or(&args.target.target);
    add_to_card(dir, rendered, block_size, &prompts, tau)
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

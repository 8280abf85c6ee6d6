//! The command `eval`.

use std::collections::HashSet;
use std::io;
use std::path::Path;

use flexdraft::decode::{Confidence, ConfidenceStrategy, Engine};
use flexdraft::model::{Model, ModelConfig};
use flexdraft::sampling::SamplingParams;
use flexdraft_tune::engine_size::engine_options;
use flexdraft_tune::generated::{Decoding, evaluate};
use flexdraft_tune::{Result, TuneError, transcripts};

use super::args::{EvalArgs, RuleChoice};
use super::progress::Progress;
use super::{models, prompts};

/// Measures a drafter.
pub fn eval(args: &EvalArgs) -> Result<()> {
    let target = models::target(&args.target.target)?;
    let config = target.config.clone();
    let drafter = models::drafter(&args.draft, &config)?;
    let mut prompts = match (&args.prompts, &args.transcripts) {
        (Some(path), _) => prompts::given(path, args.raw, &args.target.target, &config)?,
        (None, Some(path)) => prompts_of(path, &config)?,
        (None, None) => {
            return Err(TuneError::setting("the prompts", "missing", "--prompts or --transcripts"));
        }
    };
    prompts.truncate(args.limit.unwrap_or(usize::MAX));
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
    let report = evaluate(&mut engine, &prompts, &decoding, &mut |progress| {
        bar.update(progress.done, 0, progress.tokens);
    })?;
    bar.finish();
    if args.json {
        let json = serde_json::to_string(&report).map_err(io::Error::from);
        println!("{}", json.map_err(TuneError::io("write", "stdout"))?);
    } else {
        print!("{report}");
    }
    Ok(())
}

/// The different prompts of a file of transcripts, in order.
fn prompts_of(path: &Path, config: &ModelConfig) -> Result<Vec<Vec<u32>>> {
    let mut seen = HashSet::new();
    let prompts = transcripts::read(path, config.vocab_size)?.into_iter().map(|transcript| transcript.prompt);
    let prompts: Vec<_> = prompts.filter(|prompt| seen.insert(prompt.clone())).collect();
    if prompts.is_empty() {
        return Err(TuneError::TooLittleData { path: path.into(), found: 0, unit: "transcripts", needed: 1 });
    }
    Ok(prompts)
}

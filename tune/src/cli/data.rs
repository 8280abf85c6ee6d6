//! The command `flexdraft-tune data`, which makes transcripts.

use std::path::Path;
use std::time::Instant;

use flexdraft::decode::{Engine, Mode};
use flexdraft::model::{ChatTemplate, LoadError, Model, ModelConfig, TargetWeights, Tokenizer};
use flexdraft::sampling::SamplingParams;
use flexdraft_tune::data::{
    Generation, Output, Prompts, Rendering, SelfPrompt, Settings, Source, Summary, TargetName, Windows,
    as_written, generate, read_text,
};
use flexdraft_tune::{Result, TuneError};

use super::args::DataArgs;
use super::progress::Progress;
use super::{models, prompts};

/// Number of transcripts to make if --count is absent.
const COUNT: usize = 1000;

/// Sampling of the messages that the target writes as prompts. Below temperature 1 they would not follow the target's
/// own distribution of requests.
const MESSAGES: SamplingParams = SamplingParams { temperature: 1.0, top_k: 0, top_p: 0.95, min_p: 0.0 };

/// Makes the transcripts that the command's arguments ask for.
pub fn data(args: &DataArgs) -> Result<()> {
    let target = models::target(&args.target.target)?;
    let config = target.config.clone();
    if let (true, Some(text)) = (args.as_written, &args.text) {
        return copy(args, text, &target);
    }
    let (source, prompts) = source(args, &config)?;
    let settings = settings(args, &target, source);
    let count = args.count.unwrap_or(match &prompts {
        Prompts::Given(prompts) => prompts.len(),
        Prompts::Windows(_) | Prompts::Written(_) => COUNT,
    });
    let generation = Generation {
        count,
        max_response: args.max_response,
        stop_ids: config.eos_ids.clone(),
        sampling: SamplingParams::at_temperature(args.temperature),
        seed: args.seed,
        batch: args.batch,
    };
    // The settings are validated before the folder is created: a folder with refused settings could not be continued.
    generation.validate()?;
    let model = Model::new(models::cpu(args.target.threads, args.dtype.into())?, &target, None)?;
    let options = generation.engine_options(&config, prompts.longest());
    let mut engine = Engine::new(model, Mode::Autoregressive, options)?;
    let mut output = Output::open(&args.out, settings)?;

    let start = Instant::now();
    let mut bar = Progress::new(count);
    let mut tokens = 0;
    let attempts = generate(&mut engine, &prompts, &generation, &mut output, &mut |progress| {
        tokens = progress.tokens;
        bar.update(progress.done, progress.before, progress.tokens);
    })?;
    bar.finish();
    report(&output.finish(attempts)?);
    eprintln!("{:.0} tokens/s", tokens as f64 / start.elapsed().as_secs_f64().max(1e-9));
    Ok(())
}

/// Makes transcripts whose responses are the words of a text file.
fn copy(args: &DataArgs, text: &Path, target: &TargetWeights) -> Result<()> {
    if args.held_out != 0.0 && args.held_out != 1.0 {
        return Err(TuneError::setting("--held-out", args.held_out, "0 or 1 with --as-written"));
    }
    args.thinking.value(false)?;
    let count = args.count.unwrap_or(COUNT);
    let tokenizer = Tokenizer::read(&args.target.target, target.config.vocab_size)?;
    let len = args.window.saturating_add(args.max_response);
    let windows = Windows::new(text, read_text(text, &tokenizer)?, len, count, args.seed)?;
    if windows.longest() > target.config.context_len {
        let expected = format!("at most the target's context, {} tokens", target.config.context_len);
        return Err(TuneError::setting("--window plus --max-response", windows.longest(), expected));
    }
    let settings = settings(args, target, Source::as_written(text, args.window)?);
    let mut output = Output::open(&args.out, settings)?;
    let attempts = as_written(&windows, args.max_response, count, &mut output)?;
    report(&output.finish(attempts)?);
    Ok(())
}

fn settings(args: &DataArgs, target: &TargetWeights, source: Source) -> Settings {
    Settings {
        target: TargetName::new(&args.target.target, target),
        source,
        max_response: args.max_response,
        temperature: args.temperature,
        held_out: args.held_out,
        precision: args.dtype.name().into(),
        seed: args.seed,
    }
}

fn report(summary: &Summary) {
    eprintln!(
        "{} transcripts to learn from, {} held out, {} response tokens; {} attempts at a prompt",
        summary.train, summary.held_out, summary.response_tokens, summary.attempts
    );
}

fn source(args: &DataArgs, config: &ModelConfig) -> Result<(Source, Prompts)> {
    let target = &args.target.target;
    let thinking = args.thinking.value(args.text.is_none() && !args.raw)?;
    let (source, prompts) = if let Some(path) = &args.prompts {
        let prompts = prompts::given(path, args.raw, thinking, target, config)?;
        (Source::prompts(path, args.raw, thinking)?, Prompts::Given(prompts))
    } else if let Some(path) = &args.text {
        let count = args.count.unwrap_or(COUNT);
        let tokenizer = Tokenizer::read(target, config.vocab_size)?;
        let windows = Windows::new(path, read_text(path, &tokenizer)?, args.window, count, args.seed)?;
        (Source::windows(path, args.window)?, Prompts::Windows(windows))
    } else {
        let (min_message, max_message) = (args.min_message, args.max_message);
        let tokenizer = Tokenizer::read(target, config.vocab_size)?;
        let template = ChatTemplate::read(target).map_err(|error| match error {
            LoadError::NoChatTemplate { .. } => {
                let found = format!("the target itself, but {error}");
                let expected = "--continue FILE, or --prompts FILE with --raw";
                TuneError::setting("the source of prompts", found, expected)
            }
            error => error.into(),
        })?;
        let rendering = Rendering { template: &template, thinking };
        let prompt = SelfPrompt::new(rendering, &tokenizer, MESSAGES, min_message, max_message)?;
        let (temperature, top_p) = (MESSAGES.temperature, MESSAGES.top_p);
        let source = Source::SelfPrompted { min_message, max_message, temperature, top_p, thinking };
        (source, Prompts::Written(prompt))
    };
    if prompts.longest() >= config.context_len {
        let expected = format!("fewer than the target's context, {} tokens", config.context_len);
        return Err(TuneError::setting(
            "the number of tokens of the longest prompt",
            prompts.longest(),
            expected,
        ));
    }
    Ok((source, prompts))
}

//! The command `flexdraft generate`, which continues a prompt and compares the modes.

mod args;
mod compare;
mod job;
mod json;
mod prompt;
mod report;
mod stream;

use std::io::{self, Write};
use std::sync::Arc;

use flexdraft::acceptance::Rule;
use flexdraft::decode::{CostModel, Engine, EngineOptions, ProbeOptions, PromptLookup};
use flexdraft::device::Device;
use flexdraft::layout::MAX_BLOCK_SIZE;
use flexdraft::model::QuantizedWeights;

pub use self::args::GenerateArgs;
use self::compare::Measured;
use self::job::{Job, Seeds, cache_tokens};
use self::json::JsonLines;
use self::prompt::{BUNDLED_PROMPT, Prompt};
use self::report::{Facts, Verdict};
use self::stream::Streamer;
use crate::args::ModeChoice;
use crate::card::Card;
use crate::device::{self, Work, label};
use crate::error::{CliError, Result};
use crate::models::{self, Pair, Weights};
use crate::probe::{self, Place};
use crate::progress::Progress;
use crate::run::{Collect, Sample, mean};
use crate::surface::Surface;
use crate::text::TextOptions;

/// Runs the command `flexdraft generate`.
pub fn generate(args: &GenerateArgs) -> Result<()> {
    device::run(&args.model, |quantized| Loaded::new(args, quantized))
}

/// The loaded models and requests, before a device is chosen.
struct Loaded<'a> {
    args: &'a GenerateArgs,
    seeds: Seeds,
    pair: Pair,
    card: Card,
    progress: Progress,
    weights: Weights,
    text: TextOptions,
    prompt: Prompt,
}

impl<'a> Loaded<'a> {
    fn new(args: &'a GenerateArgs, quantized: QuantizedWeights) -> Result<Self> {
        let seeds = Seeds::from_args(args)?;
        let pair = Pair::new(args.model.target.clone(), args.model.draft.clone())?;
        let progress = Progress::loading(&pair.target);
        let mut weights = pair.load(args.decoding.block_size, quantized)?;
        weights.warnings().for_each(|warning| progress.warn(&warning.to_string()));
        models::set_context(&args.decoding, &mut weights.target.config, &progress)?;
        let (tokenizer, unreadable) = prompt::tokenizer(args, &pair, weights.target.config.vocab_size)?;
        if let Some(error) = unreadable {
            progress.warn(&format!("there is no text to show: {error}"));
        }
        let card = Card::read(&pair)?;
        let prompt = Prompt::from_args(args, &pair, tokenizer.as_ref(), &card, &progress)?;
        let text = TextOptions::new(tokenizer.map(Arc::new), &args.decoding.stop)?;
        Ok(Self { args, seeds, pair, card, progress, weights, text, prompt })
    }

    /// Returns remarks for the user about the model and its text.
    fn notes(&self, surface: Surface) -> Vec<String> {
        let mut notes = Vec::new();
        if self.pair.bundled {
            let remark =
                "This model is tiny, for demonstration: it knows Rust's SIMD intrinsics and nothing else.";
            notes.push(remark.to_owned());
            if self.prompt.text.as_deref() == Some(BUNDLED_PROMPT) && !surface.has_colours() {
                notes.push(format!("It continues {BUNDLED_PROMPT:?}."));
            }
        }
        if self.text.tokenizer.is_none() && self.pair.target.is_dir() {
            let dir = self.pair.target.display();
            notes.push(format!("{dir} has no tokenizer.json, so there is no text to show."));
        }
        notes
    }
}

impl Work for Loaded<'_> {
    fn weights(&self) -> &Weights {
        &self.weights
    }

    fn progress(&self) -> &Progress {
        &self.progress
    }

    fn run_on(self, device: impl Device, place: Place) -> Result<()> {
        let (json, prompt) = (self.args.json, self.prompt.text.clone());
        let surface = Surface::of_stdout();
        let notes = self.notes(surface);
        let session = Session::new(self, device, &place)?;
        if json {
            return session.json();
        }
        notes.iter().for_each(|note| session.progress.note(note));
        session.show(surface, prompt.as_deref())
    }
}

/// An engine and its requests.
struct Session<'a, D: Device> {
    job: Job<'a>,
    engine: Engine<D>,
    /// The cost model with which `--mode auto` starts.
    cost: CostModel,
    /// The requested mode, or `ar` without a drafter.
    mode: ModeChoice,
    facts: Facts,
    card: Card,
    progress: Progress,
    /// Label that says that the device's results are not lossless; `None` if they are lossless.
    label: Option<&'static str>,
}

impl<'a, D: Device> Session<'a, D> {
    fn new(loaded: Loaded<'a>, device: D, place: &Place) -> Result<Self> {
        let Loaded { args, seeds, pair, card, mut progress, weights, text, prompt } = loaded;
        let (mode, prompt_ids) = (pair.mode(args.decoding.mode), prompt.ids);
        let label = label(&device);
        let model = weights.on_device(device)?;
        let drafter = weights.drafter.as_ref().map(|drafter| &drafter.config);
        let looks_up = pair.looks_up();
        let without_drafter = if looks_up { 1 + PromptLookup::default().tokens } else { 1 };
        let block_size =
            drafter.map_or(without_drafter, |drafter| args.decoding.block_size.unwrap_or(drafter.block_size));
        let block_size = block_size.min(MAX_BLOCK_SIZE);
        let plain = mode == ModeChoice::Auto && drafter.is_none() && !looks_up;
        let mode = if plain { ModeChoice::Ar } else { mode };
        let config = &weights.target.config;
        let batch = seeds.count().min(EngineOptions::default().max_batch);
        let options = EngineOptions {
            max_batch: batch,
            cache_tokens: cache_tokens(
                config,
                prompt_ids.len(),
                args.decoding.max_new_tokens,
                block_size,
                batch,
            ),
            prefix_cache: !args.decoding.no_prefix_cache,
            proposers: looks_up,
            ..EngineOptions::default()
        };
        let stop_ids = if args.decoding.ignore_eos { Vec::new() } else { config.eos_ids.clone() };
        // With a prefix cache, all samples share what one of them reads.
        let readers = if options.prefix_cache { 1 } else { seeds.count() };
        progress.running(seeds.count(), prompt_ids.len().saturating_mul(readers), options.prefill_rows);
        let facts = Facts {
            layers: config.layers,
            tail_layers: drafter.map_or(0, |drafter| drafter.tail_layers),
            block_size,
            looks_up,
            weight_bytes: weights.bytes_a_token(),
        };
        let mut engine = Engine::new(model, mode.policy(&CostModel::default()), options)?;
        let processors = args.sampling.processors.processors(config.vocab_size, text.tokenizer.as_deref())?;
        let job = Job { args, prompt_ids, stop_ids, processors, text, looks_up, seeds, batch };
        job.check(&mut engine)?;
        if plain {
            progress.note("There is no drafter (see --draft), so this is --mode ar: one token per step.");
        }
        let mut session =
            Self { job, engine, cost: CostModel::default(), mode, facts, card, progress, label };
        let runs_auto = mode == ModeChoice::Auto || !args.json && session.compares();
        if runs_auto && !args.decoding.no_probe {
            let options = ProbeOptions { block_size: args.decoding.block_size, ..ProbeOptions::default() };
            let key = probe::key(place, &weights, args.decoding.block_size, batch);
            let measuring = || session.progress.probing();
            session.cost = probe::cost_model(&mut session.engine, &options, &key, measuring)?;
            session.engine.set_policy(mode.policy(&session.cost))?;
        }
        Ok(session)
    }

    /// Runs the requested mode and writes JSON Lines.
    fn json(mut self) -> Result<()> {
        let prompt_ids = &self.job.prompt_ids;
        let mut lines = JsonLines::new(io::stdout().lock(), prompt_ids, &self.progress, self.label)
            .with_logprobs(self.job.args.logprobs.is_some());
        self.job.run(&mut self.engine, self.job.args.decoding.explain, &mut lines)
    }

    /// Runs the requested mode and writes its text, then runs the other modes and writes the report.
    fn show(mut self, surface: Surface, prompt: Option<&str>) -> Result<()> {
        let has_text = self.job.text.tokenizer.is_some();
        if surface.has_colours() && self.mode != ModeChoice::Ar && has_text {
            self.progress.note("A change of colour is a new step; underlined tokens are accepted drafts.");
        }
        let count = self.job.seeds.count();
        let mut streamer = Streamer::new(surface.stdout(), surface, &self.progress, has_text, prompt, count);
        self.job.run(&mut self.engine, self.job.args.decoding.explain, &mut streamer)?;
        let (samples, commits) = streamer.finish()?;
        let steps = samples.iter().flat_map(|sample| &sample.steps);
        let (count, accepted) = steps.fold((0, 0), |(n, sum), step| (n + 1, sum + step.accepted + 1));
        let shortfall = self.card.shortfall(mean(accepted, count), count);
        if self.mode != ModeChoice::Ar
            && let Some(shortfall) = shortfall
        {
            self.progress.warn(&shortfall);
        }
        let measured = self.measure(samples)?;
        self.progress.clear();

        let verdict = self.verdict(&measured);
        let report = report::report(&self.facts, self.mode.name(), &commits, &measured, &verdict);
        let _ = anstream::stderr().write_all(report.as_bytes());
        match verdict {
            Verdict::Broken(difference) => Err(CliError::NotLossless(difference)),
            _ => Ok(()),
        }
    }

    /// Measures the mode that was shown and the other modes on the same requests.
    fn measure(&mut self, samples: Vec<Sample>) -> Result<Vec<Measured>> {
        let shown = self.mode;
        let mut shown_samples = Some(samples);
        let modes = match self.compares() {
            true => compare::modes(self.engine.model().drafter_kind()),
            false => vec![shown],
        };
        let mut measured = Vec::new();
        for mode in modes {
            self.progress.comparing(mode.name());
            let samples = match shown_samples.take_if(|_| mode == shown) {
                Some(samples) => samples,
                None => self.collect(mode)?,
            };
            let mut mode_measured = Measured::new(mode.name(), samples);
            if self.compares() {
                mode_measured.repeat(|| self.collect(mode))?;
            }
            measured.push(mode_measured);
        }
        Ok(measured)
    }

    fn compares(&self) -> bool {
        let args = self.job.args;
        !args.no_compare && self.facts.drafts() && args.decoding.max_new_tokens > 0
    }

    fn collect(&mut self, mode: ModeChoice) -> Result<Vec<Sample>> {
        self.engine.set_policy(mode.policy(&self.cost))?;
        let mut samples = Collect::default();
        self.job.run(&mut self.engine, false, &mut samples)?;
        Ok(samples.into_samples())
    }

    fn verdict(&self, measured: &[Measured]) -> Verdict {
        if let Some(label) = self.label {
            let ar = measured.iter().find(|measured| measured.name == ModeChoice::Ar.name());
            let ar = ar.filter(|_| self.compares());
            let difference =
                ar.and_then(|ar| measured.iter().find_map(|other| compare::first_difference(ar, other)));
            return Verdict::Labelled { label, difference };
        }
        if !self.facts.drafts() {
            return Verdict::NoDrafter;
        }
        let ar = measured.iter().find(|measured| measured.name == ModeChoice::Ar.name());
        let Some(ar) = ar.filter(|_| self.compares()) else { return Verdict::NotCompared };
        if !self.job.args.sampling.params().is_greedy()
            && Rule::from(self.job.args.decoding.rule) != Rule::Match
        {
            return Verdict::SameDistribution { rule: self.job.args.decoding.rule.name() };
        }
        match measured.iter().find_map(|other| compare::first_difference(ar, other)) {
            Some(difference) => Verdict::Broken(difference),
            None => Verdict::Lossless { tokens: ar.tokens() },
        }
    }
}

//! `flexdraft generate`.

use std::io::{self, Write};

use anstyle::Style;
use flexdraft::acceptance::Rule;
use flexdraft::decode::{Engine, EngineOptions, Mode, Policy, Request};
use flexdraft::device::Device;
use flexdraft::layout::MAX_BLOCK_SIZE;
use flexdraft::model::{ModelConfig, Tokenizer};

use crate::args::{GenerateArgs, ModeChoice};
use crate::compare::{self, MODES, Measured};
use crate::error::{CliError, Result};
use crate::json::JsonLines;
use crate::models::{self, Pair, Weights};
use crate::progress::Progress;
use crate::prompt::{self, BUNDLED_PROMPT, Prompt};
use crate::report::{self, Facts, Verdict};
use crate::run::{self, Collect, Observer, Sample};
use crate::stream::{Streamer, Surface};

/// Memory for the KV cache, in bytes, unless a single sample needs more. Samples beyond it wait.
const CACHE_BYTES: usize = 4 << 30;

/// Runs the command.
pub fn generate(args: &GenerateArgs) -> Result<()> {
    let device = models::cpu_device(args)?;
    let seeds = Seeds::from_args(args)?;
    let pair = Pair::from_args(args)?;
    let progress = Progress::loading(&pair.target);
    let weights = pair.load(args.block_size)?;
    let tokenizer = prompt::tokenizer(&pair, weights.target.config.vocab_size)?;
    let prompt = Prompt::from_args(args, &pair, tokenizer.as_ref())?;
    let session = Session::new(args, device, &weights, prompt.ids, seeds, progress)?;
    if args.json {
        return session.json(tokenizer.as_ref());
    }
    if pair.bundled {
        note("This pair is tiny, for demonstration: the steps are real, the text makes little sense.");
        if prompt.text.as_deref() == Some(BUNDLED_PROMPT) && !Surface::of_stdout().has_colours() {
            note(&format!("It continues {BUNDLED_PROMPT:?}."));
        }
    }
    if tokenizer.is_none() {
        note(&format!("{} has no tokenizer.json, so there is no text to show.", pair.target.display()));
    }
    session.show(tokenizer.as_ref(), prompt.text.as_deref())
}

/// A remark on stderr. There is nothing to be done if it cannot be written.
fn note(text: &str) {
    let _ = writeln!(anstream::stderr(), "{0}{text}{0:#}", Style::new().dimmed());
}

/// One seed a sample.
#[derive(Clone, Copy, Debug)]
struct Seeds {
    first: u64,
    last: u64,
    count: usize,
}

impl Seeds {
    fn from_args(args: &GenerateArgs) -> Result<Self> {
        let (first, count) = (args.seed, args.samples.get());
        let last = u64::try_from(count - 1).ok().and_then(|further| first.checked_add(further));
        let last = last.ok_or_else(|| {
            CliError::Usage(format!(
                "{count} samples from seed {first} on exceed the largest seed, {}",
                u64::MAX
            ))
        })?;
        Ok(Self { first, last, count })
    }

    fn iter(self) -> impl Iterator<Item = u64> {
        self.first..=self.last
    }
}

/// The requests, one a seed.
struct Job<'a> {
    args: &'a GenerateArgs,
    prompt_ids: Vec<u32>,
    stop_ids: Vec<u32>,
    seeds: Seeds,
    /// Samples in a step at most.
    batch: usize,
}

impl Job<'_> {
    fn run<D: Device>(&self, engine: &mut Engine<D>, observer: &mut dyn Observer) -> Result<()> {
        let args = self.args;
        let request = |seed| Request {
            stop_ids: self.stop_ids.clone(),
            sampling: args.sampling(),
            rule: args.rule.into(),
            seed,
            block_size: args.block_size,
            confidence: args.confidence(),
            record: true,
            ..Request::new(self.prompt_ids.clone(), args.max_new_tokens)
        };
        run::run(engine, self.batch, self.seeds.iter(), request, observer)
    }
}

/// An engine and what it is to run.
struct Session<'a, D: Device> {
    job: Job<'a>,
    engine: Engine<D>,
    /// The mode that was asked for, or the only one there is.
    mode: Mode,
    facts: Facts,
    progress: Progress,
}

impl<'a, D: Device> Session<'a, D> {
    fn new(
        args: &'a GenerateArgs,
        device: D,
        weights: &Weights,
        prompt_ids: Vec<u32>,
        seeds: Seeds,
        mut progress: Progress,
    ) -> Result<Self> {
        let model = weights.on_device(device)?;
        let drafter = weights.drafter.as_ref().map(|drafter| &drafter.config);
        let block_size = drafter.map_or(1, |drafter| args.block_size.unwrap_or(drafter.block_size));
        let block_size = block_size.min(MAX_BLOCK_SIZE);
        let mode = match args.mode {
            ModeChoice::Auto if drafter.is_none() => {
                note("There is no drafter (see --draft), so this is --mode ar: one token a step.");
                Mode::Autoregressive
            }
            mode => mode.into(),
        };
        let config = &weights.target.config;
        let batch = seeds.count.min(EngineOptions::default().max_batch);
        let options = EngineOptions {
            max_batch: batch,
            cache_tokens: cache_tokens(config, prompt_ids.len(), args.max_new_tokens, block_size, batch),
            ..EngineOptions::default()
        };
        let stop_ids = if args.ignore_eos { Vec::new() } else { config.eos_ids.clone() };
        progress.running(seeds.count, prompt_ids.len().saturating_mul(seeds.count), options.prefill_rows);
        let facts = Facts {
            layers: config.layers,
            tail_layers: drafter.map_or(0, |drafter| drafter.tail_layers),
            block_size,
            weight_bytes: weights.bytes_a_token(),
        };
        let engine = Engine::new(model, mode, options)?;
        let job = Job { args, prompt_ids, stop_ids, seeds, batch };
        Ok(Self { job, engine, mode, facts, progress })
    }

    /// JSON Lines of the mode that was asked for.
    fn json(mut self, tokenizer: Option<&Tokenizer>) -> Result<()> {
        let prompt_ids = &self.job.prompt_ids;
        let mut lines = JsonLines::new(io::stdout().lock(), prompt_ids, tokenizer, &self.progress);
        self.job.run(&mut self.engine, &mut lines)
    }

    /// The text of the mode that was asked for, the other modes, and the report.
    fn show(mut self, tokenizer: Option<&Tokenizer>, prompt: Option<&str>) -> Result<()> {
        let surface = Surface::of_stdout();
        if surface.has_colours() && self.mode.drafts() && tokenizer.is_some() {
            note("A change of colour is a new step; underlined tokens are accepted drafts.");
        }
        let count = self.job.seeds.count;
        let mut streamer = Streamer::new(surface.stdout(), surface, tokenizer, &self.progress, prompt, count);
        self.job.run(&mut self.engine, &mut streamer)?;
        let (samples, commits) = streamer.finish()?;
        let shown_mode = self.mode_that_ran();
        let measured = self.measure(shown_mode, samples)?;
        self.progress.clear();

        let verdict = self.verdict(&measured);
        let report = report::report(&self.facts, shown_mode.name(), &commits, &measured, &verdict);
        let _ = anstream::stderr().write_all(report.as_bytes());
        match verdict {
            Verdict::Broken(difference) => Err(CliError::NotLossless(difference)),
            _ => Ok(()),
        }
    }

    /// `auto` by the name of the mode that it chose, if that was the same all along.
    fn mode_that_ran(&self) -> Mode {
        let limit = self.engine.model().device().parallel_batch_limit();
        match self.mode {
            Mode::Auto if limit == 0 => Mode::Sequential,
            Mode::Auto if self.job.batch <= limit => Mode::Parallel,
            mode => mode,
        }
    }

    /// What the mode that was shown did, and what the others do with the same requests.
    fn measure(&mut self, shown: Mode, samples: Vec<Sample>) -> Result<Vec<Measured>> {
        let mut shown_samples = Some(samples);
        let modes = match (self.compares(), MODES.contains(&shown)) {
            (false, _) => vec![shown],
            (true, true) => MODES.to_vec(),
            (true, false) => [&[shown], &MODES[..]].concat(),
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
        !self.job.args.no_compare && self.facts.tail_layers > 0
    }

    fn collect(&mut self, mode: Mode) -> Result<Vec<Sample>> {
        self.engine.set_policy(mode)?;
        let mut samples = Collect::default();
        self.job.run(&mut self.engine, &mut samples)?;
        Ok(samples.into_samples())
    }

    fn verdict(&self, measured: &[Measured]) -> Verdict {
        if self.facts.tail_layers == 0 {
            return Verdict::NoDrafter;
        }
        let ar = measured.iter().find(|measured| measured.name == Mode::Autoregressive.name());
        let Some(ar) = ar.filter(|_| self.compares()) else { return Verdict::NotCompared };
        if !self.job.args.sampling().is_greedy() && Rule::from(self.job.args.rule) != Rule::Match {
            return Verdict::SameDistribution { rule: self.job.args.rule.name() };
        }
        match measured.iter().find_map(|other| compare::first_difference(ar, other)) {
            Some(difference) => Verdict::Broken(difference),
            None => Verdict::Lossless { tokens: ar.tokens() },
        }
    }
}

/// Room for `batch` sequences of full length and a block, within [`CACHE_BYTES`]; a single sequence always
/// has room. Sequences that do not fit wait.
fn cache_tokens(
    config: &ModelConfig,
    prompt_len: usize,
    max_new_tokens: usize,
    block_size: usize,
    batch: usize,
) -> usize {
    let page_size = EngineOptions::default().page_size;
    let longest =
        prompt_len.saturating_add(max_new_tokens).min(config.context_len).saturating_add(block_size);
    let sequence = longest.div_ceil(page_size).saturating_mul(page_size);
    let attention = config.attention;
    let bytes_a_token = [2, config.layers, attention.kv_heads, attention.head_dim, size_of::<f32>()]
        .into_iter()
        .fold(1, usize::saturating_mul)
        .max(1);
    sequence.saturating_mul(batch).min(CACHE_BYTES / bytes_a_token).max(sequence)
}

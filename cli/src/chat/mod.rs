//! The command `flexdraft chat`, a conversation in the terminal.

mod args;
mod conversation;
mod input;
mod interrupt;
mod stats;

use std::sync::Arc;

use flexdraft::decode::{CostModel, Engine, EngineOptions, ProbeOptions, PromptLookup};
use flexdraft::device::Device;
use flexdraft::layout::MAX_BLOCK_SIZE;
use flexdraft::model::{LoadError, QuantizedWeights, Tokenizer};

pub use self::args::ChatArgs;
use self::conversation::Conversation;
use crate::args::ModeChoice;
use crate::card::Card;
use crate::device::{self, Work, label};
use crate::error::{CliError, Result};
use crate::models::{self, CACHE_BYTES, Pair, Weights};
use crate::probe::{self, Place};
use crate::progress::Progress;
use crate::surface::Surface;
use crate::template::Template;
use crate::text::TextOptions;

/// Runs the command `flexdraft chat`.
pub fn chat(args: &ChatArgs) -> Result<()> {
    device::run(&args.model, |quantized| Loaded::new(args, quantized))
}

/// The loaded models and the chat template, before a device is chosen.
struct Loaded<'a> {
    args: &'a ChatArgs,
    pair: Pair,
    card: Card,
    progress: Progress,
    weights: Weights,
    tokenizer: Arc<Tokenizer>,
    template: Template,
}

impl<'a> Loaded<'a> {
    fn new(args: &'a ChatArgs, quantized: QuantizedWeights) -> Result<Self> {
        let pair = Pair::new(args.model.target.clone(), args.model.draft.clone())?;
        let progress = Progress::loading(&pair.target);
        let mut weights = pair.load(args.decoding.block_size, quantized)?;
        weights.warnings().for_each(|warning| progress.warn(&warning.to_string()));
        models::set_context(&args.decoding, &mut weights.target.config, &progress)?;
        let tokenizer = Tokenizer::read_if_present(&pair.target, weights.target.config.vocab_size)?;
        let tokenizer = tokenizer.ok_or_else(|| {
            CliError::Usage(format!("{} has no tokenizer, which a conversation needs", pair.target.display()))
        })?;
        let template = Template::read(&pair.target, &args.template).map_err(|error| match error {
            CliError::Library(flexdraft::Error::Load(error @ LoadError::NoChatTemplate { .. })) => {
                CliError::Usage(format!("{error}; `flexdraft generate` continues a text without a template"))
            }
            error => error,
        })?;
        let card = Card::read(&pair)?;
        let warnings = template.warnings().into_iter().chain(card.differences(&template));
        warnings.for_each(|warning| progress.warn(&warning));
        Ok(Self { args, pair, card, progress, weights, tokenizer: Arc::new(tokenizer), template })
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
        let Self { args, pair, card, progress, mut weights, tokenizer, template } = self;
        let label = label(&device);
        let text = TextOptions::new(Some(tokenizer), &args.decoding.stop)?;
        let drafter = weights.drafter.as_ref().map(|drafter| &drafter.config);
        let looks_up = pair.looks_up();
        let without_drafter = if looks_up { 1 + PromptLookup::default().tokens } else { 1 };
        let block_size =
            drafter.map_or(without_drafter, |drafter| args.decoding.block_size.unwrap_or(drafter.block_size));
        let mode = match pair.mode(args.decoding.mode) {
            ModeChoice::Auto if drafter.is_none() && !looks_up => ModeChoice::Ar,
            mode => mode,
        };
        let config = &mut weights.target.config;
        if args.decoding.context.is_none() {
            // Without --context, the conversation is limited to a KV cache of `CACHE_BYTES`, because the cache of a
            // whole context may be larger than the machine's memory.
            let affordable = CACHE_BYTES / models::cache_bytes_a_token(config);
            config.context_len = config.context_len.min(affordable.max(1));
        }
        let (context, stop_ids) = (config.context_len, config.eos_ids.clone());
        let processors = args.sampling.processors.processors(config.vocab_size, text.tokenizer.as_deref())?;
        let page_size = EngineOptions::default().page_size;
        let options = EngineOptions {
            max_batch: 1,
            cache_tokens: (context + block_size.min(MAX_BLOCK_SIZE)).next_multiple_of(page_size),
            prefix_cache: !args.decoding.no_prefix_cache,
            proposers: looks_up,
            ..EngineOptions::default()
        };
        let without = CostModel::default();
        let mut engine = Engine::new(weights.on_device(device)?, mode.policy(&without), options)?;
        if mode == ModeChoice::Auto && !args.decoding.no_probe {
            let options = ProbeOptions { block_size: args.decoding.block_size, ..ProbeOptions::default() };
            let key = probe::key(&place, &weights, args.decoding.block_size, 1);
            let cost = probe::cost_model(&mut engine, &options, &key, || progress.probing())?;
            engine.set_policy(mode.policy(&cost))?;
        }
        progress.clear();
        if let Some(label) = label {
            progress.note(&format!("Results are {label}."));
        }
        let stop_ids = if args.decoding.ignore_eos { Vec::new() } else { stop_ids };
        // Plain decoding drafts nothing, so the drafter's card is not compared with the run.
        let card = if mode == ModeChoice::Ar { Card::default() } else { card };
        Conversation {
            args,
            template,
            card,
            looks_up,
            text,
            stop_ids,
            processors,
            context,
            surface: Surface::of_stdout(),
        }
        .hold(&mut engine, &progress)
    }
}

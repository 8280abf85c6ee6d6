//! The pretraining loop: draws windows, takes steps, evaluates, saves, and resumes an earlier run.

use std::fs;
use std::path::PathBuf;
use std::time::Instant;

use candle_core::{DType, Device};
use flexdraft::model::ModelConfig;
use serde::{Deserialize, Serialize};
use tokenizers::Tokenizer;

use super::bpe::train_tokenizer;
use super::corpus::{Tokens, read_documents};
use super::export::{export, write_config};
use super::model::{BatchLayout, PretrainModel};
use super::settings::PretrainSettings;
use crate::checkpoint;
use crate::error::{Result, TuneError};
use crate::json_lines::Appender;
use crate::optimizer::{AdamW, schedule_steps};

/// The paths that a pretraining run reads and writes.
#[derive(Clone, Debug)]
pub struct Paths {
    /// Training text: a file or a folder.
    pub text: PathBuf,
    /// Held-out text, which is measured but never trained on.
    pub heldout: Option<PathBuf>,
    /// Output folder of the model. Its subfolder `run` holds the checkpoint and the metrics.
    pub out: PathBuf,
}

/// An event that a pretraining run reports; `run/metrics.jsonl` holds one per line.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "snake_case", tag = "event")]
#[allow(missing_docs)]
pub enum Event {
    /// Training starts, or resumes after `step` steps.
    Begin {
        step: usize,
        steps: usize,
        parameters: usize,
        vocab_size: usize,
        tokens: usize,
        heldout_tokens: usize,
    },
    /// The mean loss since the last metrics line, and the latest step's learning rate and gradient norm.
    Step { step: usize, loss: f64, rate: f64, gradient_norm: f64, tokens_per_second: f64 },
    /// The mean loss over the held-out text.
    Heldout { step: usize, loss: f64 },
    /// The checkpoint and the model were saved after `step` steps.
    Saved { step: usize },
}

/// The description of a pretraining run in its checkpoint.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Description {
    settings: PretrainSettings,
    /// Hash of the training tokens.
    fingerprint: u64,
    step: usize,
    /// Number of steps over which the learning rate falls; 0 in old checkpoints, where it is the number in the settings.
    #[serde(default)]
    schedule_steps: usize,
}

/// Trains a model on text, or resumes if the output folder holds a checkpoint of the same run.
///
/// # Errors
/// [`TuneError::Setting`] and [`TuneError::Runner`] for invalid settings; [`TuneError::TooLittleData`] and
/// [`TuneError::File`] for unusable texts; [`TuneError::OtherRun`] if the checkpoint belongs to other settings or
/// another text; [`TuneError::NotFinite`] for a loss or gradient that is not a number, in which case the latest
/// checkpoint is kept; [`TuneError::Io`] and [`TuneError::Tensor`] for failures of the system.
pub fn pretrain(
    paths: &Paths,
    settings: &PretrainSettings,
    device: &Device,
    mut report: impl FnMut(&Event),
) -> Result<()> {
    settings.validate()?;
    let state = paths.out.join("run");
    fs::create_dir_all(&state).map_err(TuneError::io("make", &state))?;
    // The metrics file is opened first: while it is open, no other run can write to this folder.
    let mut metrics = Appender::open(&state.join("metrics.jsonl"))?;
    let checkpoint_path = state.join("checkpoint.safetensors");
    let saved = match checkpoint_path.exists() {
        true => Some(checkpoint::load::<Description>(&checkpoint_path)?),
        false => None,
    };
    let differs = |what, found: String, expected: String| {
        let path = checkpoint_path.clone();
        Err(TuneError::OtherRun { path, what, found, expected })
    };
    if let Some((_, description)) = &saved
        && let Some((found, expected)) = settings.difference(&description.settings)
    {
        return differs("settings", found, expected);
    }

    let documents = read_documents(&paths.text)?;
    let tokenizer = tokenizer(paths, &documents, settings.vocab_size, saved.is_some())?;
    let tokens = Tokens::encode(&paths.text, &documents, &tokenizer, settings.shape.context_len)?;
    let heldout = match &paths.heldout {
        Some(path) => Some(Tokens::encode(path, &read_documents(path)?, &tokenizer, settings.window)?),
        None => None,
    };
    let json = serde_json::to_string_pretty(settings)
        .map_err(|error| TuneError::File { path: state.clone(), reason: error.to_string() })?;
    checkpoint::write_whole(&state.join("settings.json"), (json + "\n").as_bytes())?;
    let config = write_config(&paths.out, &settings.shape, tokenizer.get_vocab_size(true))?;

    let model = PretrainModel::random(&config, DType::F32, device, settings.seed)?;
    let mut optimizer = AdamW::new(model.parameters(), settings.adam)?;
    let fingerprint = tokens.fingerprint();
    let mut scheduled = settings.steps;
    if let Some((tensors, description)) = saved {
        if description.fingerprint != fingerprint {
            let hex = |x: u64| format!("tokens {x:016x}");
            return differs("text", hex(description.fingerprint), hex(fingerprint));
        }
        if let Some(name) = optimizer.restore(tensors, description.step)? {
            return Err(TuneError::File {
                path: checkpoint_path,
                reason: format!("{name} is missing or has another shape"),
            });
        }
        let before = match description.schedule_steps {
            0 => description.settings.steps,
            steps => steps,
        };
        scheduled = schedule_steps(description.step, before, settings.steps);
    }

    let mut tell = |event: Event| -> Result<()> {
        metrics.append(&event)?;
        report(&event);
        Ok(())
    };
    tell(Event::Begin {
        step: optimizer.steps(),
        steps: settings.steps,
        parameters: model.parameters().iter().map(|parameter| parameter.var.elem_count()).sum(),
        vocab_size: config.vocab_size,
        tokens: tokens.len(),
        heldout_tokens: heldout.as_ref().map_or(0, Tokens::len),
    })?;
    let heldout = heldout.as_ref();
    let mut layouts = Layouts::default();
    let mut checkpoint_step = optimizer.steps();
    let mut meter = Meter::new();
    let schedule = settings.schedule(scheduled);
    while optimizer.steps() < settings.steps {
        let step = optimizer.steps();
        let (window, count) = settings.windows(step);
        let layout = layouts.get(&model, &config, window, count)?;
        let (ids, next) = tokens.draw(settings.seed, step, window, count);
        let (loss, predictions) = model.loss(&ids, &next, layout)?;
        let not_finite = |loss| TuneError::NotFinite { step, loss, checkpoint: checkpoint_step };
        let sum: f64 = predictions.iter().map(|prediction| prediction.loss).sum();
        if !sum.is_finite() {
            return Err(not_finite(sum / next.len() as f64));
        }
        let rate = schedule.rate(step);
        let gradients = optimizer.gradients(&loss.backward()?);
        let gradient_norm = optimizer.step(gradients, rate)?;
        if !gradient_norm.is_finite() {
            return Err(not_finite(gradient_norm));
        }
        meter.add(sum, next.len());

        let step = optimizer.steps();
        let last = step == settings.steps;
        let due = |interval| last || step.is_multiple_of(interval);
        if due(settings.log_every) {
            let (loss, tokens_per_second) = meter.take();
            tell(Event::Step { step, loss, rate, gradient_norm, tokens_per_second })?;
        }
        if due(settings.evaluate_every)
            && let Some(heldout) = heldout
        {
            let loss = heldout_loss(&model, &config, heldout, settings.window, &mut layouts)?;
            tell(Event::Heldout { step, loss })?;
            meter.restart();
        }
        if due(settings.checkpoint_every) {
            let settings = settings.clone();
            let description = Description { settings, fingerprint, step, schedule_steps: scheduled };
            checkpoint::save(&checkpoint_path, &optimizer.state(), &description)?;
            checkpoint_step = step;
            export(&paths.out, &model, &config, DType::BF16)?;
            tell(Event::Saved { step })?;
            meter.restart();
        }
    }
    Ok(())
}

/// Returns the run's tokenizer: if the run resumes, the one in the output folder; otherwise a new one, which is written
/// there.
fn tokenizer(paths: &Paths, documents: &[String], vocab_size: usize, goes_on: bool) -> Result<Tokenizer> {
    let path = paths.out.join("tokenizer.json");
    let wrong = |error: tokenizers::Error| TuneError::File { path: path.clone(), reason: error.to_string() };
    if goes_on {
        let bytes = fs::read(&path).map_err(TuneError::io("read", &path))?;
        return Tokenizer::from_bytes(bytes).map_err(wrong);
    }
    let tokenizer = train_tokenizer(&paths.text, documents, vocab_size)?;
    let json = tokenizer.to_string(true).map_err(wrong)?;
    checkpoint::write_whole(&path, json.as_bytes())?;
    let config = serde_json::json!({
        "clean_up_tokenization_spaces": false,
        "eos_token": super::END_OF_TEXT,
        "pad_token": super::END_OF_TEXT,
        "tokenizer_class": "PreTrainedTokenizerFast",
    });
    checkpoint::write_whole(&paths.out.join("tokenizer_config.json"), format!("{config:#}\n").as_bytes())?;
    Ok(tokenizer)
}

fn heldout_loss(
    model: &PretrainModel,
    config: &ModelConfig,
    heldout: &Tokens,
    window: usize,
    layouts: &mut Layouts,
) -> Result<f64> {
    /// Number of rows per batch, which limits the memory.
    const ROWS: usize = 4096;
    let (ids, next) = heldout.all(window);
    let rows = (ROWS / window).max(1) * window;
    let mut sum = 0.0;
    for (ids, next) in ids.chunks(rows).zip(next.chunks(rows)) {
        let layout = layouts.get(model, config, window, ids.len() / window)?;
        sum += model.mean_loss(ids, next, layout)? * ids.len() as f64;
    }
    Ok(sum / ids.len() as f64)
}

/// The row layouts of a run's batches; a run has only a few layouts, and builds each of them once.
#[derive(Default)]
struct Layouts(Vec<([usize; 2], BatchLayout)>);

impl Layouts {
    fn get(
        &mut self,
        model: &PretrainModel,
        config: &ModelConfig,
        window: usize,
        count: usize,
    ) -> Result<&BatchLayout> {
        let key = [window, count];
        let known = self.0.iter().position(|(other, _)| *other == key);
        let place = match known {
            Some(place) => place,
            None => {
                self.0.push((key, model.layout(config, window, count)?));
                self.0.len() - 1
            }
        };
        Ok(&self.0[place].1)
    }
}

/// Sums losses and times steps between two lines of metrics.
struct Meter {
    since: Instant,
    seconds: f64,
    sum: f64,
    tokens: usize,
}

impl Meter {
    fn new() -> Self {
        Self { since: Instant::now(), seconds: 0.0, sum: 0.0, tokens: 0 }
    }

    fn add(&mut self, sum: f64, tokens: usize) {
        self.seconds += self.since.elapsed().as_secs_f64();
        self.since = Instant::now();
        self.sum += sum;
        self.tokens += tokens;
    }

    /// Restarts the clock, so that the time since the last step does not count as training time.
    fn restart(&mut self) {
        self.since = Instant::now();
    }

    /// Returns the mean loss and the tokens per second since the last call, and starts new sums.
    fn take(&mut self) -> (f64, f64) {
        let tokens = self.tokens.max(1) as f64;
        let taken = (self.sum / tokens, tokens / self.seconds.max(1e-9));
        *self = Self::new();
        taken
    }
}

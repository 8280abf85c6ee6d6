//! The command `flexdraft-tune tune`, which trains a drafter.

use std::fs;
use std::path::Path;

use flexdraft::model::TargetWeights;
use flexdraft_tune::data::DataFile;
use flexdraft_tune::json_lines::Appender;
use flexdraft_tune::transcripts;
use flexdraft_tune::tune::walk::Walk;
use flexdraft_tune::tune::{self, Observer, Place, Settings, StepMetrics};
use flexdraft_tune::{Result, TuneError};

use super::args::TuneArgs;
use super::models;
use super::progress::Progress;

/// Trains a drafter as the arguments say.
pub fn tune(args: &TuneArgs) -> Result<()> {
    let settings = settings(args)?;
    #[cfg(feature = "nccl")]
    if let Some(count) = args.gpus {
        let (device, ranks) = super::gpus::join(count.get())?;
        return tune_at(Place { device: &device, ranks: &ranks }, args, &settings);
    }
    tune_at(Place::alone(&args.device.open()?), args, &settings)
}

fn tune_at(place: Place<'_>, args: &TuneArgs, settings: &Settings) -> Result<()> {
    let target = models::target(&args.target)?;
    let vocab_size = target.config.vocab_size;
    let train = transcripts::read(&args.data.join("train.jsonl"), vocab_size)?;
    let heldout = transcripts::read(&args.data.join("heldout.jsonl"), vocab_size)?;
    settings.validate(&target.config)?;
    check_data(&args.data, &target)?;
    if place.ranks.rank() != 0 {
        // Only rank 0 writes files and reports progress.
        return tune::run(&target, train, heldout, settings, &args.out, place, &mut Silent).map(|_| ());
    }
    fs::create_dir_all(&args.out).map_err(TuneError::io("create", &args.out))?;
    let mut report = Report {
        metrics: Appender::open(&args.out.join("metrics.jsonl"))?,
        progress: Progress::new(settings.steps),
        block_size: settings.block_size,
        first: None,
        tau: None,
    };
    let outcome = tune::run(&target, train, heldout, settings, &args.out, place, &mut report);
    let outcome = outcome.map_err(|error| match error {
        // The library does not know the folder with the transcripts, so its error names the output folder.
        TuneError::TooLittleData { found, unit, needed, .. } => {
            TuneError::TooLittleData { path: args.data.clone(), found, unit, needed }
        }
        error => error,
    })?;
    report.progress.finish();
    if let Some(outcome) = outcome {
        let drafter = outcome.drafter.map_or_else(String::new, |drafter| format!(": {}", drafter.display()));
        eprintln!("held-out acceptance length {:.3}, after {} steps{drafter}", outcome.tau, outcome.step);
    }
    Ok(())
}

/// Checks that a folder of transcripts is complete and was written by this target. A folder without `data.json`, which
/// the command `data` did not make, is taken as it is.
fn check_data(folder: &Path, target: &TargetWeights) -> Result<()> {
    let Some(file) = DataFile::read(folder)? else { return Ok(()) };
    file.check_target(folder, target)?;
    if file.result.is_none() {
        let reason = "the command `data` has not finished it; run that command again, which continues it";
        return Err(TuneError::File { path: folder.into(), reason: reason.into() });
    }
    if file.settings.temperature > 0.0 {
        eprintln!(
            "note: the transcripts were sampled at temperature {}; the held-out acceptance length is lower than decoding's, \
             which is measured on greedy transcripts",
            file.settings.temperature
        );
    }
    Ok(())
}

/// An observer that reports nothing, for ranks other than 0.
struct Silent;

impl Observer for Silent {
    fn step(&mut self, _: &StepMetrics) -> Result<()> {
        Ok(())
    }

    fn evaluated(&mut self, _: usize, _: usize, _: &Walk) -> Result<()> {
        Ok(())
    }
}

/// Returns the settings of --config, or else the defaults, overridden by the command line.
fn settings(args: &TuneArgs) -> Result<Settings> {
    let mut settings = match &args.config {
        None => Settings::default(),
        Some(path) => {
            let bytes = fs::read(path).map_err(TuneError::io("read", path))?;
            serde_json::from_slice(&bytes)
                .map_err(|error| TuneError::File { path: path.clone(), reason: error.to_string() })?
        }
    };
    macro_rules! take {
        ($($field:ident),*) => {$(
            if let Some(value) = args.$field {
                settings.$field = value.into();
            }
        )*};
    }
    take!(
        tail_layers,
        block_size,
        rank,
        gamma,
        shortlist,
        steps,
        sequences,
        anchors,
        learning_rate,
        calibrator_rate,
        compute,
        ema,
        seed
    );
    take!(whole_tail, evaluate_every, evaluate_on, checkpoint_every);
    Ok(settings)
}

/// Writes the metrics of a run to its file, and shows the run's progress.
struct Report {
    metrics: Appender,
    progress: Progress,
    block_size: usize,
    /// Steps taken before this process started.
    first: Option<usize>,
    tau: Option<f64>,
}

impl Observer for Report {
    fn step(&mut self, metrics: &StepMetrics) -> Result<()> {
        let first = *self.first.get_or_insert(metrics.step - 1);
        let tau = self.tau.map_or_else(String::new, |tau| format!(", held-out τ {tau:.3}"));
        let message = format!("loss {:.3}{tau}, {:.0} mask rows/s", metrics.loss, metrics.rows_per_second);
        self.progress.show(metrics.step, first, &message);
        self.metrics.append(metrics)
    }

    fn evaluated(&mut self, step: usize, anchors: usize, walk: &Walk) -> Result<()> {
        self.tau = walk.tau();
        let accepted: Vec<f64> = walk
            .accepted
            .iter()
            .zip(&walk.reached)
            .take(self.block_size - 1)
            .map(|(&accepted, &reached)| accepted as f64 / reached.max(1) as f64)
            .collect();
        self.metrics.append(&serde_json::json!({
            "step": step,
            "anchors": anchors,
            "tau": walk.tau(),
            "walked_steps": walk.steps,
            "slot_acceptance": accepted,
        }))
    }
}

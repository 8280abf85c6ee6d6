//! Code that the training commands share: reading and checking transcripts, settings, and the report of a run.

use std::fs;
use std::path::Path;

use flexdraft::model::TargetWeights;
use flexdraft_tune::card::{Rendered, add_to_card};
use flexdraft_tune::data::DataFile;
use flexdraft_tune::json_lines::Appender;
use flexdraft_tune::transcripts::{self, Transcript};
use flexdraft_tune::tune::walk::Walk;
use flexdraft_tune::tune::{Observer, Outcome, StepMetrics};
use flexdraft_tune::{Result, TuneError};
use serde::de::DeserializeOwned;

use super::progress::Progress;
use super::training_args::RunArgs;

/// The transcripts of a folder.
pub struct Data {
    pub train: Vec<Transcript>,
    pub heldout: Vec<Transcript>,
    /// The folder's `data.json`; none in a folder that the command `data` did not make.
    pub file: Option<DataFile>,
}

impl Data {
    /// Reads the transcripts of a folder, and checks that the folder is complete and was written by this target. A folder
    /// without `data.json` is taken as it is.
    pub fn read(folder: &Path, target: &TargetWeights) -> Result<Self> {
        let read = |name| transcripts::read(&folder.join(name), target.config.vocab_size);
        let (train, heldout) = (read("train.jsonl")?, read("heldout.jsonl")?);
        let file = DataFile::read(folder)?;
        if let Some(file) = &file {
            check_data(file, folder, target)?;
        }
        Ok(Self { train, heldout, file })
    }
}

fn check_data(file: &DataFile, folder: &Path, target: &TargetWeights) -> Result<()> {
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

/// Runs `train`, which trains for `steps` steps in all, with a report in the run's folder. Writes the card of the run's
/// drafter.
pub fn run_with_report(
    args: &RunArgs,
    steps: usize,
    block_size: usize,
    data: Option<DataFile>,
    train: impl FnOnce(&mut Report) -> Result<Option<Outcome>>,
) -> Result<()> {
    fs::create_dir_all(&args.out).map_err(TuneError::io("create", &args.out))?;
    let mut report = Report::new(&args.out, steps, block_size)?;
    let outcome = train(&mut report).map_err(|error| name_data(error, &args.data))?;
    if let (Some(outcome), Some(data)) = (&outcome, data) {
        write_card(outcome, &data, &args.target, block_size)?;
    }
    report.finish(outcome);
    Ok(())
}

/// Writes the held-out acceptance length of a run into its drafter's card, unless the transcripts in `data` were sampled: along
/// sampled transcripts, the acceptance length is not that of decoding.
fn write_card(outcome: &Outcome, data: &DataFile, target: &Path, block_size: usize) -> Result<()> {
    let Some(drafter) = outcome.drafter.as_ref().filter(|_| data.settings.temperature == 0.0) else {
        return Ok(());
    };
    let rendered = Rendered::of_source(&data.settings.source, target)?;
    add_to_card(drafter, rendered, block_size, "heldout", outcome.tau)
}

/// Makes an error about too little data name the folder with the transcripts: the library does not know the folder, so its
/// error names the output folder.
fn name_data(error: TuneError, folder: &Path) -> TuneError {
    match error {
        TuneError::TooLittleData { found, unit, needed, .. } => {
            TuneError::TooLittleData { path: folder.into(), found, unit, needed }
        }
        error => error,
    }
}

/// Reads the settings in a JSON file; without a file, returns the defaults.
pub fn settings_file<T: DeserializeOwned + Default>(path: Option<&Path>) -> Result<T> {
    let Some(path) = path else { return Ok(T::default()) };
    let bytes = fs::read(path).map_err(TuneError::io("read", path))?;
    serde_json::from_slice(&bytes)
        .map_err(|error| TuneError::File { path: path.into(), reason: error.to_string() })
}

/// Writes the metrics of a run to its file, and shows the run's progress.
pub struct Report {
    metrics: Appender,
    progress: Progress,
    block_size: usize,
    /// Steps taken before this process started.
    first: Option<usize>,
    tau: Option<f64>,
}

impl Report {
    /// Starts the report of a run of `steps` steps in the folder `out`.
    fn new(out: &Path, steps: usize, block_size: usize) -> Result<Self> {
        let metrics = Appender::open(&out.join("metrics.jsonl"))?;
        Ok(Self { metrics, progress: Progress::new(steps), block_size, first: None, tau: None })
    }

    /// Ends the report with the result of the run; only rank 0 of a run has a result.
    fn finish(self, outcome: Option<Outcome>) {
        self.progress.finish();
        if let Some(outcome) = outcome {
            let drafter =
                outcome.drafter.map_or_else(String::new, |drafter| format!(": {}", drafter.display()));
            eprintln!("held-out acceptance length {:.3}, after {} steps{drafter}", outcome.tau, outcome.step);
        }
    }
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

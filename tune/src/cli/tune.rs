//! The command `flexdraft-tune tune`, which trains a drafter.

use std::fs;

use flexdraft_tune::tune::walk::Walk;
use flexdraft_tune::tune::{self, Observer, Place, Settings, StepMetrics};
use flexdraft_tune::{Result, TuneError};

use super::args::TuneArgs;
use super::models;
use super::training::{Report, check_data, name_data, read_data, settings_file};

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
    let [train, heldout] = read_data(&args.data, vocab_size)?;
    settings.validate(&target.config)?;
    check_data(&args.data, &target)?;
    if place.ranks.rank() != 0 {
        // Only rank 0 writes files and reports progress.
        return tune::run(&target, train, heldout, settings, &args.out, place, &mut Silent).map(|_| ());
    }
    fs::create_dir_all(&args.out).map_err(TuneError::io("create", &args.out))?;
    let mut report = Report::new(&args.out, settings.steps, settings.block_size)?;
    let outcome = tune::run(&target, train, heldout, settings, &args.out, place, &mut report);
    let outcome = outcome.map_err(|error| name_data(error, &args.data))?;
    report.finish(outcome);
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
    let mut settings: Settings = settings_file(args.config.as_deref())?;
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

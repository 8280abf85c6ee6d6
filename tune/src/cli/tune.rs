//! The command `flexdraft-tune tune`, which trains a drafter.

use flexdraft_tune::tune::walk::Walk;
use flexdraft_tune::tune::{self, DrafterChoice, Observer, Place, Settings, StepMetrics, TunedTarget};
use flexdraft_tune::{Result, TuneError};

use super::args::TuneArgs;
use super::models;
use super::training::{Data, run_with_report, settings_file};
use super::training_args::{take, take_training};

/// Trains a drafter as the arguments say.
pub fn tune(args: &TuneArgs) -> Result<()> {
    let settings = settings(args)?;
    #[cfg(feature = "nccl")]
    if let Some(count) = args.gpus {
        let (device, ranks) = super::gpus::join(count.get())?;
        return tune_at(Place { device: &device, ranks: &ranks }, args, settings);
    }
    tune_at(Place::alone(&args.run.device.open()?), args, settings)
}

fn tune_at(place: Place<'_>, args: &TuneArgs, mut settings: Settings) -> Result<()> {
    let weights = models::target(&args.run.target)?;
    if args.tail_layers.is_none() && args.run.config.is_none() {
        // The default number of layers fits small targets too.
        settings.tail_layers = settings.tail_layers.min(weights.config.layers);
    }
    let settings = &settings;
    settings.validate(&weights.config)?;
    let target = TunedTarget { weights: &weights, directory: &args.run.target };
    let Data { train, heldout, file } = Data::read(&args.run.data, &weights)?;
    let out = &args.run.out;
    if place.ranks.rank() != 0 {
        // Only rank 0 writes files and reports progress.
        return tune::run(target, train, heldout, settings, out, place, &mut Silent).map(|_| ());
    }
    run_with_report(&args.run, settings.steps, settings.block_size, file, |report| {
        tune::run(target, train, heldout, settings, out, place, report)
    })
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
    let mut settings: Settings = settings_file(args.run.config.as_deref())?;
    if let Some(kind) = args.kind {
        settings.kind = kind.into();
    }
    if settings.kind == DrafterChoice::Orthrus {
        let given = [("--tail-layers", args.tail_layers), ("--rank", args.rank)];
        if let Some((option, value)) = given.iter().find_map(|&(option, value)| Some((option, value?))) {
            let expected =
                "no value, because an Orthrus drafter has projectors in all layers and no calibrator";
            return Err(TuneError::setting(option, value, expected));
        }
    }
    settings.mask_token = args.mask_token.or(settings.mask_token);
    settings.init_from = args.init_from.clone().or(settings.init_from);
    take!(args => settings; tail_layers, block_size, rank, shortlist, whole_tail, calibrator_rate, ema);
    take_training!(args.training => settings);
    if let Some(kind) = args.chain {
        settings.chain.get_or_insert_default().kind = kind.into();
    }
    for (option, value) in [("--chain-rank", args.chain_rank), ("--chain-top-k", args.chain_top_k)] {
        let Some(value) = value else { continue };
        let Some(chain) = &mut settings.chain else {
            return Err(TuneError::setting(option, value, "no value without --chain"));
        };
        let setting = if option == "--chain-rank" { &mut chain.rank } else { &mut chain.top_k };
        *setting = value;
    }
    Ok(settings)
}

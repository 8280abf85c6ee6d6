//! The command `flexdraft-tune tune`, which trains a drafter.

use std::fs;

use flexdraft_tune::tune::walk::Walk;
use flexdraft_tune::tune::{self, DrafterChoice, Observer, Place, Settings, StepMetrics, TunedTarget};
use flexdraft_tune::{Result, TuneError};

use super::args::TuneArgs;
use super::models;
use super::training::{Report, check_data, name_data, read_data, settings_file, write_card};

/// Trains a drafter as the arguments say.
pub fn tune(args: &TuneArgs) -> Result<()> {
    let settings = settings(args)?;
    #[cfg(feature = "nccl")]
    if let Some(count) = args.gpus {
        let (device, ranks) = super::gpus::join(count.get())?;
        return tune_at(Place { device: &device, ranks: &ranks }, args, settings);
    }
    tune_at(Place::alone(&args.device.open()?), args, settings)
}

fn tune_at(place: Place<'_>, args: &TuneArgs, mut settings: Settings) -> Result<()> {
    let weights = models::target(&args.target)?;
    if args.tail_layers.is_none() && args.config.is_none() {
        // The default number of layers fits small targets too.
        settings.tail_layers = settings.tail_layers.min(weights.config.layers);
    }
    let settings = &settings;
    let target = TunedTarget { weights: &weights, directory: &args.target };
    let [train, heldout] = read_data(&args.data, weights.config.vocab_size)?;
    settings.validate(&weights.config)?;
    let data = check_data(&args.data, &weights)?;
    if place.ranks.rank() != 0 {
        // Only rank 0 writes files and reports progress.
        return tune::run(target, train, heldout, settings, &args.out, place, &mut Silent).map(|_| ());
    }
    fs::create_dir_all(&args.out).map_err(TuneError::io("create", &args.out))?;
    let mut report = Report::new(&args.out, settings.steps, settings.block_size)?;
    let outcome = tune::run(target, train, heldout, settings, &args.out, place, &mut report);
    let outcome = outcome.map_err(|error| name_data(error, &args.data))?;
    if let (Some(outcome), Some(data)) = (&outcome, data) {
        write_card(outcome, &data, &args.target, settings.block_size)?;
    }
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
    take!(whole_tail, evaluate_every, evaluate_on, checkpoint_every);
    Ok(settings)
}

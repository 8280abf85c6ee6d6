//! The command `flexdraft-tune chain`, which trains the chain of a frozen drafter.

use std::fs;

use flexdraft_tune::tune::{ChainSettings, FrozenSource, run_chain};
use flexdraft_tune::{Result, TuneError};

use super::chain_args::ChainArgs;
use super::models;
use super::training::{Report, check_data, name_data, read_data, settings_file, write_card};

/// Trains a chain as the arguments say.
pub fn chain(args: &ChainArgs) -> Result<()> {
    let settings = settings(args)?;
    settings.validate()?;
    let target = models::target(&args.target)?;
    let drafter = models::drafter(&args.draft, &target.config)?;
    let [train, heldout] = read_data(&args.data, target.config.vocab_size)?;
    let data = check_data(&args.data, &target)?;
    let device = args.device.open()?;
    fs::create_dir_all(&args.out).map_err(TuneError::io("create", &args.out))?;
    let mut report = Report::new(&args.out, settings.steps, drafter.config.block_size)?;
    let source = FrozenSource { target: &target, drafter: &drafter, dir: &args.draft };
    let outcome = run_chain(source, train, heldout, &settings, &args.out, &device, &mut report);
    let outcome = outcome.map_err(|error| name_data(error, &args.data))?;
    if let Some(data) = data {
        write_card(&outcome, &data, &args.target, drafter.config.block_size)?;
    }
    report.finish(Some(outcome));
    Ok(())
}

/// Returns the settings of --config, or else the defaults, overridden by the command line.
fn settings(args: &ChainArgs) -> Result<ChainSettings> {
    let mut settings: ChainSettings = settings_file(args.config.as_deref())?;
    macro_rules! take {
        ($($field:ident),*) => {$(
            if let Some(value) = args.$field {
                settings.$field = value.into();
            }
        )*};
    }
    take!(kind, rank, top_k, bonus_only, gamma, steps, sequences, anchors, learning_rate, compute, seed);
    take!(evaluate_every, evaluate_on, checkpoint_every);
    Ok(settings)
}

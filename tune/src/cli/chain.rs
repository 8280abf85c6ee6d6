//! The command `flexdraft-tune chain`, which trains the chain of a frozen drafter.

use flexdraft_tune::Result;
use flexdraft_tune::tune::{ChainSettings, FrozenSource, run_chain};

use super::chain_args::ChainArgs;
use super::models;
use super::training::{Data, run_with_report, settings_file};
use super::training_args::{take, take_training};

/// Trains a chain as the arguments say.
pub fn chain(args: &ChainArgs) -> Result<()> {
    let settings = settings(args)?;
    settings.validate()?;
    let target = models::target(&args.run.target)?;
    let drafter = models::drafter(&args.draft, &target.config)?;
    let Data { train, heldout, file } = Data::read(&args.run.data, &target)?;
    let device = args.run.device.open()?;
    let source = FrozenSource { target: &target, drafter: &drafter, dir: &args.draft };
    run_with_report(&args.run, settings.steps, drafter.config.block_size, file, |report| {
        run_chain(source, train, heldout, &settings, &args.run.out, &device, report).map(Some)
    })
}

/// Returns the settings of --config, or else the defaults, overridden by the command line.
fn settings(args: &ChainArgs) -> Result<ChainSettings> {
    let mut settings: ChainSettings = settings_file(args.run.config.as_deref())?;
    take!(args => settings; kind, rank, top_k, bonus_only);
    take_training!(args.training => settings);
    Ok(settings)
}

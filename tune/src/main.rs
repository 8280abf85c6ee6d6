//! The `flexdraft-tune` command.

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use flexdraft_tune::pretrain::args::PretrainArgs;

/// Makes FlexDraft drafters, and small targets.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Pretrain(PretrainArgs),
}

fn main() -> ExitCode {
    let result = match Arguments::parse().command {
        Command::Pretrain(arguments) => arguments.run(),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

//! The command line of `flexdraft-tune`: one module per command, and the code that commands share.

mod args;
mod chain;
mod chain_args;
mod curves;
mod data;
mod defaults;
mod eval;
mod exit;
#[cfg(feature = "nccl")]
mod gpus;
mod headroom;
mod models;
mod output;
mod pretrain;
mod progress;
mod prompts;
mod show;
mod training;
mod training_args;
mod tune;
mod values;

use std::panic::{self, AssertUnwindSafe};
use std::process::ExitCode;
use std::sync::Mutex;

use clap::FromArgMatches;
use flexdraft_tune::Result;

use self::args::{Cli, Command};

/// The message of the latest panic, for the report of an internal error. The runner catches panics of the tokenizer's crate and
/// returns them as errors.
static PANIC: Mutex<String> = Mutex::new(String::new());

/// Runs the command that the arguments name, and returns its exit code.
pub fn main() -> ExitCode {
    let cli = Cli::from_arg_matches(&defaults::command().get_matches()).unwrap_or_else(|error| error.exit());
    panic::set_hook(Box::new(|info| {
        if let Ok(mut message) = PANIC.lock() {
            *message = info.to_string();
        }
    }));
    match panic::catch_unwind(AssertUnwindSafe(|| run(&cli.command))) {
        Ok(Ok(())) => ExitCode::SUCCESS,
        Ok(Err(error)) => {
            eprintln!("error: {}", exit::one_line(&error));
            exit::code(&error)
        }
        Err(_) => {
            let message = PANIC.lock().map(|message| message.clone()).unwrap_or_default();
            eprintln!("error: internal error, please report it: {message}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: &Command) -> Result<()> {
    match command {
        Command::Data(args) => data::data(args),
        Command::Tune(args) => tune::tune(args),
        Command::Chain(args) => chain::chain(args),
        Command::Pretrain(args) => pretrain::pretrain(args),
        Command::Show(args) => show::show(args),
        Command::Eval(args) => eval::eval(args),
        Command::Headroom(args) => headroom::headroom(args),
        Command::Curves(args) => curves::curves(args),
    }
}

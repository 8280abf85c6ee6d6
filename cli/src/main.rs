//! The command `flexdraft`, which decodes, times and inspects models.

mod args;
mod bench;
mod card;
mod chat;
mod command;
mod device;
mod error;
mod generate;
mod hub;
mod inspect;
mod models;
mod probe;
mod progress;
mod request;
mod run;
mod surface;
mod template;
mod text;

use std::io::Write;
use std::panic::{self, AssertUnwindSafe};
use std::process::ExitCode;
use std::sync::Mutex;

use anstyle::{AnsiColor, Style};
use clap::Parser;

use crate::command::{Cli, Command};
use crate::error::{CliError, Result};

/// The message of the latest panic, for the report of an internal error. The library catches panics of the tokenizer's crate and
/// returns them as errors.
static PANIC: Mutex<String> = Mutex::new(String::new());

fn main() -> ExitCode {
    let cli = Cli::parse();
    panic::set_hook(Box::new(|info| {
        if let Ok(mut message) = PANIC.lock() {
            *message = info.to_string();
        }
    }));
    match panic::catch_unwind(AssertUnwindSafe(|| run(&cli))).unwrap_or_else(|_| Err(bug())) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if error.is_closed_pipe() => ExitCode::SUCCESS,
        Err(error) => {
            let style = Style::new().bold().fg_color(Some(AnsiColor::Red.into()));
            let _ = writeln!(anstream::stderr(), "{style}error:{style:#} {}", error.one_line());
            error.exit_code()
        }
    }
}

fn run(cli: &Cli) -> Result<()> {
    match &cli.command {
        None => generate::generate(&cli.generate),
        Some(Command::Generate(args)) => generate::generate(args),
        Some(Command::Chat(args)) => chat::chat(args),
        Some(Command::Bench(args)) => bench::bench(args),
        Some(Command::Inspect(args)) => inspect::inspect(args),
    }
}

fn bug() -> CliError {
    CliError::Internal(PANIC.lock().map(|message| message.clone()).unwrap_or_default())
}

//! The command `flexdraft-tune`, which makes drafters.

mod cli;

use std::process::ExitCode;

fn main() -> ExitCode {
    cli::main()
}

//! The command line: which command runs, with which arguments.

use clap::{Parser, Subcommand};

use crate::bench::BenchArgs;
use crate::generate::GenerateArgs;
use crate::inspect::InspectArgs;

/// Lossless parallel speculative decoding (FlexDraft)
///
/// A model drafts for itself: mask tokens in its last layers prepare the next tokens while the current
/// ones are verified. The output is what the model alone would have written.
///
/// Without a command, `generate` is run; without --target, on a tiny model that comes with the
/// repository.
#[derive(Debug, Parser)]
#[command(name = "flexdraft", version, args_conflicts_with_subcommands = true)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Option<Command>,
    #[command(flatten)]
    pub generate: GenerateArgs,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Continue a prompt, show what each step committed, and compare with plain decoding
    ///
    /// The text goes to stdout as it is committed, everything else to stderr. On a terminal with
    /// colours, a change of colour is a new step, and the underlined tokens are accepted drafts.
    /// Afterwards the same request is run in every mode, which shows their speeds on this machine and
    /// that the tokens are the same.
    ///
    /// Exit code: 0; 2 for a mistake in what was asked for; 1 for any other failure, such as modes that
    /// disagree where they may not.
    Generate(GenerateArgs),
    /// Time the steps of every mode, and compare with what this machine can do
    ///
    /// Nothing is generated: a step is taken again and again after a context of noise. Tokens a second
    /// follow from the step's time and --tau. The floor is what the step reads at the speed of the
    /// memory, or what it multiplies at the speed of the arithmetic, whichever takes longer; both are
    /// measured first: on a CPU with the same threads, on a GPU by a copy and a large bf16 product.
    Bench(BenchArgs),
    /// Show what was found in a model's directory, and what is missing, unused or not finite
    Inspect(InspectArgs),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
    }
}

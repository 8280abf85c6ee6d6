//! The command line of `flexdraft`: which command runs, with which arguments.

use clap::{Parser, Subcommand};

use crate::bench::BenchArgs;
use crate::chat::ChatArgs;
use crate::generate::GenerateArgs;
use crate::inspect::InspectArgs;

/// Lossless parallel speculative decoding (FlexDraft)
///
/// A model drafts for itself: mask tokens in its last layers prepare the next tokens while the model verifies
/// the current tokens. The output is exactly what the model alone would write.
///
/// Without a command, `flexdraft` runs `generate`. Without --target, it runs the tiny model that comes with the
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
    /// Afterwards the command runs the same request in every mode. This shows the speed of each mode on this
    /// machine, and that all modes give the same tokens.
    ///
    /// Exit codes: 0 for success, 2 for a mistake in the arguments, 1 for any other failure, such as modes that
    /// disagree where they must agree.
    Generate(GenerateArgs),
    /// Hold a conversation in the terminal
    ///
    /// Each line is a message to the model. /reset starts a new conversation, /stats shows statistics of the answers, and
    /// /quit or Ctrl-D ends. Ctrl-C stops an answer. The model reads the whole conversation again for each answer.
    /// Answers go to stdout, everything else to stderr.
    Chat(ChatArgs),
    /// Time the steps of every mode, and compare with what this machine can do
    ///
    /// The command generates no text: it repeats a step after a context of noise. Tokens per second follow from
    /// the time of a step and --tau. The floor of a step is the time to read its bytes at the speed of the memory,
    /// or to multiply its operands at the speed of the arithmetic, whichever is longer. The command measures both
    /// speeds first: on a CPU with the same threads, on a GPU by a copy and a large bf16 product.
    Bench(BenchArgs),
    /// Show the contents of a model's files, and tensors that are missing, unused or not finite
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

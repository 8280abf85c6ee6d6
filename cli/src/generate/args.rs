//! The arguments of `flexdraft generate`.

use std::num::NonZeroUsize;
use std::path::PathBuf;

use clap::{ArgGroup, Args};

use crate::args::{DecodingArgs, ModelArgs, SamplingArgs, TemplateArgs, TokenIds, at_least_one};

#[derive(Debug, Args)]
#[command(group(ArgGroup::new("prompt-source").multiple(false)))]
pub struct GenerateArgs {
    #[command(flatten)]
    pub model: ModelArgs,

    /// The text to continue [default: a line of Rust for the bundled pair, otherwise none]
    #[arg(
        long,
        value_name = "TEXT",
        group = "prompt-source",
        allow_hyphen_values = true,
        help_heading = "Prompt"
    )]
    pub prompt: Option<String>,
    /// A file with the text to continue, unchanged
    #[arg(long, value_name = "FILE", group = "prompt-source", help_heading = "Prompt")]
    pub prompt_file: Option<PathBuf>,
    /// The token ids to continue, separated by commas
    #[arg(long, value_name = "1,2,3", group = "prompt-source", help_heading = "Prompt")]
    pub prompt_ids: Option<TokenIds>,
    /// Treat the text as a user's message, and render it with the model's chat template
    #[arg(long, conflicts_with = "prompt_ids", help_heading = "Prompt")]
    pub chat: bool,
    #[command(flatten)]
    pub template: TemplateArgs,

    #[command(flatten)]
    pub decoding: DecodingArgs,

    #[command(flatten)]
    pub sampling: SamplingArgs,
    /// Continue the prompt N times with consecutive seeds, starting at --seed, in batches of up to 64
    #[arg(long, value_name = "N", default_value = "1", value_parser = at_least_one, help_heading = "Sampling")]
    pub samples: NonZeroUsize,

    /// With --json, write the log-probability of each new token and of the K most likely tokens at its place
    #[arg(long, value_name = "K", requires = "json", help_heading = "Output")]
    pub logprobs: Option<usize>,
    /// Write only JSON to stdout: one object per sample, with a record of every step
    #[arg(long, help_heading = "Output")]
    pub json: bool,
    /// Skip the comparison with the other modes
    #[arg(long, help_heading = "Output")]
    pub no_compare: bool,
}

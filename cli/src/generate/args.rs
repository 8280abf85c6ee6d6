//! The arguments of `flexdraft generate`.
//!
//! Values that only the library can judge (block sizes, temperatures, token ids) are passed to it as typed, so users see
//! the library's messages.

use std::num::NonZeroUsize;
use std::path::PathBuf;

use clap::{ArgGroup, Args};
use flexdraft::decode::Confidence;
use flexdraft::sampling::SamplingParams;

use crate::args::{
    DeviceChoice, DrafterSource, Dtype, ModeChoice, ProductsChoice, RuleChoice, StrategyChoice, TokenIds,
    at_least_one,
};

#[derive(Debug, Args)]
#[command(group(ArgGroup::new("prompt-source").multiple(false)))]
pub struct GenerateArgs {
    /// The model: a Hugging Face directory with config.json and safetensors, or a GGUF file.
    ///
    /// The command maps the files into memory; they must not change while it runs. [default: the bundled pair demo/tiny,
    /// which is searched for from the current directory and from the executable upwards]
    #[arg(long, value_name = "DIR|FILE.gguf", help_heading = "Model")]
    pub target: Option<PathBuf>,
    /// The drafter: a directory, or `random:N` for a random drafter of N layers that fits the target.
    ///
    /// A random drafter has blocks of 16 tokens, or of --block-size tokens. Without a drafter only `--mode ar` runs.
    /// [default: the bundled drafter for the bundled target, otherwise none]
    #[arg(long, value_name = "DIR|random:N", help_heading = "Model")]
    pub draft: Option<DrafterSource>,
    /// Device that runs the model; `auto` takes the first GPU that passes a self-test, or else the CPU
    #[arg(long, value_name = "auto|cpu|cuda:N", default_value = "auto", help_heading = "Model")]
    pub device: DeviceChoice,
    /// Algorithms for matrix products on a GPU; `any` is for comparing speed, and is not lossless
    #[arg(long, value_enum, default_value_t, value_name = "ALGORITHMS", help_heading = "Model")]
    pub products: ProductsChoice,
    /// Rounding of activations and KV cache on the CPU; bf16 rounds as a GPU does
    #[arg(long, value_enum, default_value_t, help_heading = "Model")]
    pub dtype: Dtype,
    /// Number of CPU threads; 0 takes one per core. No result depends on the number
    #[arg(long, value_name = "N", default_value_t = 0, help_heading = "Model")]
    pub threads: usize,

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

    /// When to draft: `parallel` with verification, `sequential` after it, `ar` never, or `auto`: whichever measures
    /// fastest [default: auto; parallel for the bundled pair]
    #[arg(long, value_enum, help_heading = "Decoding")]
    pub mode: Option<ModeChoice>,
    /// How to accept drafts if the temperature is above 0
    #[arg(long, value_enum, default_value_t, help_heading = "Decoding")]
    pub rule: RuleChoice,
    /// Block size: slots per drafted block, up to the drafter's own block size [default: the drafter's own]
    #[arg(long, value_name = "S", help_heading = "Decoding")]
    pub block_size: Option<usize>,
    /// Verify a draft only as far as the drafter's confidence reaches this value; 0 verifies the whole draft
    #[arg(
        long,
        value_name = "T",
        default_value_t = 0.01,
        allow_negative_numbers = true,
        help_heading = "Decoding"
    )]
    pub confidence_threshold: f32,
    /// Number that is compared with --confidence-threshold
    #[arg(long, value_enum, default_value_t, value_name = "STRATEGY", help_heading = "Decoding")]
    pub confidence_strategy: StrategyChoice,
    /// Largest number of new tokens; the model's context limits it too
    #[arg(long, value_name = "N", default_value_t = 256, help_heading = "Decoding")]
    pub max_new_tokens: usize,
    /// Positions for prompt and output together, in place of the model's own limit
    #[arg(long, value_name = "N", value_parser = at_least_one, help_heading = "Decoding")]
    pub context: Option<NonZeroUsize>,
    /// Continue after an end-of-sequence token
    #[arg(long, help_heading = "Decoding")]
    pub ignore_eos: bool,

    /// Sampling temperature; 0 always takes the most probable token
    #[arg(
        long,
        value_name = "T",
        default_value_t = 0.0,
        allow_negative_numbers = true,
        help_heading = "Sampling"
    )]
    pub temperature: f32,
    /// Sample only from the K most probable tokens; 0 means all tokens
    #[arg(long, value_name = "K", default_value_t = 0, help_heading = "Sampling")]
    pub top_k: usize,
    /// Sample only from the most probable tokens that together reach this probability; 1 means all tokens
    #[arg(
        long,
        value_name = "P",
        default_value_t = 1.0,
        allow_negative_numbers = true,
        help_heading = "Sampling"
    )]
    pub top_p: f32,
    /// Sample only from tokens with at least this fraction of the largest probability; 0 means all tokens
    #[arg(
        long,
        value_name = "P",
        default_value_t = 0.0,
        allow_negative_numbers = true,
        help_heading = "Sampling"
    )]
    pub min_p: f32,
    /// Seed of all random numbers
    #[arg(long, value_name = "N", default_value_t = 0, help_heading = "Sampling")]
    pub seed: u64,
    /// Continue the prompt N times with consecutive seeds, starting at --seed, in batches of up to 64
    #[arg(long, value_name = "N", default_value = "1", value_parser = at_least_one, help_heading = "Sampling")]
    pub samples: NonZeroUsize,

    /// Write only JSON to stdout: one object per sample, with a record of every step
    #[arg(long, help_heading = "Output")]
    pub json: bool,
    /// Skip the comparison with the other modes
    #[arg(long, help_heading = "Output")]
    pub no_compare: bool,
}

impl GenerateArgs {
    /// Returns the sampling parameters, not yet validated.
    pub fn sampling(&self) -> SamplingParams {
        SamplingParams {
            temperature: self.temperature,
            top_k: self.top_k,
            top_p: self.top_p,
            min_p: self.min_p,
        }
    }

    /// Returns the confidence settings that decide the verify length, not yet validated.
    pub fn confidence(&self) -> Confidence {
        Confidence { threshold: self.confidence_threshold, strategy: self.confidence_strategy.into() }
    }
}

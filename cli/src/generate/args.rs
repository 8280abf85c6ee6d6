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
    /// Its files are memory-mapped and must not change meanwhile. Default: the bundled pair,
    /// demo/tiny, found from the current directory or the executable.
    #[arg(long, value_name = "DIR|FILE.gguf", help_heading = "Model")]
    pub target: Option<PathBuf>,
    /// The drafter: a directory, or `random:N` for a random one of N layers that fits the target.
    ///
    /// A random drafter has blocks of 16, or of --block-size. Without a drafter only `--mode ar` runs.
    #[arg(long, value_name = "DIR|random:N", help_heading = "Model")]
    pub draft: Option<DrafterSource>,
    /// Where to run; `auto` is the first GPU, if it passes a test, or the CPU
    #[arg(long, value_name = "auto|cpu|cuda:N", default_value = "auto", help_heading = "Model")]
    pub device: DeviceChoice,
    /// Which algorithms multiply matrices on a GPU; `any` is for comparisons of speed, and not lossless
    #[arg(long, value_enum, default_value_t, value_name = "ALGORITHMS", help_heading = "Model")]
    pub products: ProductsChoice,
    /// How activations and the KV cache are rounded; bf16 as a GPU would
    #[arg(long, value_enum, default_value_t, help_heading = "Model")]
    pub dtype: Dtype,
    /// Threads of the CPU device; 0 is one a core. No result depends on them
    #[arg(long, value_name = "N", default_value_t = 0, help_heading = "Model")]
    pub threads: usize,

    /// The text to continue
    #[arg(
        long,
        value_name = "TEXT",
        group = "prompt-source",
        allow_hyphen_values = true,
        help_heading = "Prompt"
    )]
    pub prompt: Option<String>,
    /// A file with the text to continue, taken as it is
    #[arg(long, value_name = "FILE", group = "prompt-source", help_heading = "Prompt")]
    pub prompt_file: Option<PathBuf>,
    /// The token ids to continue, separated by commas
    #[arg(long, value_name = "1,2,3", group = "prompt-source", help_heading = "Prompt")]
    pub prompt_ids: Option<TokenIds>,
    /// Take the text as a user's message and put it through the model's chat template
    #[arg(long, conflicts_with = "prompt_ids", help_heading = "Prompt")]
    pub chat: bool,

    /// Who drafts when: with the verification, after it, never, or (`auto`, the default) as measuring finds to be
    /// fastest; the bundled pair shows `parallel` unless asked
    #[arg(long, value_enum, help_heading = "Decoding")]
    pub mode: Option<ModeChoice>,
    /// How drafts are accepted above temperature 0
    #[arg(long, value_enum, default_value_t, help_heading = "Decoding")]
    pub rule: RuleChoice,
    /// Tokens in a block, up to the drafter's own. Default: the drafter's own
    #[arg(long, value_name = "S", help_heading = "Decoding")]
    pub block_size: Option<usize>,
    /// Verify a draft only as far as the drafter is this confident; 0 verifies it whole
    #[arg(
        long,
        value_name = "T",
        default_value_t = 0.01,
        allow_negative_numbers = true,
        help_heading = "Decoding"
    )]
    pub confidence_threshold: f32,
    /// What is compared with the threshold
    #[arg(long, value_enum, default_value_t, value_name = "STRATEGY", help_heading = "Decoding")]
    pub confidence_strategy: StrategyChoice,
    /// Stop after this many tokens; the model's context bounds them too
    #[arg(long, value_name = "N", default_value_t = 256, help_heading = "Decoding")]
    pub max_new_tokens: usize,
    /// Go on after an end-of-sequence token
    #[arg(long, help_heading = "Decoding")]
    pub ignore_eos: bool,

    /// 0 always takes the most probable token
    #[arg(
        long,
        value_name = "T",
        default_value_t = 0.0,
        allow_negative_numbers = true,
        help_heading = "Sampling"
    )]
    pub temperature: f32,
    /// Sample from the K most probable tokens; 0 is off
    #[arg(long, value_name = "K", default_value_t = 0, help_heading = "Sampling")]
    pub top_k: usize,
    /// Sample from the most probable tokens that together have this probability; 1 is off
    #[arg(
        long,
        value_name = "P",
        default_value_t = 1.0,
        allow_negative_numbers = true,
        help_heading = "Sampling"
    )]
    pub top_p: f32,
    /// Sample from tokens at least this probable relative to the most probable one; 0 is off
    #[arg(
        long,
        value_name = "P",
        default_value_t = 0.0,
        allow_negative_numbers = true,
        help_heading = "Sampling"
    )]
    pub min_p: f32,
    /// Key of all random numbers
    #[arg(long, value_name = "N", default_value_t = 0, help_heading = "Sampling")]
    pub seed: u64,
    /// Continue the prompt N times, with seeds from --seed on, in batches of up to 64
    #[arg(long, value_name = "N", default_value = "1", value_parser = at_least_one, help_heading = "Sampling")]
    pub samples: NonZeroUsize,

    /// Write one JSON object a sample to stdout, with a record of every step, and nothing else
    #[arg(long, help_heading = "Output")]
    pub json: bool,
    /// Leave out the comparison with the other modes
    #[arg(long, help_heading = "Output")]
    pub no_compare: bool,
}

impl GenerateArgs {
    /// Returns temperature and truncation, not yet validated.
    pub fn sampling(&self) -> SamplingParams {
        SamplingParams {
            temperature: self.temperature,
            top_k: self.top_k,
            top_p: self.top_p,
            min_p: self.min_p,
        }
    }

    /// Returns the settings that decide the verify length, not yet validated.
    pub fn confidence(&self) -> Confidence {
        Confidence { threshold: self.confidence_threshold, strategy: self.confidence_strategy.into() }
    }
}

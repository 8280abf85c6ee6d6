//! The command line.
//!
//! What only the library can judge (block sizes, temperatures, token ids) is passed to it as typed, so that
//! its messages are the ones that are seen.

use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::str::FromStr;

use clap::{ArgGroup, Args, Parser, Subcommand, ValueEnum};
use flexdraft::acceptance::Rule;
use flexdraft::decode::{Auto, Confidence, ConfidenceStrategy, Mode, Policy};
use flexdraft::device::gpu::ProductAlgorithms;
use flexdraft::device::{Device, Precision};
use flexdraft::sampling::SamplingParams;

use crate::bench::BenchArgs;

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
    /// Temperature and truncation, not validated.
    pub fn sampling(&self) -> SamplingParams {
        SamplingParams {
            temperature: self.temperature,
            top_k: self.top_k,
            top_p: self.top_p,
            min_p: self.min_p,
        }
    }

    /// What decides the verify length, not validated.
    pub fn confidence(&self) -> Confidence {
        Confidence { threshold: self.confidence_threshold, strategy: self.confidence_strategy.into() }
    }
}

fn at_least_one(text: &str) -> Result<NonZeroUsize, String> {
    let count = text.parse().map_err(|_| "not a number of samples")?;
    Ok(NonZeroUsize::new(count).ok_or("it must be at least 1")?)
}

#[derive(Debug, Args)]
pub struct InspectArgs {
    /// The model: a Hugging Face directory or a GGUF file
    #[arg(long, value_name = "DIR|FILE.gguf")]
    pub target: PathBuf,
    /// A drafter for it
    #[arg(long, value_name = "DIR")]
    pub draft: Option<PathBuf>,
}

/// Where a drafter comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DrafterSource {
    Directory(PathBuf),
    Random { layers: usize },
}

impl FromStr for DrafterSource {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.strip_prefix("random:") {
            None => Ok(Self::Directory(text.into())),
            Some(layers) => match layers.parse() {
                Ok(layers) => Ok(Self::Random { layers }),
                Err(_) => Err(format!("`{layers}` is not a number of layers")),
            },
        }
    }
}

/// Where the model runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeviceChoice {
    Auto,
    Cpu,
    Cuda(usize),
}

impl FromStr for DeviceChoice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match (text, text.strip_prefix("cuda:").map(str::parse)) {
            ("auto", _) => Ok(Self::Auto),
            ("cpu", _) => Ok(Self::Cpu),
            (_, Some(Ok(ordinal))) => Ok(Self::Cuda(ordinal)),
            _ => Err("there is no such device; known are auto, cpu and cuda:N".into()),
        }
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum ProductsChoice {
    /// Algorithms that give a row the same bits whatever rows are beside it
    #[default]
    Invariant,
    /// The algorithm that cuBLASLt estimates to be the fastest for each number of rows
    Any,
}

impl From<ProductsChoice> for ProductAlgorithms {
    fn from(choice: ProductsChoice) -> Self {
        match choice {
            ProductsChoice::Invariant => Self::RowInvariant,
            ProductsChoice::Any => Self::Any,
        }
    }
}

/// What results of a device are labelled with, if a row's result depends there on the rows beside it.
pub const NOT_LOSSLESS: &str = "not lossless (--products any)";

/// The label of a device's results, if they need one.
pub fn label(device: &impl Device) -> Option<&'static str> {
    (!device.is_row_invariant()).then_some(NOT_LOSSLESS)
}

/// Token ids in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenIds(pub Vec<u32>);

impl FromStr for TokenIds {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text.trim().is_empty() {
            return Ok(Self(Vec::new()));
        }
        let id = |id: &str| id.trim().parse().map_err(|_| format!("`{id}` is not a token id"));
        text.split(',').map(id).collect::<Result<_, _>>().map(Self)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ModeChoice {
    Auto,
    Parallel,
    Sequential,
    Ar,
}

impl ModeChoice {
    /// The word that chooses it.
    pub fn name(self) -> &'static str {
        self.policy().name()
    }

    pub fn policy(self) -> Box<dyn Policy> {
        match self {
            Self::Auto => Box::new(Auto::default()),
            Self::Parallel => Box::new(Mode::Parallel),
            Self::Sequential => Box::new(Mode::Sequential),
            Self::Ar => Box::new(Mode::Autoregressive),
        }
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum RuleChoice {
    /// Token by token: min(1, p/q), then the residual
    #[default]
    Rejection,
    /// The whole block at once: never accepts fewer on average
    Block,
    /// While the target's own draw is the same: the tokens are those of `--mode ar` with this seed
    Match,
}

impl RuleChoice {
    /// As the command line spells it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Rejection => "rejection",
            Self::Block => "block",
            Self::Match => "match",
        }
    }
}

impl From<RuleChoice> for Rule {
    fn from(choice: RuleChoice) -> Self {
        match choice {
            RuleChoice::Rejection => Self::Rejection,
            RuleChoice::Block => Self::Block,
            RuleChoice::Match => Self::Match,
        }
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum StrategyChoice {
    /// The product of the confidences so far
    #[default]
    CumulativeProduct,
    /// Each confidence by itself
    MinConfidence,
}

impl From<StrategyChoice> for ConfidenceStrategy {
    fn from(choice: StrategyChoice) -> Self {
        match choice {
            StrategyChoice::CumulativeProduct => Self::CumulativeProduct,
            StrategyChoice::MinConfidence => Self::MinConfidence,
        }
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Dtype {
    #[default]
    F32,
    Bf16,
}

impl From<Dtype> for Precision {
    fn from(dtype: Dtype) -> Self {
        match dtype {
            Dtype::F32 => Self::F32,
            Dtype::Bf16 => Self::Bf16,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
    }

    #[test]
    fn drafters_devices_and_ids() {
        assert_eq!("random:3".parse(), Ok(DrafterSource::Random { layers: 3 }));
        assert_eq!("random".parse(), Ok(DrafterSource::Directory("random".into())));
        assert!("random:x".parse::<DrafterSource>().is_err());
        assert_eq!("cuda:1".parse(), Ok(DeviceChoice::Cuda(1)));
        assert!("cuda".parse::<DeviceChoice>().is_err());
        assert_eq!("1, 2,3".parse(), Ok(TokenIds(vec![1, 2, 3])));
        assert_eq!("".parse(), Ok(TokenIds(vec![])));
        assert!("1,,2".parse::<TokenIds>().is_err());
    }
}

//! The arguments of `flexdraft bench`.

use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::str::FromStr;

use clap::{Args, ValueEnum};

use super::synthetic::Synthetic;
use crate::args::{DeviceChoice, DrafterSource, Dtype, ProductsChoice, WeightsChoice, at_least_one};

/// A way to launch the kernels of a step on a GPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Launches {
    /// Every kernel individually
    Each,
    /// Repeated steps as CUDA graphs
    Graphs,
    /// As `graphs`; a kernel may begin before the previous kernel has ended
    Dependent,
}

impl Launches {
    pub const ALL: [Self; 3] = [Self::Each, Self::Graphs, Self::Dependent];

    pub fn name(self) -> &'static str {
        match self {
            Self::Each => "each",
            Self::Graphs => "graphs",
            Self::Dependent => "dependent",
        }
    }
}

#[derive(Debug, Args)]
pub struct BenchArgs {
    /// The model: a Hugging Face directory with config.json and safetensors, or a GGUF file [default: the bundled pair]
    #[arg(long, value_name = "DIR|FILE.gguf", help_heading = "Model")]
    pub target: Option<PathBuf>,
    /// The drafter: a directory, or `random:N` for a random drafter of N layers that fits the target
    #[arg(long, value_name = "DIR|random:N", help_heading = "Model")]
    pub draft: Option<DrafterSource>,
    /// Time a model and drafter with random weights of this shape, instead of --target and --draft
    #[arg(long, value_enum, conflicts_with_all = ["target", "draft"], help_heading = "Model")]
    pub synthetic: Option<Synthetic>,
    /// Device that runs the steps; `auto` takes the CPU
    #[arg(long, value_name = "auto|cpu|cuda:N", default_value = "auto", help_heading = "Model")]
    pub device: DeviceChoice,
    /// Algorithms for matrix products on a GPU; `any` is for comparing speed, and is not lossless
    #[arg(long, value_enum, default_value_t, value_name = "ALGORITHMS", help_heading = "Model")]
    pub products: ProductsChoice,
    /// Ways to launch the kernels of a GPU; each way is timed [default: all three]
    #[arg(long, value_enum, value_delimiter = ',', value_name = "WAY,WAY,…", help_heading = "Model")]
    pub launches: Vec<Launches>,
    /// Rounding of activations and KV cache on the CPU; a GPU always uses bf16
    #[arg(long, value_enum, default_value_t, help_heading = "Model")]
    pub dtype: Dtype,
    /// Quantised weights of a GGUF file: keep them, or convert them to bf16 [default: keep on the CPU, bf16 on a GPU]
    #[arg(long, value_enum, value_name = "FORMAT", help_heading = "Model")]
    pub weights: Option<WeightsChoice>,
    /// Number of CPU threads; 0 takes one per core
    #[arg(long, value_name = "N", default_value_t = 0, help_heading = "Model")]
    pub threads: usize,

    /// Numbers of sequences per step; each number is timed
    #[arg(long, value_name = "B,B,…", value_delimiter = ',', default_value = "1", value_parser = one_or_more, help_heading = "Steps")]
    pub batch: Vec<usize>,
    /// Numbers of tokens that each sequence has in the KV cache before the step
    #[arg(long, value_name = "N,N,…", value_delimiter = ',', default_value = "128", help_heading = "Steps")]
    pub context: Vec<usize>,
    /// Block size S, up to the drafter's own block size [default: the drafter's own]
    #[arg(long, value_name = "S", help_heading = "Steps")]
    pub block_size: Option<usize>,
    /// Numbers V of draft tokens that a step verifies per sequence, at most S - 1
    #[arg(long, value_name = "V,V,…", value_delimiter = ',', default_value = "4", help_heading = "Steps")]
    pub verify_len: Vec<usize>,
    /// Numbers of mask groups in a parallel step: `all` V + 1, or the K groups for the longest accepted lengths
    #[arg(
        long,
        value_name = "all|K,K,…",
        value_delimiter = ',',
        default_value = "all",
        help_heading = "Steps"
    )]
    pub groups: Vec<Groups>,
    /// Kinds of steps to time [default: all]
    #[arg(long, value_enum, value_name = "MODE,…", value_delimiter = ',', help_heading = "Steps")]
    pub mode: Vec<StepMode>,
    /// Acceptance length from which throughput is computed: tokens per step with drafts, at most V + 1
    #[arg(long, value_name = "TAU", default_value_t = 3.0, help_heading = "Steps")]
    pub tau: f64,

    /// Write comma-separated values in place of the report: step times over 1 to 33 candidate rows, and over the number of
    /// mask groups for each of --verify-len
    #[arg(long, conflicts_with_all = ["json", "mode", "groups", "tau"], help_heading = "Output")]
    pub curves: bool,
    /// Omit the expected times, for which the command first measures some steps of an engine
    #[arg(long, help_heading = "Output")]
    pub no_probe: bool,
    /// Use less memory and fewer steps, for a quick overview
    #[arg(long, help_heading = "Output")]
    pub quick: bool,
    /// Write JSON lines to stdout as soon as they are known: one for the machine, then one per step
    #[arg(long, help_heading = "Output")]
    pub json: bool,
}

fn one_or_more(text: &str) -> Result<usize, String> {
    at_least_one(text).map(NonZeroUsize::get)
}

/// Number of mask groups in a parallel step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Groups {
    /// One group for every accepted length.
    All,
    /// The given number of groups, for the longest accepted lengths.
    Longest(usize),
}

impl FromStr for Groups {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let longest = || one_or_more(text).map_err(|error| error.replace("a whole", "`all` or a whole"));
        if text == "all" { Ok(Self::All) } else { longest().map(Self::Longest) }
    }
}

/// The kind of step that is timed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum StepMode {
    /// Reads a prompt, up to the number of tokens that an engine reads per step
    Prefill,
    /// Decodes one token per sequence
    Ar,
    /// Verifies, then drafts
    Sequential,
    /// Verifies and drafts in one pass
    Parallel,
}

impl StepMode {
    /// Returns the step kind's name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Prefill => "prefill",
            Self::Ar => "ar",
            Self::Sequential => "sequential",
            Self::Parallel => "parallel",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups() {
        assert_eq!("all".parse(), Ok(Groups::All));
        assert_eq!("4".parse(), Ok(Groups::Longest(4)));
        assert_eq!("0".parse::<Groups>(), Err("expected `all` or a whole number of at least 1".into()));
        assert!("four".parse::<Groups>().is_err());
    }
}

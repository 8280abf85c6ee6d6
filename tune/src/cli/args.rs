//! The arguments of the command line.

use std::path::PathBuf;
use std::str::FromStr;

use candle_core::Device;
use clap::{ArgGroup, Args, Parser, Subcommand, ValueEnum};
use flexdraft::acceptance::Rule;
use flexdraft::decode::Mode;
use flexdraft::device::Precision;
use flexdraft_tune::TuneError;
use flexdraft_tune::tune::Compute;

/// Makes FlexDraft drafters
///
/// A target writes text (`data`), and its drafter learns to guess what the target writes next. No target is
/// ever changed.
///
/// Exit code: 0; 2 for a mistake in what was asked for; 1 for any other failure.
#[derive(Debug, Parser)]
#[command(name = "flexdraft-tune", version)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Let a target write the text that its drafter learns from
    ///
    /// Prompts come from a file, are windows of a text, or are written by the target itself, which is what
    /// happens unless asked otherwise (Magpie, arXiv 2406.08464). --out gets train.jsonl and heldout.jsonl,
    /// token ids of a prompt and its response a line, and data.json with what they were made with. A run that
    /// was stopped is continued by the same command; a larger --count adds to what is there.
    Data(DataArgs),
    /// Tune a drafter on transcripts
    ///
    /// Attention Tuning and Bonus-guided Calibration. --out gets the drafter with the best acceptance length on
    /// the held-out transcripts (drafter/), the settings, the metrics and a checkpoint; a run that was stopped
    /// is continued by the same command.
    Tune(TuneArgs),
    /// Make a small target from text
    ///
    /// A byte-level BPE tokenizer, and a model of the Qwen3 architecture trained from nothing. --out is the model,
    /// as of the latest checkpoint; run/ in it holds the checkpoint, the settings and the metrics. A run that was
    /// stopped is continued by the same command.
    Pretrain(PretrainArgs),
    /// Print transcripts as text
    Show(ShowArgs),
    /// Measure a drafter by generating with it
    ///
    /// The acceptance length τ, target passes per token, acceptance of each slot, and how far the drafter's
    /// confidences are from how often it is right; with --transcripts, τ by walking through them too. Greedy tokens,
    /// and the tokens of `--rule match`, are compared with plain decoding: a difference is an error.
    Eval(EvalArgs),
    /// Draw the curves of runs as SVG: loss, and held-out acceptance length
    Curves(CurvesArgs),
}

/// A target and where it runs.
#[derive(Debug, Args)]
pub struct TargetArgs {
    /// The target: a Hugging Face directory with config.json and safetensors, or a GGUF file
    ///
    /// Its files are memory-mapped and must not change meanwhile.
    #[arg(long, value_name = "DIR|FILE.gguf", help_heading = "Model")]
    pub target: PathBuf,
    /// How activations and the KV cache are rounded; bf16 as a GPU would
    #[arg(long, value_enum, default_value_t, help_heading = "Model")]
    pub dtype: Dtype,
    /// Threads; 0 is one a core. No result depends on them
    #[arg(long, value_name = "N", default_value_t = 0, help_heading = "Model")]
    pub threads: usize,
}

#[derive(Debug, Args)]
#[command(group(ArgGroup::new("source").multiple(false)))]
pub struct DataArgs {
    #[command(flatten)]
    pub target: TargetArgs,
    /// The folder for the transcripts
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
    /// Transcripts in all. Default: 1000, or one per prompt of --prompts
    #[arg(long, value_name = "N")]
    pub count: Option<usize>,
    /// Share of the prompts that is held out, for evaluation
    #[arg(long, value_name = "SHARE", default_value_t = 0.05)]
    pub held_out: f64,
    /// Key of all random numbers
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub seed: u64,
    /// Sequences in a step at most. No result depends on it
    #[arg(long, value_name = "N", default_value_t = 128)]
    pub batch: usize,

    /// A file of prompts: JSON lines with a `prompt` each (.jsonl), or plain lines
    #[arg(long, value_name = "FILE", group = "source", help_heading = "Prompts")]
    pub prompts: Option<PathBuf>,
    /// Take the prompts of --prompts as they are, without the target's chat template
    #[arg(long, requires = "prompts", help_heading = "Prompts")]
    pub raw: bool,
    /// A text: its prompts are windows at random places
    ///
    /// Windows may overlap, those held out included: for a held-out set that shares no text with the other,
    /// use a file of its own and --held-out 1.
    #[arg(long = "continue", value_name = "FILE", group = "source", help_heading = "Prompts")]
    pub text: Option<PathBuf>,
    /// Tokens of a window of --continue
    #[arg(long, value_name = "N", default_value_t = 32, help_heading = "Prompts")]
    pub window: usize,
    /// Take the responses too from the text of --continue, for comparison: the target writes nothing
    ///
    /// Windows overlap, so --held-out has to be 0 or 1.
    #[arg(
        long,
        requires = "text",
        conflicts_with_all = ["temperature", "dtype", "threads", "batch"],
        help_heading = "Prompts"
    )]
    pub as_written: bool,
    /// Tokens of a self-prompted message at least
    #[arg(long, value_name = "N", default_value_t = 4, help_heading = "Prompts")]
    pub min_message: usize,
    /// Tokens of a self-prompted message at most; longer ones are dropped
    #[arg(long, value_name = "N", default_value_t = 128, help_heading = "Prompts")]
    pub max_message: usize,

    /// Tokens of a response at most
    #[arg(long, value_name = "N", default_value_t = 256, help_heading = "Responses")]
    pub max_response: usize,
    /// Of the responses; 0 always takes the most probable token
    #[arg(
        long,
        value_name = "T",
        default_value_t = 0.0,
        allow_negative_numbers = true,
        help_heading = "Responses"
    )]
    pub temperature: f32,
}

#[derive(Debug, Args)]
pub struct TuneArgs {
    /// The target: a Hugging Face directory with config.json and safetensors, or a GGUF file
    #[arg(long, value_name = "DIR|FILE.gguf")]
    pub target: PathBuf,
    /// The folder of transcripts that `data` made
    #[arg(long, value_name = "DIR")]
    pub data: PathBuf,
    /// The folder for the drafter
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
    /// Where to learn: `cpu`, or `cuda:N` in a build with the feature `cuda`
    #[arg(long, value_name = "DEVICE", default_value = "cpu")]
    pub device: TensorDevice,
    /// Tune on the first N GPUs, a process each, with their gradients summed by NCCL; --sequences is divided among
    /// them. Instead of --device
    #[cfg(feature = "nccl")]
    #[arg(long, value_name = "N", conflicts_with = "device")]
    pub gpus: Option<std::num::NonZeroUsize>,
    /// Settings as JSON, such as the settings.json of another run; the options below override them
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,

    /// N: the target's last layers, which get projectors for mask rows
    #[arg(long, value_name = "N", help_heading = "Drafter")]
    pub tail_layers: Option<usize>,
    /// S: slots of a block, the bonus token's included
    #[arg(long, value_name = "S", help_heading = "Drafter")]
    pub block_size: Option<usize>,
    /// The calibrator's rank; 0 for none
    #[arg(long, value_name = "R", help_heading = "Drafter")]
    pub rank: Option<usize>,
    /// Draft only the N most frequent ids of the transcripts; 0 drafts the whole vocabulary
    #[arg(long, value_name = "N", help_heading = "Drafter")]
    pub shortlist: Option<usize>,
    /// Train norms and MLPs of the tail too, for comparison: no drafter is exported
    #[arg(long, value_name = "BOOL", help_heading = "Drafter")]
    pub whole_tail: Option<bool>,

    /// Steps in all
    #[arg(long, value_name = "N", help_heading = "Training")]
    pub steps: Option<usize>,
    /// Transcripts of a step
    #[arg(long, value_name = "N", help_heading = "Training")]
    pub sequences: Option<usize>,
    /// Anchors of a transcript, at most
    #[arg(long, value_name = "N", help_heading = "Training")]
    pub anchors: Option<usize>,
    /// Peak learning rate
    #[arg(long, value_name = "RATE", help_heading = "Training")]
    pub learning_rate: Option<f64>,
    /// What operands of matrix products are rounded to; weights stay f32 between steps
    #[arg(long, value_enum, help_heading = "Training")]
    pub compute: Option<Dtype>,
    /// The calibrator's learning rate, as a multiple of the other one
    #[arg(long, value_name = "FACTOR", help_heading = "Training")]
    pub calibrator_rate: Option<f64>,
    /// Slot j weighs exp(−(j − 1) / γ)
    #[arg(long, value_name = "γ", help_heading = "Training")]
    pub gamma: Option<f64>,
    /// Decay of the mean of weights that is evaluated and exported; 0 for the weights themselves
    #[arg(long, value_name = "DECAY", help_heading = "Training")]
    pub ema: Option<f64>,
    /// Of the first weights, the order of transcripts and the anchors
    #[arg(long, value_name = "N", help_heading = "Training")]
    pub seed: Option<u64>,
    /// Steps between evaluations
    #[arg(long, value_name = "N", help_heading = "Training")]
    pub evaluate_every: Option<usize>,
    /// Held-out transcripts of an evaluation
    #[arg(long, value_name = "N", help_heading = "Training")]
    pub evaluate_on: Option<usize>,
    /// Steps between checkpoints
    #[arg(long, value_name = "N", help_heading = "Training")]
    pub checkpoint_every: Option<usize>,
}

#[derive(Debug, Args)]
pub struct PretrainArgs {
    /// The text: a file, or a folder whose files are a document each
    #[arg(long, value_name = "PATH")]
    pub text: PathBuf,
    /// Text to measure the loss on, which is not learnt
    #[arg(long, value_name = "PATH")]
    pub heldout: Option<PathBuf>,
    /// The folder for the model
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
    /// Settings as JSON, such as the run/settings.json of another run; the options below override them
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,

    /// Ids of the tokenizer, at most
    #[arg(long, value_name = "V", help_heading = "Model")]
    pub vocab_size: Option<usize>,
    /// Hidden size
    #[arg(long, value_name = "H", help_heading = "Model")]
    pub hidden_size: Option<usize>,
    /// Decoder layers
    #[arg(long, value_name = "L", help_heading = "Model")]
    pub layers: Option<usize>,
    /// Query heads
    #[arg(long, value_name = "N", help_heading = "Model")]
    pub q_heads: Option<usize>,
    /// KV heads
    #[arg(long, value_name = "N", help_heading = "Model")]
    pub kv_heads: Option<usize>,
    /// Elements of a head
    #[arg(long, value_name = "N", help_heading = "Model")]
    pub head_dim: Option<usize>,
    /// Columns of the MLP
    #[arg(long, value_name = "N", help_heading = "Model")]
    pub intermediate_size: Option<usize>,
    /// Positions that the model is trained for
    #[arg(long, value_name = "N", help_heading = "Model")]
    pub context_len: Option<usize>,

    /// Steps in all
    #[arg(long, value_name = "N", help_heading = "Training")]
    pub steps: Option<usize>,
    /// Tokens of a step
    #[arg(long, value_name = "N", help_heading = "Training")]
    pub step_tokens: Option<usize>,
    /// Tokens of a window of text
    #[arg(long, value_name = "N", help_heading = "Training")]
    pub window: Option<usize>,
    /// One step in N has windows of the whole context instead
    #[arg(long, value_name = "N", help_heading = "Training")]
    pub long_window_every: Option<usize>,
    /// Peak learning rate
    #[arg(long, value_name = "RATE", help_heading = "Training")]
    pub learning_rate: Option<f64>,
    /// Of the first weights and the windows' places
    #[arg(long, value_name = "N", help_heading = "Training")]
    pub seed: Option<u64>,
    /// Steps between measurements on the held-out text
    #[arg(long, value_name = "N", help_heading = "Training")]
    pub evaluate_every: Option<usize>,
    /// Steps between checkpoints
    #[arg(long, value_name = "N", help_heading = "Training")]
    pub checkpoint_every: Option<usize>,
}

#[derive(Debug, Args)]
pub struct ShowArgs {
    /// The target that wrote them, for its tokenizer
    #[arg(long, value_name = "DIR|FILE.gguf")]
    pub target: PathBuf,
    /// How many
    #[arg(long, value_name = "N", default_value_t = 10)]
    pub count: usize,
    /// How many to leave out before
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub skip: usize,
    /// A file of transcripts
    #[arg(value_name = "FILE.jsonl")]
    pub transcripts: PathBuf,
}

#[derive(Debug, Args)]
#[command(group(ArgGroup::new("unseen").multiple(false).required(true)))]
pub struct EvalArgs {
    #[command(flatten)]
    pub target: TargetArgs,
    /// The drafter's directory
    #[arg(long, value_name = "DIR", help_heading = "Model")]
    pub draft: PathBuf,

    /// A file of prompts: JSON lines with a `prompt` each (.jsonl), or plain lines
    #[arg(long, value_name = "FILE", group = "unseen", help_heading = "Prompts")]
    pub prompts: Option<PathBuf>,
    /// Take the prompts of --prompts as they are, without the target's chat template
    #[arg(long, requires = "prompts", help_heading = "Prompts")]
    pub raw: bool,
    /// A file of transcripts: their prompts are decoded, and at temperature 0 their responses are walked too
    ///
    /// The walk finds τ as tuning does for its held-out transcripts: it drafts at every position of a response, as
    /// far as --max-new-tokens, and steps through it as decoding would. Of several transcripts with one prompt the first
    /// counts. One that greedy decoding does not write is left out, and counted.
    #[arg(long, value_name = "FILE.jsonl", group = "unseen", help_heading = "Prompts")]
    pub transcripts: Option<PathBuf>,
    /// The first N prompts only
    #[arg(long, value_name = "N", help_heading = "Prompts")]
    pub limit: Option<usize>,

    /// When the next block is drafted; the drafts are the same
    #[arg(long, value_enum, default_value_t, help_heading = "Decoding")]
    pub mode: DraftingMode,
    /// Tokens a prompt at most
    #[arg(long, value_name = "N", default_value_t = 128, help_heading = "Decoding")]
    pub max_new_tokens: usize,
    /// 0 always takes the most probable token
    #[arg(
        long,
        value_name = "T",
        default_value_t = 0.0,
        allow_negative_numbers = true,
        help_heading = "Decoding"
    )]
    pub temperature: f32,
    /// How drafts are accepted above temperature 0
    #[arg(long, value_enum, default_value_t, help_heading = "Decoding")]
    pub rule: RuleChoice,
    /// Verify a draft only as far as the product of its confidences is at least this; 0 verifies it whole
    #[arg(
        long,
        value_name = "T",
        default_value_t = 0.01,
        allow_negative_numbers = true,
        help_heading = "Decoding"
    )]
    pub confidence_threshold: f32,
    /// Key of all random numbers
    #[arg(long, value_name = "N", default_value_t = 0, help_heading = "Decoding")]
    pub seed: u64,
    /// Prompts in a step at most. No result depends on it
    #[arg(long, value_name = "N", default_value_t = 16, help_heading = "Decoding")]
    pub batch: usize,

    /// Write one JSON object to stdout instead of tables
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub struct CurvesArgs {
    /// Folders of runs, or files like their metrics.jsonl
    #[arg(value_name = "RUN", required = true)]
    pub runs: Vec<PathBuf>,
    /// The picture
    #[arg(long, value_name = "FILE.svg")]
    pub out: PathBuf,
}

/// A decoding mode with drafts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum DraftingMode {
    /// While the current block is verified
    #[default]
    Parallel,
    /// After it was verified
    Sequential,
}

impl From<DraftingMode> for Mode {
    fn from(choice: DraftingMode) -> Self {
        match choice {
            DraftingMode::Parallel => Self::Parallel,
            DraftingMode::Sequential => Self::Sequential,
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
    /// While the target's own draw is the same: gives the tokens of plain decoding with this seed
    Match,
    /// While a draw of the target's that knows nothing of the draft's is the same, for comparison
    IndependentMatch,
}

impl From<RuleChoice> for Rule {
    fn from(choice: RuleChoice) -> Self {
        match choice {
            RuleChoice::Rejection | RuleChoice::IndependentMatch => Self::Rejection,
            RuleChoice::Block => Self::Block,
            RuleChoice::Match => Self::Match,
        }
    }
}

/// A candle device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TensorDevice {
    Cpu,
    Cuda(usize),
}

impl FromStr for TensorDevice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.strip_prefix("cuda:").map(str::parse) {
            Some(Ok(ordinal)) => Ok(Self::Cuda(ordinal)),
            None if text == "cpu" => Ok(Self::Cpu),
            _ => Err("expected `cpu` or `cuda:N`".into()),
        }
    }
}

impl TensorDevice {
    /// Opens the device.
    pub fn open(self) -> Result<Device, TuneError> {
        match self {
            Self::Cpu => Ok(Device::Cpu),
            Self::Cuda(_) if !cfg!(feature = "cuda") => {
                Err(TuneError::setting("--device", "cuda", "cpu: this build is without the feature `cuda`"))
            }
            Self::Cuda(ordinal) => Ok(Device::new_cuda(ordinal)?),
        }
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Dtype {
    #[default]
    F32,
    Bf16,
}

impl Dtype {
    /// The name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
        }
    }
}

impl From<Dtype> for Compute {
    fn from(dtype: Dtype) -> Self {
        match dtype {
            Dtype::F32 => Self::F32,
            Dtype::Bf16 => Self::Bf16,
        }
    }
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
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }

    #[test]
    fn prompts_have_one_source() {
        let parse = |rest: &[&str]| {
            Cli::try_parse_from([&["flexdraft-tune", "data", "--target", "t", "--out", "o"], rest].concat())
        };
        assert!(parse(&[]).is_ok());
        assert!(parse(&["--prompts", "p", "--raw"]).is_ok());
        assert!(parse(&["--prompts", "p", "--continue", "t"]).is_err());
        assert!(parse(&["--raw"]).is_err());
    }
}

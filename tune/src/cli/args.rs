//! The arguments of the command `flexdraft-tune`.

use std::path::PathBuf;

use clap::{ArgGroup, Args, Parser, Subcommand};
use flexdraft_tune::TuneError;

use super::chain_args::{ChainArgs, HeadroomArgs};
use super::training_args::{RunArgs, TrainingArgs};
use super::values::{
    DrafterKindChoice, DraftingMode, Dtype, KindChoice, RoundingChoice, RuleChoice, WeightsChoice,
};

/// Makes drafters for FlexDraft
///
/// A drafter lets a language model, the target, generate several tokens per step without changing its output. `data`
/// lets the target write text, `tune` trains a drafter to predict that text, `chain` improves it, and `eval` measures
/// it. `pretrain` makes a small target to try this with. No command changes a target.
///
/// Exit codes: 0 for success, 2 for a mistake in the arguments or in a file that they name, 1 for any other failure.
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
    /// The target answers prompts. The prompts come from a file (--prompts), are pieces of a text (--continue), or, by
    /// default, are written by the target itself, which needs a chat template (Magpie, arXiv 2406.08464).
    ///
    /// The folder --out gets train.jsonl and heldout.jsonl, with one transcript (the token ids of a prompt and of its
    /// response) per line, and data.json, with the settings. If a run was stopped, the same command continues it. With
    /// a larger --count, the command adds transcripts to a complete run.
    Data(DataArgs),
    /// Train a drafter on transcripts
    ///
    /// The command trains attention projectors for mask tokens in the target's last layers (Attention Tuning) and a
    /// small MLP that corrects drafts (Bonus-guided Calibration).
    ///
    /// The folder --out gets the best drafter so far, measured by its acceptance length τ on held-out transcripts
    /// (drafter/, whose config.json says what τ was and for which chat template), the settings (settings.json), the
    /// metrics (metrics.jsonl) and a checkpoint. If a run was stopped, the same command continues it from the checkpoint.
    Tune(TuneArgs),
    /// Train the chain of a drafter that stays as it is
    ///
    /// A chain (Chained Calibration) conditions each slot of a draft on the token of the previous slot: it corrects the
    /// logits of the slot's most likely token ids. Training takes minutes, because the drafter's own logits are
    /// computed once.
    ///
    /// The folder --out gets the drafter with its best chain so far, measured by the acceptance length τ on held-out
    /// transcripts (drafter/), the settings (settings.json), the metrics (metrics.jsonl) and a checkpoint. If a run was
    /// stopped, the same command continues it from the checkpoint.
    Chain(ChainArgs),
    /// Make a small target from text
    ///
    /// The command trains a byte-level BPE tokenizer and a model of the Qwen3 architecture, both from scratch. The
    /// folder --out is the model as of the latest checkpoint; its subfolder run/ holds the checkpoint, the settings and
    /// the metrics. If a run was stopped, the same command continues it from the checkpoint.
    Pretrain(PretrainArgs),
    /// Print transcripts as text
    Show(ShowArgs),
    /// Measure a drafter by decoding unseen prompts with it
    ///
    /// The command prints the acceptance length τ (tokens per step), passes of the target per token, how often each
    /// slot of a draft is accepted, and how far the drafter's confidences are from its acceptance rates. Greedy tokens
    /// and the tokens of `--rule match` are compared with plain decoding; a difference is an error.
    Eval(EvalArgs),
    /// Estimate the possible gain of a chain, by walking along greedy transcripts with a drafter
    ///
    /// The command needs no chain and decodes nothing. It prints how often the right token is among the K most likely
    /// ids of each slot (recall), the acceptance length τ of the drafter, with its chain if it has one, the τ that a
    /// chain could reach if it always chose the right id among the K ids (the oracle's τ), and the τ of a trigram
    /// model. The larger the distance between the drafter's τ and the oracle's, the more training a chain can gain.
    Headroom(HeadroomArgs),
    /// Draw the loss and the held-out acceptance length of runs as an SVG picture
    Curves(CurvesArgs),
}

/// A target, and how to run it.
#[derive(Debug, Args)]
pub struct TargetArgs {
    /// The target model: a Hugging Face directory with config.json and safetensors, or a GGUF file
    ///
    /// The command maps the files into memory; they must not change while it runs.
    #[arg(long, value_name = "DIR|FILE.gguf", help_heading = "Model")]
    pub target: PathBuf,
    /// Number of CPU threads; 0 takes one per core. The number changes no result
    #[arg(long, value_name = "N", default_value_t = 0, help_heading = "Model")]
    pub threads: usize,
}

/// Whether the target thinks before it answers.
#[derive(Clone, Copy, Debug, Args)]
pub struct ThinkingArgs {
    /// Let the target think before it answers, if its chat template has the variable `enable_thinking`
    #[arg(long, conflicts_with = "no_thinking", help_heading = "Prompts")]
    pub enable_thinking: bool,
    /// Let the target answer without thinking, if its chat template has the variable `enable_thinking`
    #[arg(long, help_heading = "Prompts")]
    pub no_thinking: bool,
}

impl ThinkingArgs {
    /// Returns the value of the template's variable `enable_thinking`, if an argument sets it. `renders` says whether the
    /// prompts are rendered with a chat template.
    pub fn value(self, renders: bool) -> Result<Option<bool>, TuneError> {
        let (option, value) = match (self.enable_thinking, self.no_thinking) {
            (true, _) => ("--enable-thinking", true),
            (_, true) => ("--no-thinking", false),
            (false, false) => return Ok(None),
        };
        if !renders {
            let expected = "prompts that the command renders with the target's chat template";
            return Err(TuneError::setting(option, "given for prompts as they are", expected));
        }
        Ok(Some(value))
    }
}

#[derive(Debug, Args)]
#[command(group(ArgGroup::new("source").multiple(false)))]
pub struct DataArgs {
    #[command(flatten)]
    pub target: TargetArgs,
    /// Rounding of activations and KV cache; bf16 rounds as a GPU does
    #[arg(long, value_enum, default_value_t, help_heading = "Model")]
    pub dtype: Dtype,
    /// Folder for the transcripts; the command creates it or continues the run in it
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
    /// Total number of transcripts, including those that --out already has [default: 1000, or one per prompt of
    /// --prompts]
    #[arg(long, value_name = "N")]
    pub count: Option<usize>,
    /// Share of the prompts, from 0 to 1, whose transcripts are kept for evaluation; above 0, at least the first
    #[arg(long, value_name = "SHARE", default_value_t = 0.05)]
    pub held_out: f64,
    /// Seed of all random numbers
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub seed: u64,
    /// Largest number of sequences that a step decodes together. The number changes no result
    #[arg(long, value_name = "N", default_value_t = 128)]
    pub batch: usize,

    /// File with the prompts: JSON lines with a key `prompt` (.jsonl), or else one prompt per line
    #[arg(long, value_name = "FILE", group = "source", help_heading = "Prompts")]
    pub prompts: Option<PathBuf>,
    /// Use the prompts of --prompts unchanged, without the target's chat template
    #[arg(long, requires = "prompts", help_heading = "Prompts")]
    pub raw: bool,
    /// Text file to continue: the prompts are pieces of it from random places
    ///
    /// Pieces may overlap, and a held-out piece may overlap with a training piece. For a held-out set that shares no
    /// text with the training set, run the command again on another file with --held-out 1.
    #[arg(long = "continue", value_name = "FILE", group = "source", help_heading = "Prompts")]
    pub text: Option<PathBuf>,
    /// Length of a piece of the --continue text, in tokens
    #[arg(long, value_name = "N", default_value_t = 32, help_heading = "Prompts")]
    pub window: usize,
    /// Take the responses from the --continue text too, for comparison; the target writes nothing
    ///
    /// Pieces overlap, so --held-out must be 0 or 1.
    #[arg(
        long,
        requires = "text",
        conflicts_with_all = ["temperature", "dtype", "threads", "batch"],
        help_heading = "Prompts"
    )]
    pub as_written: bool,
    /// Shortest message that the target may write as its own prompt, in tokens; shorter ones are dropped
    #[arg(long, value_name = "N", default_value_t = 4, help_heading = "Prompts")]
    pub min_message: usize,
    /// Longest message that the target may write as its own prompt, in tokens; longer ones are dropped
    #[arg(long, value_name = "N", default_value_t = 128, help_heading = "Prompts")]
    pub max_message: usize,
    #[command(flatten)]
    pub thinking: ThinkingArgs,

    /// Largest number of tokens per response; the target's context limits it too
    #[arg(long, value_name = "N", default_value_t = 256, help_heading = "Responses")]
    pub max_response: usize,
    /// Sampling temperature of the responses; 0 always takes the most probable token
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
    #[command(flatten)]
    pub run: RunArgs,
    /// Train on the first N GPUs, with one process per GPU, instead of on --device. NCCL adds the gradients of the
    /// processes; --sequences is divided among them
    #[cfg(feature = "nccl")]
    #[arg(long, value_name = "N", conflicts_with = "device")]
    pub gpus: Option<std::num::NonZeroUsize>,

    /// Kind of drafter. `flexdraft` adds attention projectors to the target's last layers, a mask embedding and a
    /// calibrator. `orthrus` adds attention projectors to all layers of a Qwen3, which is copied into the drafter's
    /// folder
    #[arg(long, value_enum, help_heading = "Drafter")]
    pub kind: Option<DrafterKindChoice>,
    /// Token id whose embedding the mask tokens of an Orthrus drafter start from [default: the last id]
    #[arg(long, value_name = "ID", help_heading = "Drafter")]
    pub mask_token: Option<u32>,
    /// Directory of a FlexDraft drafter to go on from: the run starts with its weights instead of the target's. Its sizes must
    /// be those of the other options, except for the block size; --chain adds a chain if it has none [default: none]
    #[arg(long, value_name = "DRAFTER", help_heading = "Drafter")]
    pub init_from: Option<PathBuf>,
    /// Number of the target's last layers that get attention projectors for mask tokens; by default, all layers if the
    /// target has fewer layers than this default
    #[arg(long, value_name = "N", help_heading = "Drafter")]
    pub tail_layers: Option<usize>,
    /// Block size: slots per block; a block drafts one token fewer than it has slots
    #[arg(long, value_name = "S", help_heading = "Drafter")]
    pub block_size: Option<usize>,
    /// Rank of the calibrator, the MLP that corrects drafts; 0 trains a drafter without one
    #[arg(long, value_name = "R", help_heading = "Drafter")]
    pub rank: Option<usize>,
    /// Draft only the N most frequent token ids of the transcripts; 0 drafts the whole vocabulary
    #[arg(long, value_name = "N", help_heading = "Drafter")]
    pub shortlist: Option<usize>,
    /// Train a chain of this kind together with the drafter: it corrects each slot, given the previous token and, for
    /// `hidden`, the slot's hidden state [default: none]
    #[arg(long, value_enum, value_name = "KIND", help_heading = "Drafter")]
    pub chain: Option<KindChoice>,
    /// Rank of the chain's two layers
    #[arg(long, value_name = "R", help_heading = "Drafter")]
    pub chain_rank: Option<usize>,
    /// Number of most likely token ids per slot that the chain corrects, 1 to 32
    #[arg(long, value_name = "K", help_heading = "Drafter")]
    pub chain_top_k: Option<usize>,
    /// Train the norms and MLPs of the last layers too, for comparison; such a drafter is not exported
    #[arg(long, value_name = "BOOL", help_heading = "Drafter")]
    pub whole_tail: Option<bool>,

    #[command(flatten)]
    pub training: TrainingArgs,
    /// Learning rate of the calibrator, as a multiple of --learning-rate
    #[arg(long, value_name = "FACTOR", help_heading = "Training")]
    pub calibrator_rate: Option<f64>,
    /// Decay per step of the running mean of the weights, which is evaluated and exported; 0 uses the weights
    /// themselves
    #[arg(long, value_name = "DECAY", help_heading = "Training")]
    pub ema: Option<f64>,
}

#[derive(Debug, Args)]
pub struct PretrainArgs {
    /// Text to learn from: a file, or a folder in which every file is one document
    #[arg(long, value_name = "PATH")]
    pub text: PathBuf,
    /// Text, as a file or folder, on which the loss is measured; the model does not learn from it [default: none]
    #[arg(long, value_name = "PATH")]
    pub heldout: Option<PathBuf>,
    /// Folder for the model and the run; the command creates it or continues the run in it
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
    /// JSON file with settings, such as the run/settings.json of another run; options on the command line override them [default: none]
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,

    /// Largest number of token ids, including the token that ends a document
    #[arg(long, value_name = "V", help_heading = "Model")]
    pub vocab_size: Option<usize>,
    /// Hidden size: elements of a token's row between layers
    #[arg(long, value_name = "H", help_heading = "Model")]
    pub hidden_size: Option<usize>,
    /// Number of decoder layers
    #[arg(long, value_name = "L", help_heading = "Model")]
    pub layers: Option<usize>,
    /// Number of query heads
    #[arg(long, value_name = "N", help_heading = "Model")]
    pub q_heads: Option<usize>,
    /// Number of KV heads, a divisor of --q-heads
    #[arg(long, value_name = "N", help_heading = "Model")]
    pub kv_heads: Option<usize>,
    /// Elements of one attention head, an even number
    #[arg(long, value_name = "N", help_heading = "Model")]
    pub head_dim: Option<usize>,
    /// Elements of a token's row inside the MLP
    #[arg(long, value_name = "N", help_heading = "Model")]
    pub intermediate_size: Option<usize>,
    /// Context: number of positions that the model is trained for
    #[arg(long, value_name = "N", help_heading = "Model")]
    pub context_len: Option<usize>,

    /// Total number of training steps
    #[arg(long, value_name = "N", help_heading = "Training")]
    pub steps: Option<usize>,
    /// Largest number of tokens per step
    #[arg(long, value_name = "N", help_heading = "Training")]
    pub step_tokens: Option<usize>,
    /// Length of a training sequence, a piece of the text, in tokens
    #[arg(long, value_name = "N", help_heading = "Training")]
    pub window: Option<usize>,
    /// Use sequences as long as the context in one step of N, so that every position is trained
    #[arg(long, value_name = "N", help_heading = "Training")]
    pub long_window_every: Option<usize>,
    /// Peak learning rate
    #[arg(long, value_name = "RATE", help_heading = "Training")]
    pub learning_rate: Option<f64>,
    /// Seed of the initial weights and of the places of the sequences in the text
    #[arg(long, value_name = "N", help_heading = "Training")]
    pub seed: Option<u64>,
    /// Steps between two measurements of the loss on --heldout
    #[arg(long, value_name = "N", help_heading = "Training")]
    pub evaluate_every: Option<usize>,
    /// Steps between two checkpoints
    #[arg(long, value_name = "N", help_heading = "Training")]
    pub checkpoint_every: Option<usize>,
}

#[derive(Debug, Args)]
pub struct ShowArgs {
    /// The target whose tokenizer the token ids belong to: a Hugging Face directory or a GGUF file
    #[arg(long, value_name = "DIR|FILE.gguf")]
    pub target: PathBuf,
    /// Number of transcripts to print
    #[arg(long, value_name = "N", default_value_t = 10)]
    pub count: usize,
    /// Number of transcripts to skip first
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub skip: usize,
    /// File with transcripts, such as heldout.jsonl
    #[arg(value_name = "FILE.jsonl")]
    pub transcripts: PathBuf,
}

#[derive(Debug, Args)]
#[command(group(ArgGroup::new("unseen").multiple(false).required(true)))]
pub struct EvalArgs {
    #[command(flatten)]
    pub target: TargetArgs,
    /// Rounding of activations and KV cache
    #[arg(long, value_enum, default_value_t, help_heading = "Model")]
    pub dtype: RoundingChoice,
    /// Quantised weights of a GGUF file. The two choices give slightly different targets
    #[arg(long, value_enum, default_value_t, help_heading = "Model")]
    pub weights: WeightsChoice,
    /// The drafter's directory, such as the folder drafter/ of a run [default: the target's own, for an Orthrus model]
    #[arg(long, value_name = "DIR", help_heading = "Model")]
    pub draft: Option<PathBuf>,

    /// File with the prompts: JSON lines with a key `prompt` (.jsonl), or else one prompt per line
    #[arg(long, value_name = "FILE", group = "unseen", help_heading = "Prompts")]
    pub prompts: Option<PathBuf>,
    /// Use the prompts of --prompts unchanged, without the target's chat template
    #[arg(long, requires = "prompts", help_heading = "Prompts")]
    pub raw: bool,
    /// File with transcripts: their prompts are decoded and, at temperature 0, τ is also found along their
    /// responses
    ///
    /// The walk finds τ without decoding, as `tune` does for held-out transcripts: the drafter drafts at every position
    /// of a response, up to --max-new-tokens, and the walk takes the steps that decoding would take. If several
    /// transcripts have the same prompt, only the first one is used. A response that greedy decoding would not write is
    /// left out of the walk and counted.
    #[arg(long, value_name = "FILE.jsonl", group = "unseen", help_heading = "Prompts")]
    pub transcripts: Option<PathBuf>,
    #[command(flatten)]
    pub thinking: ThinkingArgs,
    /// Use only the first N prompts [default: all]
    #[arg(long, value_name = "N", help_heading = "Prompts")]
    pub limit: Option<usize>,

    /// When to draft the next block. Both modes give the same drafts [default: parallel, or sequential for an Orthrus
    /// drafter, which has no other mode]
    #[arg(long, value_enum, help_heading = "Decoding")]
    pub mode: Option<DraftingMode>,
    /// Largest number of new tokens per prompt; the target's context limits it too
    #[arg(long, value_name = "N", default_value_t = 128, help_heading = "Decoding")]
    pub max_new_tokens: usize,
    /// Sampling temperature; 0 always takes the most probable token
    #[arg(
        long,
        value_name = "T",
        default_value_t = 0.0,
        allow_negative_numbers = true,
        help_heading = "Decoding"
    )]
    pub temperature: f32,
    /// How to accept drafts if the temperature is above 0
    #[arg(long, value_enum, default_value_t, help_heading = "Decoding")]
    pub rule: RuleChoice,
    /// Verify a draft only as far as the product of its confidences reaches this value; 0 verifies the whole draft
    #[arg(
        long,
        value_name = "T",
        default_value_t = 0.01,
        allow_negative_numbers = true,
        help_heading = "Decoding"
    )]
    pub confidence_threshold: f32,
    /// Seed of the first prompt's random numbers; each further prompt takes the next seed
    #[arg(long, value_name = "N", default_value_t = 0, help_heading = "Decoding")]
    pub seed: u64,
    /// Largest number of prompts that a step decodes together. The number changes no result
    #[arg(long, value_name = "N", default_value_t = 16, help_heading = "Decoding")]
    pub batch: usize,

    /// Write the acceptance length into the drafter's config.json, with the chat template, thinking mode and block size
    /// for which it was measured. `flexdraft` prints a note if a run uses another template or accepts much less
    #[arg(long, help_heading = "Output")]
    pub card: bool,
    /// Write one JSON object to stdout instead of tables
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub struct CurvesArgs {
    /// Runs to draw: folders with a metrics.jsonl, or such files. `tune` writes it to --out, `pretrain` to run/ in
    /// --out
    #[arg(value_name = "RUN", required = true)]
    pub runs: Vec<PathBuf>,
    /// File for the picture
    #[arg(long, value_name = "FILE.svg")]
    pub out: PathBuf,
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

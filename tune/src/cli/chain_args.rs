//! The arguments of the commands `chain` and `headroom`.

use std::path::PathBuf;

use clap::Args;

use super::training_args::{RunArgs, TrainingArgs};
use super::values::{Dtype, KindChoice, TensorDevice};

#[derive(Debug, Args)]
pub struct ChainArgs {
    #[command(flatten)]
    pub run: RunArgs,
    /// The drafter's directory. The command reads it and does not change it; a chain that the drafter has is replaced in
    /// the drafter that the command writes
    #[arg(long, value_name = "DIR")]
    pub draft: PathBuf,

    /// Inputs of the correction of a token id: the previous token and the id (`pair`), or also the slot's hidden state
    /// (`hidden`)
    #[arg(long, value_enum, help_heading = "Chain")]
    pub kind: Option<KindChoice>,
    /// Rank of the chain's two layers
    #[arg(long, value_name = "R", help_heading = "Chain")]
    pub rank: Option<usize>,
    /// Number of most likely token ids per slot that the chain corrects, 1 to 32
    #[arg(long, value_name = "K", help_heading = "Chain")]
    pub top_k: Option<usize>,
    /// Let every slot's correction depend on the bonus token instead of the previous token, for comparison; such a
    /// chain is not exported
    #[arg(long, value_name = "BOOL", help_heading = "Chain")]
    pub bonus_only: Option<bool>,

    #[command(flatten)]
    pub training: TrainingArgs,
}

#[derive(Debug, Args)]
pub struct HeadroomArgs {
    /// The target model: a Hugging Face directory with config.json and safetensors, or a GGUF file
    ///
    /// The command maps the files into memory; they must not change while it runs.
    #[arg(long, value_name = "DIR|FILE.gguf")]
    pub target: PathBuf,
    /// The drafter's directory
    #[arg(long, value_name = "DIR")]
    pub draft: PathBuf,
    /// File with transcripts that the target wrote at temperature 0, such as heldout.jsonl
    #[arg(long, value_name = "FILE.jsonl")]
    pub transcripts: PathBuf,
    /// Transcripts in which the trigrams are counted [default: the other transcripts of --transcripts]
    #[arg(long, value_name = "FILE.jsonl")]
    pub counted: Option<PathBuf>,
    /// Use only the first N transcripts [default: all]
    #[arg(long, value_name = "N")]
    pub limit: Option<usize>,
    /// Walk only the first N tokens of each response [default: all]
    #[arg(long, value_name = "N")]
    pub max_new_tokens: Option<usize>,
    /// Verify a draft only as far as the product of its confidences reaches this value; 0 verifies the whole draft
    #[arg(long, value_name = "T", default_value_t = 0.01, allow_negative_numbers = true)]
    pub confidence_threshold: f32,
    /// Type that the operands of matrix products are rounded to; bf16 halves the memory for the weights
    #[arg(long, value_enum, default_value_t)]
    pub compute: Dtype,
    /// Device that walks: `cpu`, or `cuda:N` in a build with the feature `cuda`
    #[arg(long, value_name = "DEVICE", default_value = "cpu")]
    pub device: TensorDevice,
    /// Write one JSON object to stdout instead of a table
    #[arg(long)]
    pub json: bool,
}

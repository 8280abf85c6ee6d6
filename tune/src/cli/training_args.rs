//! The arguments that the commands `tune` and `chain` share.

use std::path::PathBuf;

use clap::Args;

use super::values::{Dtype, TensorDevice};

/// The files and the device of a run that trains.
#[derive(Debug, Args)]
pub struct RunArgs {
    /// The target model: a Hugging Face directory with config.json and safetensors, or a GGUF file
    ///
    /// The command maps the files into memory; they must not change while it runs.
    #[arg(long, value_name = "DIR|FILE.gguf")]
    pub target: PathBuf,
    /// Folder with the transcripts that `flexdraft-tune data` made
    #[arg(long, value_name = "DIR")]
    pub data: PathBuf,
    /// Folder for the drafter and the run; the command creates it or continues the run in it
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
    /// Device that trains: `cpu`, or `cuda:N` in a build with the feature `cuda`
    #[arg(long, value_name = "DEVICE", default_value = "cpu")]
    pub device: TensorDevice,
    /// JSON file with settings, such as the settings.json of another run; options on the command line override them [default: none]
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
}

/// The settings of training that every command has. The help gets the default values of the command's own settings.
#[derive(Debug, Args)]
#[command(next_help_heading = "Training")]
pub struct TrainingArgs {
    /// Total number of training steps
    #[arg(long, value_name = "N")]
    pub steps: Option<usize>,
    /// Transcripts per step
    #[arg(long, value_name = "N")]
    pub sequences: Option<usize>,
    /// Largest number of anchors per transcript: positions from which a block is drafted. `chain` takes the same anchors in
    /// every epoch
    #[arg(long, value_name = "N")]
    pub anchors: Option<usize>,
    /// Peak learning rate
    #[arg(long, value_name = "RATE")]
    pub learning_rate: Option<f64>,
    /// Type that the operands of matrix products are rounded to; weights stay f32 between steps
    #[arg(long, value_enum)]
    pub compute: Option<Dtype>,
    /// Decay of the slots' weights in the loss: slot j has the weight exp(−(j − 1) / γ)
    #[arg(long, value_name = "γ")]
    pub gamma: Option<f64>,
    /// Seed of the initial weights, the order of the transcripts and the anchors
    #[arg(long, value_name = "N")]
    pub seed: Option<u64>,
    /// Steps between two evaluations on the held-out transcripts
    #[arg(long, value_name = "N")]
    pub evaluate_every: Option<usize>,
    /// Largest number of held-out transcripts per evaluation
    #[arg(long, value_name = "N")]
    pub evaluate_on: Option<usize>,
    /// Steps between two checkpoints
    #[arg(long, value_name = "N")]
    pub checkpoint_every: Option<usize>,
}

/// Overrides the named fields of settings by the arguments that are given.
macro_rules! take {
    ($args:expr => $settings:expr; $($field:ident),* $(,)?) => {$(
        if let Some(value) = $args.$field {
            $settings.$field = value.into();
        }
    )*};
}

/// Overrides the settings of training by the [`TrainingArgs`] that are given.
macro_rules! take_training {
    ($args:expr => $settings:expr) => {
        take!($args => $settings; steps, sequences, anchors, learning_rate, compute, gamma, seed);
        take!($args => $settings; evaluate_every, evaluate_on, checkpoint_every);
    };
}

pub(super) use {take, take_training};

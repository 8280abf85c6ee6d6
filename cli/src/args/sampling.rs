//! Arguments of sampling.
//!
//! Values that only the library can judge are passed to it as typed, so users see the library's messages.

use clap::Args;
use flexdraft::sampling::SamplingParams;

use super::processors::ProcessorArgs;

#[derive(Clone, Debug, Args)]
pub struct SamplingArgs {
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
    #[command(flatten)]
    pub processors: ProcessorArgs,
    /// Seed of all random numbers
    #[arg(long, value_name = "N", default_value_t = 0, help_heading = "Sampling")]
    pub seed: u64,
}

impl SamplingArgs {
    /// Returns the sampling parameters, not yet validated.
    pub fn params(&self) -> SamplingParams {
        SamplingParams {
            temperature: self.temperature,
            top_k: self.top_k,
            top_p: self.top_p,
            min_p: self.min_p,
        }
    }
}

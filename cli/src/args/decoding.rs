//! Arguments of decoding: when to draft, how to accept drafts, how far to verify, and when to stop.
//!
//! Values that only the library can judge are passed to it as typed, so users see the library's messages.

use std::num::NonZeroUsize;

use clap::{Args, ValueEnum};
use flexdraft::acceptance::Rule;
use flexdraft::decode::{Confidence, ConfidenceStrategy, CostModel, Flex, Mode, Policy};

use super::at_least_one;

#[derive(Clone, Debug, Args)]
pub struct DecodingArgs {
    /// When to draft: `parallel` during verification, `sequential` after verification, `ar` never; `auto` chooses per
    /// sequence and step, from the cost of steps and the value of drafts [default: auto; parallel for the bundled pair]
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
    /// The value that is compared with --confidence-threshold
    #[arg(long, value_enum, default_value_t, value_name = "STRATEGY", help_heading = "Decoding")]
    pub confidence_strategy: StrategyChoice,
    /// Largest number of new tokens; the model's context limits it too
    #[arg(long, value_name = "N", default_value_t = 256, help_heading = "Decoding")]
    pub max_new_tokens: usize,
    /// Positions for prompt and output together, in place of the model's own limit
    #[arg(long, value_name = "N", value_parser = at_least_one, help_heading = "Decoding")]
    pub context: Option<NonZeroUsize>,
    /// Compute every prompt from its beginning, even if the cache has the keys and values of its first tokens. The
    /// option changes no result
    #[arg(long, help_heading = "Decoding")]
    pub no_prefix_cache: bool,
    /// Let `--mode auto` learn the cost of steps only from the steps that it runs, without measuring some steps first
    #[arg(long, help_heading = "Decoding")]
    pub no_probe: bool,
    /// Write to stderr, for each step, the choice of `--mode auto` and the alternatives that it compared
    #[arg(long, help_heading = "Decoding")]
    pub explain: bool,
    /// Continue after an end-of-sequence token
    #[arg(long, help_heading = "Decoding")]
    pub ignore_eos: bool,
    /// Stop before this text; may be given several times. Write a newline as an actual line break, not as `\\n`
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true, help_heading = "Decoding")]
    pub stop: Vec<String>,
}

impl DecodingArgs {
    /// Returns the confidence settings that decide the verify length, not yet validated.
    pub fn confidence(&self) -> Confidence {
        Confidence { threshold: self.confidence_threshold, strategy: self.confidence_strategy.into() }
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
    /// Returns the mode's name on the command line.
    pub fn name(self) -> &'static str {
        self.policy(&CostModel::default()).name()
    }

    /// Returns the mode's policy. `auto` begins with the cost model `cost`.
    pub fn policy(self, cost: &CostModel) -> Box<dyn Policy> {
        match self {
            Self::Auto => Box::new(Flex::new(cost.clone())),
            Self::Parallel => Box::new(Mode::Parallel),
            Self::Sequential => Box::new(Mode::Sequential),
            Self::Ar => Box::new(Mode::Autoregressive),
        }
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum RuleChoice {
    /// Accepts token by token, with probability min(1, p/q); the next token comes from the residual distribution
    #[default]
    Rejection,
    /// Accepts by the joint probability of the block; on average at least as many tokens as `rejection`
    Block,
    /// Accepts while the target draws the same token; gives the tokens of `--mode ar` with this seed
    Match,
}

impl RuleChoice {
    /// Returns the rule's name on the command line.
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
    /// The product of the confidences from the start of the draft
    #[default]
    CumulativeProduct,
    /// The confidence of each token
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

//! Arguments of decoding: when to draft, how to accept drafts, and how far to verify.

use clap::ValueEnum;
use flexdraft::acceptance::Rule;
use flexdraft::decode::{Auto, ConfidenceStrategy, Mode, Policy};

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
    /// Accepts token by token, with probability min(1, p/q); the next token comes from the residual
    #[default]
    Rejection,
    /// Accepts the whole block at once, and at least as much on average as `rejection`
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

//! Values of arguments that several commands take.

use std::str::FromStr;

use candle_core::Device;
use clap::ValueEnum;
use flexdraft::acceptance::Rule;
use flexdraft::decode::Mode;
use flexdraft::device::Precision;
use flexdraft::model::QuantizedWeights;
use flexdraft_tune::TuneError;
use flexdraft_tune::tune::{Compute, DrafterChoice, Kind};

/// A kind of chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum KindChoice {
    Pair,
    Hidden,
}

impl From<KindChoice> for Kind {
    fn from(choice: KindChoice) -> Self {
        match choice {
            KindChoice::Pair => Self::Pair,
            KindChoice::Hidden => Self::Hidden,
        }
    }
}

/// The kind of drafter that a run trains.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum DrafterKindChoice {
    Flexdraft,
    Orthrus,
}

impl From<DrafterKindChoice> for DrafterChoice {
    fn from(choice: DrafterKindChoice) -> Self {
        match choice {
            DrafterKindChoice::Flexdraft => Self::FlexDraft,
            DrafterKindChoice::Orthrus => Self::Orthrus,
        }
    }
}

/// A decoding mode with drafts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum DraftingMode {
    /// In the verification pass of the current block
    Parallel,
    /// In a pass of its own, after the current block was verified
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
    /// Accepts token by token, with probability min(1, p/q); the next token comes from the residual distribution
    #[default]
    Rejection,
    /// Accepts by the joint probability of the block; on average at least as many tokens as `rejection`
    Block,
    /// Accepts while the target draws the same token; gives the tokens of plain decoding with this seed
    Match,
    /// Accepts while an independent draw of the target gives the same token, for comparison
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

/// The argument that names the device of candle's tensors.
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
            _ => Err("expected `cpu` or `cuda:N`, such as `cuda:0`".into()),
        }
    }
}

impl TensorDevice {
    /// Opens the device for candle's tensors.
    pub fn open(self) -> Result<Device, TuneError> {
        match self {
            Self::Cpu => Ok(Device::Cpu),
            Self::Cuda(ordinal) if !cfg!(feature = "cuda") => {
                let expected = "`cpu`, because this build lacks the feature `cuda`";
                Err(TuneError::setting("--device", format!("cuda:{ordinal}"), expected))
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
    /// Returns the number type's name on the command line.
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

/// The rounding of activations in an evaluation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum RoundingChoice {
    /// No rounding: single precision
    #[default]
    F32,
    /// To bf16, as on a GPU
    Bf16,
    /// To 8 bits in products with quantised weights, which --weights keep preserves
    Q8,
}

impl From<RoundingChoice> for Precision {
    fn from(choice: RoundingChoice) -> Self {
        match choice {
            RoundingChoice::F32 => Self::F32,
            RoundingChoice::Bf16 => Self::Bf16,
            RoundingChoice::Q8 => Self::Q8,
        }
    }
}

/// The form in which an evaluation loads quantised weights.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum WeightsChoice {
    /// Converted to bf16, as the commands that train do
    #[default]
    Bf16,
    /// As they are in the file, as `flexdraft` does on a CPU
    Keep,
}

impl From<WeightsChoice> for QuantizedWeights {
    fn from(choice: WeightsChoice) -> Self {
        match choice {
            WeightsChoice::Bf16 => Self::Bf16,
            WeightsChoice::Keep => Self::Keep,
        }
    }
}

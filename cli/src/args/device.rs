//! Arguments for the device that runs the model, and for its arithmetic.

use std::str::FromStr;

use clap::ValueEnum;
use flexdraft::device::Precision;
use flexdraft::device::gpu::ProductAlgorithms;
use flexdraft::model::QuantizedWeights;

/// The device that runs the model.
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
            _ => Err("expected `auto`, `cpu` or `cuda:N`, such as `cuda:0`".into()),
        }
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum ProductsChoice {
    /// Row-invariant algorithms, which give a row the same bits in every product
    #[default]
    Invariant,
    /// The algorithm that cuBLASLt estimates to be fastest for each number of rows
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

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Dtype {
    /// Single precision: no rounding
    #[default]
    F32,
    /// bfloat16, as on a GPU
    Bf16,
    /// Single precision, but activations of 8 bits in products with quantised weights
    Q8,
}

impl From<Dtype> for Precision {
    fn from(dtype: Dtype) -> Self {
        match dtype {
            Dtype::F32 => Self::F32,
            Dtype::Bf16 => Self::Bf16,
            Dtype::Q8 => Self::Q8,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum WeightsChoice {
    /// Kept as in the file, in the memory that the file takes; only on the CPU
    Keep,
    /// Converted to bf16 when they are loaded
    Bf16,
}

impl From<WeightsChoice> for QuantizedWeights {
    fn from(choice: WeightsChoice) -> Self {
        match choice {
            WeightsChoice::Keep => Self::Keep,
            WeightsChoice::Bf16 => Self::Bf16,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices() {
        assert_eq!("cuda:1".parse(), Ok(DeviceChoice::Cuda(1)));
        assert!("cuda".parse::<DeviceChoice>().is_err());
    }
}

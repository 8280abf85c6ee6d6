//! The setting that says how matrix products are computed.

use candle_core::DType;
use serde::{Deserialize, Serialize};

/// The float type that operands of matrix products are rounded to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Compute {
    /// f32: operands are not rounded.
    #[default]
    F32,
    /// bf16: operands are rounded, for devices with matrix units. A CPU only imitates it.
    Bf16,
}

impl From<Compute> for DType {
    fn from(compute: Compute) -> Self {
        match compute {
            Compute::F32 => Self::F32,
            Compute::Bf16 => Self::BF16,
        }
    }
}

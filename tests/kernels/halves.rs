//! The types of activations and of the KV cache that a test runs with, bf16 and f16.

use flexdraft::kernels::HalfFloat;
use half::{bf16, f16};

use crate::support::noise::noise;

/// A type of activations, with what tests compute from its values.
pub trait Half: HalfFloat + PartialEq {
    /// The unit roundoff: the largest relative error of rounding to the type.
    const ROUNDOFF: f64;

    fn rounded(x: f32) -> Self;
    fn f64(self) -> f64;
    fn bits(self) -> u16;
    fn from_bits(bits: u16) -> Self;
}

macro_rules! half {
    ($float:ident, $roundoff:expr) => {
        impl Half for $float {
            const ROUNDOFF: f64 = $roundoff;

            fn rounded(x: f32) -> Self {
                Self::from_f32(x)
            }
            fn f64(self) -> f64 {
                self.to_f64()
            }
            fn bits(self) -> u16 {
                self.to_bits()
            }
            fn from_bits(bits: u16) -> Self {
                Self::from_bits(bits)
            }
        }
    };
}
half!(bf16, 1.0 / 256.0);
half!(f16, 1.0 / 2048.0);

/// The bits of a NaN of either type, which fill all memory that a kernel must write or must not read.
pub const NAN: u16 = 0x7fbf;

/// Returns `len` numbers of the type, uniform in [-2, 2).
pub fn halves<T: Half>(seed: u64, len: usize) -> Vec<T> {
    noise(seed, len).into_iter().map(T::rounded).collect()
}

/// The type of the activations and the cache of a test case, for cases that hold values as their bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Bf16,
    F16,
}

impl Kind {
    pub const BOTH: [Kind; 2] = [Kind::Bf16, Kind::F16];

    /// Returns the bits of a number that is rounded to the type.
    pub fn bits(self, x: f32) -> u16 {
        match self {
            Kind::Bf16 => bf16::rounded(x).bits(),
            Kind::F16 => f16::rounded(x).bits(),
        }
    }

    /// Returns the number that has the given bits.
    pub fn value(self, bits: u16) -> f64 {
        match self {
            Kind::Bf16 => bf16::from_bits(bits).f64(),
            Kind::F16 => f16::from_bits(bits).f64(),
        }
    }

    /// Returns the type's unit roundoff.
    pub fn roundoff(self) -> f64 {
        match self {
            Kind::Bf16 => bf16::ROUNDOFF,
            Kind::F16 => f16::ROUNDOFF,
        }
    }

    /// Returns the bits of `len` numbers, uniform in [-2, 2).
    pub fn halves(self, seed: u64, len: usize) -> Vec<u16> {
        noise(seed, len).into_iter().map(|x| self.bits(x)).collect()
    }
}

//! The float type that every operation is generic over.
//!
//! f64 gives accurate values, against which another implementation's rounding is measured. f32 gives the values that
//! an f32 implementation computes.

use std::fmt::Debug;
use std::iter::Sum;
use std::ops::{Add, AddAssign, Div, Mul, Neg, Sub};

/// The operations that the method needs of a float type; implemented for f32 and f64.
pub trait Float:
    Copy
    + Debug
    + Default
    + PartialEq
    + PartialOrd
    + Add<Output = Self>
    + Sub<Output = Self>
    + Mul<Output = Self>
    + Div<Output = Self>
    + Neg<Output = Self>
    + AddAssign
    + Sum
    + Send
    + Sync
    + 'static
{
    /// The number 0.
    const ZERO: Self;
    /// The number 1.
    const ONE: Self;
    /// Positive infinity.
    const INFINITY: Self;
    /// Negative infinity.
    const NEG_INFINITY: Self;

    /// Returns `x`, rounded to nearest.
    fn from_f64(x: f64) -> Self;
    /// Converts `self` to f64 without rounding.
    fn to_f64(self) -> f64;
    /// Returns `x`, rounded towards zero.
    fn from_u32_towards_zero(x: u32) -> Self;
    /// Returns e to the power of `self`.
    fn exp(self) -> Self;
    /// Returns the natural logarithm of `self`.
    fn ln(self) -> Self;
    /// Returns ln(1 + `self`), without cancellation near 0.
    fn ln_1p(self) -> Self;
    /// Returns the square root of `self`.
    fn sqrt(self) -> Self;
    /// Returns the sine of `self`, in radians.
    fn sin(self) -> Self;
    /// Returns the cosine of `self`, in radians.
    fn cos(self) -> Self;
    /// Magnitude.
    fn abs(self) -> Self;
    /// Returns the larger of two numbers; if one is NaN, the other one.
    fn max(self, other: Self) -> Self;
    /// Returns the smaller of two numbers; if one is NaN, the other one.
    fn min(self, other: Self) -> Self;
    /// Returns whether the value is NaN.
    fn is_nan(self) -> bool;
}

macro_rules! implement_float {
    ($float:ident) => {
        impl Float for $float {
            const ZERO: Self = 0.0;
            const ONE: Self = 1.0;
            const INFINITY: Self = Self::INFINITY;
            const NEG_INFINITY: Self = Self::NEG_INFINITY;

            fn from_f64(x: f64) -> Self {
                x as Self
            }
            fn to_f64(self) -> f64 {
                self.into()
            }
            fn from_u32_towards_zero(x: u32) -> Self {
                // Clearing the low bits of `x` that the float type cannot hold leaves nothing to round in the
                // conversion.
                let surplus = 32u32.saturating_sub(Self::MANTISSA_DIGITS + x.leading_zeros());
                (x >> surplus << surplus) as Self
            }
            fn exp(self) -> Self {
                self.exp()
            }
            fn ln(self) -> Self {
                self.ln()
            }
            fn ln_1p(self) -> Self {
                self.ln_1p()
            }
            fn sqrt(self) -> Self {
                self.sqrt()
            }
            fn sin(self) -> Self {
                self.sin()
            }
            fn cos(self) -> Self {
                self.cos()
            }
            fn abs(self) -> Self {
                self.abs()
            }
            fn max(self, other: Self) -> Self {
                self.max(other)
            }
            fn min(self, other: Self) -> Self {
                self.min(other)
            }
            fn is_nan(self) -> bool {
                self.is_nan()
            }
        }
    };
}

implement_float!(f32);
implement_float!(f64);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn integers_round_towards_zero() {
        assert_eq!(<f32 as Float>::from_u32_towards_zero(u32::MAX), 4_294_967_040.0);
        assert_eq!(<f32 as Float>::from_u32_towards_zero(0x0100_0001), 16_777_216.0);
        assert_eq!(<f32 as Float>::from_u32_towards_zero(0x00ff_ffff), 16_777_215.0);
        assert_eq!(<f32 as Float>::from_u32_towards_zero(0), 0.0);
        assert_eq!(<f64 as Float>::from_u32_towards_zero(u32::MAX), 4_294_967_295.0);
    }
}

//! The types in which activations and the KV cache are stored.

use half::{bf16, f16};

use crate::runtime::Element;

mod sealed {
    pub trait Half {}
    impl Half for half::bf16 {}
    impl Half for half::f16 {}
}

/// A floating-point type of 16 bits in which rows of activations and the KV cache are stored: [`bf16`] or [`f16`](struct@f16).
///
/// Kernels compute in f32 and round results to the type, to nearest with ties to even. `f16` has 3 more bits of
/// precision and a smaller range: its largest finite number is 65504, results of at least 65520 round to infinity, as
/// in hardware, and numbers below 2⁻¹⁴ are subnormal and lose precision. All rows and caches of a launch have the same
/// type.
pub trait HalfFloat: Element + sealed::Half {
    /// Returns the name of the kernel for this type.
    #[doc(hidden)]
    fn name(names: Names) -> &'static str;
}

impl HalfFloat for bf16 {
    fn name(names: Names) -> &'static str {
        names.bf16
    }
}

impl HalfFloat for f16 {
    fn name(names: Names) -> &'static str {
        names.f16
    }
}

/// The names of a kernel that exists for both types.
#[doc(hidden)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Names {
    pub(super) bf16: &'static str,
    pub(super) f16: &'static str,
}

/// Returns the names of a kernel: the given name for bf16, and the name with a suffix for f16.
macro_rules! names {
    ($name:literal) => {
        $crate::kernels::half_float::Names { bf16: $name, f16: concat!($name, "_f16") }
    };
}
pub(super) use names;

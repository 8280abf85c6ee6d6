//! The types in which activations and the KV cache are stored.

use half::{bf16, f16};

use super::KernelError;
use super::operands::Operands;
use crate::runtime::{Element, View};

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

    /// Returns a view as a view of either type.
    #[doc(hidden)]
    fn either(view: View<'_, Self>) -> HalfView<'_>;
}

impl HalfFloat for bf16 {
    fn name(names: Names) -> &'static str {
        names.bf16
    }

    fn either(view: View<'_, Self>) -> HalfView<'_> {
        HalfView::Bf16(view)
    }
}

impl HalfFloat for f16 {
    fn name(names: Names) -> &'static str {
        names.f16
    }

    fn either(view: View<'_, Self>) -> HalfView<'_> {
        HalfView::F16(view)
    }
}

/// Elements of [`bf16`] or [`f16`](struct@f16) on the device, for operands whose type may differ from call to call.
#[derive(Debug)]
pub enum HalfView<'a> {
    /// Elements of bf16.
    Bf16(View<'a, bf16>),
    /// Elements of f16.
    F16(View<'a, f16>),
}

impl<'a, T: HalfFloat> From<View<'a, T>> for HalfView<'a> {
    fn from(view: View<'a, T>) -> Self {
        T::either(view)
    }
}

impl HalfView<'_> {
    /// Returns whether the elements are f16, or bf16.
    pub(super) fn is_f16(&self) -> bool {
        matches!(self, HalfView::F16(_))
    }

    /// Returns the name of the elements' type.
    pub(super) fn type_name(&self) -> &'static str {
        if self.is_f16() { "f16" } else { "bf16" }
    }

    /// Returns the pointer to the operand, as [`Operands::read`] does.
    pub(super) fn read(
        &self,
        operands: &mut Operands,
        operand: &'static str,
        expected: usize,
    ) -> Result<*const u16, KernelError> {
        match self {
            HalfView::Bf16(view) => Ok(operands.read(operand, view, expected, 16)?.cast()),
            HalfView::F16(view) => Ok(operands.read(operand, view, expected, 16)?.cast()),
        }
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

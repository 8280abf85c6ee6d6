//! Rows of logits, and the types in which logits are stored.

use half::{bf16, f16};

use super::edits::Edits;
use crate::runtime::{Element, View, ViewMut};

mod sealed {
    pub trait Sealed {}
    impl Sealed for f32 {}
    impl Sealed for half::bf16 {}
    impl Sealed for half::f16 {}
}

/// A type that logits are stored in: `f32`, `bf16` or `f16`. A logit beyond the range of `f16`, from 65520 on, is infinite.
pub trait Logit: Element + sealed::Sealed {
    #[doc(hidden)]
    const KERNELS: LogitKernels;
}

/// The kernels that correct logits of one type by a calibrator of one type.
#[doc(hidden)]
#[derive(Clone, Copy, Debug)]
pub struct CalibratedKernels {
    pub(super) small: &'static str,
    pub(super) large: &'static str,
}

/// The kernels that read logits of one type. The kernels that calibrate are `None` if there are none for calibrators of
/// bf16 or f16.
#[doc(hidden)]
#[derive(Clone, Copy, Debug)]
pub struct LogitKernels {
    pub(super) plain: &'static str,
    pub(super) with_bf16: Option<CalibratedKernels>,
    pub(super) with_f16: Option<CalibratedKernels>,
    pub(super) finish: &'static str,
    pub(in crate::kernels) accept: &'static str,
    pub(in crate::kernels) block_sums: &'static str,
    pub(in crate::kernels) chain_choose: &'static str,
    pub(in crate::kernels) chain_score: &'static str,
}

impl Logit for f32 {
    const KERNELS: LogitKernels = LogitKernels {
        plain: "sample_rows_f32",
        with_bf16: Some(CalibratedKernels {
            small: "calibrated_sample_f32_64x16",
            large: "calibrated_sample_f32_128x64",
        }),
        with_f16: Some(CalibratedKernels {
            small: "calibrated_sample_f32_64x16_f16",
            large: "calibrated_sample_f32_128x64_f16",
        }),
        finish: "sample_finish_f32",
        accept: "accept_f32",
        block_sums: "accept_block_sums_f32",
        chain_choose: "chain_choose_f32",
        chain_score: "chain_score_f32",
    };
}

impl Logit for bf16 {
    const KERNELS: LogitKernels = LogitKernels {
        plain: "sample_rows_bf16",
        with_bf16: Some(CalibratedKernels {
            small: "calibrated_sample_bf16_64x16",
            large: "calibrated_sample_bf16_128x64",
        }),
        with_f16: None,
        finish: "sample_finish_bf16",
        accept: "accept_bf16",
        block_sums: "accept_block_sums_bf16",
        chain_choose: "chain_choose_bf16",
        chain_score: "chain_score_bf16",
    };
}

impl Logit for f16 {
    const KERNELS: LogitKernels = LogitKernels {
        plain: "sample_rows_f16",
        with_bf16: None,
        with_f16: Some(CalibratedKernels {
            small: "calibrated_sample_f16_64x16_f16",
            large: "calibrated_sample_f16_128x64_f16",
        }),
        finish: "sample_finish_f16",
        accept: "accept_f16",
        block_sums: "accept_block_sums_f16",
        chain_choose: "chain_choose_f16",
        chain_score: "chain_score_f16",
    };
}

/// Rows of logits `[logit_rows, stride]`, aligned to 16 bytes, that sampling reads or also replaces.
#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "a launch has one")]
pub enum LogitRows<'a, L> {
    /// The logits, which sampling only reads. Calibrated logits are not stored.
    Read(View<'a, L>),
    /// The logits, which the calibrated logits replace. Needed if the acceptance rule compares distributions, or if a
    /// row with a calibrator asks for top-k, top-p or min-p.
    Update(ViewMut<'a, L>),
    /// The logits, which edited logits replace before anything else reads them. Not with a calibration.
    Edit(ViewMut<'a, L>, Edits<'a>),
}

impl<L: Element> LogitRows<'_, L> {
    /// Returns the number of elements of the logits.
    pub(super) fn len(&self) -> usize {
        match self {
            LogitRows::Read(view) => view.len(),
            LogitRows::Update(view) | LogitRows::Edit(view, _) => view.len(),
        }
    }
}

//! The last layer of the calibrator, and the shape of the kernel that applies it.

use super::logits::{CalibratedKernels, Logit};
use crate::kernels::params::shapes::*;
use crate::kernels::{HalfView, KernelError};
use crate::runtime::View;

/// The calibrator's last layer, and its input. Hidden layer and weight have one type, bf16 or f16; logits of 16 bits have
/// the same type.
#[derive(Debug)]
pub struct Calibration<'a> {
    /// The rank r of the calibrator, a multiple of 8.
    pub rank: usize,
    /// The calibrator's hidden layer u = silu(W1 \[embed(b); h] + b1), `[rows, r]`, aligned to 16 bytes.
    pub hidden: HalfView<'a>,
    /// The weight W2 of the last layer, `[vocab, r]`, aligned to 16 bytes.
    pub weight: HalfView<'a>,
    /// The bias b2 of the last layer, `[vocab]`.
    pub bias: Option<View<'a, f32>>,
}

impl Calibration<'_> {
    /// Returns the kernels that calibrate logits of type `L` with this calibrator.
    pub(super) fn kernels<L: Logit>(&self, kernel: &'static str) -> Result<CalibratedKernels, KernelError> {
        let wrong = |operand, found: &HalfView<'_>, expected| {
            Err(KernelError::Type { kernel, operand, expected, found: found.type_name() })
        };
        if self.weight.is_f16() != self.hidden.is_f16() {
            return wrong("weight", &self.weight, self.hidden.type_name());
        }
        match (self.hidden.is_f16(), L::KERNELS.with_bf16, L::KERNELS.with_f16) {
            (false, Some(kernels), _) | (true, _, Some(kernels)) => Ok(kernels),
            (false, None, _) => wrong("hidden", &self.hidden, "f16, the type of the logits"),
            (true, _, None) => wrong("hidden", &self.hidden, "bf16, the type of the logits"),
        }
    }
}

/// A tile shape of the kernel that calibrates logits: `FlexdraftCalibratedShape` of `cuda/common/shapes.h`.
#[derive(Clone, Copy, Debug)]
pub(super) struct CalibratedShape {
    pub kernel: fn(&CalibratedKernels) -> &'static str,
    /// The number of token ids per CTA.
    pub tile: usize,
    pub threads: u32,
    /// The shared memory in bytes without slices of the rank, and the bytes per slice.
    fixed: u32,
    slice: u32,
}

/// The small shape, with 64 token ids by 16 rows per CTA.
const SMALL: CalibratedShape = CalibratedShape {
    kernel: |kernels| kernels.small,
    tile: FLEXDRAFT_SMALL_TILE as usize,
    threads: 32 * FLEXDRAFT_SMALL_WARPS_ACROSS_TILE * FLEXDRAFT_SMALL_WARPS_ACROSS_ROWS,
    fixed: FLEXDRAFT_SMALL_SHARED,
    slice: FLEXDRAFT_SMALL_SLICE_SHARED,
};
/// The large shape, with 128 token ids by 64 rows per CTA.
const LARGE: CalibratedShape = CalibratedShape {
    kernel: |kernels| kernels.large,
    tile: FLEXDRAFT_LARGE_TILE as usize,
    threads: 32 * FLEXDRAFT_LARGE_WARPS_ACROSS_TILE * FLEXDRAFT_LARGE_WARPS_ACROSS_ROWS,
    fixed: FLEXDRAFT_LARGE_SHARED,
    slice: FLEXDRAFT_LARGE_SLICE_SHARED,
};

impl CalibratedShape {
    /// Returns the shared memory of a CTA in bytes: its part of W2, the ring of u, and the corrections in f32.
    fn shared_bytes(self, rank: usize) -> Option<u32> {
        let slices = u32::try_from(rank.div_ceil(FLEXDRAFT_SLICE as usize)).ok()?;
        slices.checked_mul(self.slice)?.checked_add(self.fixed)
    }

    /// Returns a tile shape and its shared memory in bytes: the large shape if there are many rows and it fits into
    /// `allowed` bytes, otherwise the small shape. Both give the same bits. `None` if the size overflows.
    pub fn choose(rows: usize, rank: usize, allowed: u32) -> Option<(Self, u32)> {
        let large = LARGE.shared_bytes(rank).filter(|&bytes| bytes <= allowed);
        match large {
            Some(bytes) if rows > FLEXDRAFT_SMALL_ROWS as usize => Some((LARGE, bytes)),
            _ => Some((SMALL, SMALL.shared_bytes(rank)?)),
        }
    }
}

#[cfg(test)]
mod tests {
    use half::bf16;

    use super::*;

    #[test]
    fn the_shape_of_a_calibrated_pass() {
        let chosen = |rows, rank, kib: u32| {
            CalibratedShape::choose(rows, rank, kib << 10)
                .map(|(shape, bytes)| ((shape.kernel)(&bf16::KERNELS.with_bf16.unwrap()), bytes))
        };
        let small = |bytes| Some(("calibrated_sample_bf16_64x16", bytes));
        let large = |bytes| Some(("calibrated_sample_bf16_128x64", bytes));
        // Up to 64 rows, such as the 15 draft slots of each of 1 or 4 sequences, take the small shape, at the rank of
        // the released drafters.
        for kib in [99, 163, 227] {
            assert_eq!([15, 60, 64].map(|rows| chosen(rows, 512, kib)), [small(84_736); 3], "{kib} KiB");
        }
        assert_eq!(
            [99, 163, 227].map(|kib| chosen(65, 512, kib)),
            [small(84_736), small(84_736), large(203_776)]
        );
        assert_eq!(
            [99, 163, 227].map(|kib| chosen(960, 256, kib)),
            [small(51_968), large(138_240), large(138_240)]
        );
        // A rank that fills its last slice in part needs the memory of the whole slice.
        assert_eq!(chosen(1, 8, 99), small(27_392));
        assert_eq!(chosen(1, usize::MAX, 227), None);
    }
}

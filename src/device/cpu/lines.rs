//! Vectors of f32 aligned to cache lines: a load of sixteen values then touches one line instead of two.

use std::collections::TryReserveError;
use std::ops::{Deref, DerefMut};

use bytemuck::{Pod, Zeroable};

/// The sixteen values of a cache line.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C, align(64))]
struct Line([f32; 16]);

/// A vector of values that starts at the beginning of a cache line.
#[derive(Clone, Debug, Default)]
pub(super) struct Lines {
    lines: Vec<Line>,
    len: usize,
}

impl Lines {
    /// Makes a vector of `len` zeros.
    pub(super) fn zeros(len: usize) -> Self {
        Lines { lines: vec![Line::zeroed(); len.div_ceil(16)], len }
    }

    /// Sets the number of values. Existing values stay; new values are 0.
    pub(super) fn try_resize(&mut self, len: usize) -> Result<(), TryReserveError> {
        let kept = self.len.min(len);
        let lines = len.div_ceil(16);
        self.lines.try_reserve(lines.saturating_sub(self.lines.len()))?;
        self.lines.resize(lines, Line::zeroed());
        self.len = len;
        // The rest of the last kept cache line may still hold values that an earlier, shorter length cut off.
        let end = len.min(kept.next_multiple_of(16));
        self[kept..end].fill(0.0);
        Ok(())
    }
}

impl Deref for Lines {
    type Target = [f32];

    #[inline]
    fn deref(&self) -> &[f32] {
        &bytemuck::cast_slice(&self.lines)[..self.len]
    }
}

impl DerefMut for Lines {
    #[inline]
    fn deref_mut(&mut self) -> &mut [f32] {
        &mut bytemuck::cast_slice_mut(&mut self.lines)[..self.len]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_stay_and_new_ones_are_zero() {
        let mut values = Lines::zeros(3);
        values.copy_from_slice(&[1.0, 2.0, 3.0]);
        for len in [40, 2, 5, 0, 17] {
            let before: Vec<f32> = values.to_vec();
            values.try_resize(len).unwrap();
            let mut expected = before;
            expected.resize(len, 0.0);
            assert_eq!(values[..], expected[..]);
            assert!((values.as_ptr() as usize).is_multiple_of(64));
            values.fill(7.0);
        }
        assert!(values.try_resize(usize::MAX).is_err());
        assert_eq!(values.len(), 17);
    }
}

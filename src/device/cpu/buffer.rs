//! Activation buffers and weight vectors of the CPU device.

use std::ops::Range;

use super::lines::Lines;
use super::product::Matrix;
use crate::device::{DeviceError, Precision};

impl Precision {
    /// Rounds `value` to the precision in which it is stored.
    #[inline]
    pub(crate) fn round(self, value: f32) -> f32 {
        match self {
            Self::F32 | Self::Q8 => value,
            Self::Bf16 => round_to_bf16(value),
        }
    }

    /// Rounds values in place to the precision in which they are stored.
    pub(super) fn round_all(self, values: &mut [f32]) {
        if self == Self::Bf16 {
            values.iter_mut().for_each(|value| *value = round_to_bf16(*value));
        }
    }
}

/// Returns the bf16 nearest to `value`, ties to even, like [`half::bf16::from_f32`]. The function has no
/// branches, so that the compiler vectorises a loop over values.
#[inline]
fn round_to_bf16(value: f32) -> f32 {
    const KEPT: u32 = 0xffff_0000;
    let bits = value.to_bits();
    let rounded = bits.wrapping_add(0x7fff + (bits >> 16 & 1)) & KEPT;
    // A NaN must stay a NaN: rounding could carry into any bit, and a NaN's upper bits alone could be an
    // infinity.
    let quiet = bits & KEPT | 0x0040_0000;
    f32::from_bits(if value.is_nan() { quiet } else { rounded })
}

/// Activations [rows, cols], row-major, held as f32 and rounded as they are stored.
#[derive(Debug)]
pub struct CpuBuffer {
    data: Lines,
    rows: usize,
    cols: usize,
    precision: Precision,
}

impl CpuBuffer {
    /// Makes an empty buffer [0, cols] whose values are rounded to `precision`.
    pub(super) fn new(cols: usize, precision: Precision) -> Self {
        Self { data: Lines::default(), rows: 0, cols, precision }
    }

    /// Returns the number of rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Returns the number of values per row.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Returns the precision to which values are rounded when they are stored.
    pub fn precision(&self) -> Precision {
        self.precision
    }

    /// Returns row `row`, or `None` if the buffer has fewer rows.
    pub fn row(&self, row: usize) -> Option<&[f32]> {
        if row >= self.rows {
            return None;
        }
        self.data.get(row * self.cols..(row + 1) * self.cols)
    }

    /// Sets the number of rows. Existing rows keep their contents; new rows are 0.
    pub(super) fn resize(&mut self, rows: usize) -> Result<(), DeviceError> {
        let len = rows.checked_mul(self.cols);
        let size = len.and_then(|len| Some((len, len.checked_mul(size_of::<f32>())?)));
        let (len, bytes) =
            size.ok_or(DeviceError::Overflow { operation: "resize", operand: "activations" })?;
        let out_of_memory = DeviceError::OutOfMemory { what: "activations", bytes };
        self.data.try_resize(len).map_err(|_| out_of_memory)?;
        self.rows = rows;
        Ok(())
    }

    /// Returns the rows in `range`, which lies within the buffer, as a matrix.
    pub(super) fn matrix(&self, range: Range<usize>) -> Matrix<'_, f32> {
        let elements = &self.data[range.start * self.cols..range.end * self.cols];
        Matrix { elements, stride: self.cols, rows: range.len(), cols: self.cols }
    }

    /// Iterates over the rows in `range`, which lies within the buffer; no rows if there are no columns.
    pub(super) fn rows_in(&self, range: Range<usize>) -> impl ExactSizeIterator<Item = &[f32]> {
        // A buffer without columns has no data, whatever its number of rows.
        self.data[range.start * self.cols..range.end * self.cols].chunks_exact(self.cols.max(1))
    }

    /// Iterates over the rows in `range`, which lies within the buffer, mutably; no rows if there are no
    /// columns.
    pub(super) fn rows_in_mut(&mut self, range: Range<usize>) -> impl ExactSizeIterator<Item = &mut [f32]> {
        self.data[range.start * self.cols..range.end * self.cols].chunks_exact_mut(self.cols.max(1))
    }
}

/// A vector of weights in f32.
#[derive(Clone, Debug, PartialEq)]
pub struct CpuVector(pub(super) Vec<f32>);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resizing_keeps_rows() {
        let mut buffer = CpuBuffer::new(3, Precision::F32);
        assert_eq!(buffer.row(0), None);
        buffer.resize(2).unwrap();
        buffer.rows_in_mut(1..2).for_each(|row| row.copy_from_slice(&[1.0, 2.0, 3.0]));
        buffer.resize(5).unwrap();
        assert_eq!((buffer.rows(), buffer.row(1)), (5, Some(&[1.0, 2.0, 3.0][..])));
        buffer.resize(2).unwrap();
        assert_eq!((buffer.row(1), buffer.row(2)), (Some(&[1.0, 2.0, 3.0][..]), None));
    }

    #[test]
    fn memory_that_cannot_be_had_is_an_error() {
        let mut buffer = CpuBuffer::new(1 << 40, Precision::F32);
        let error = buffer.resize(1 << 20).unwrap_err();
        assert_eq!(error, DeviceError::OutOfMemory { what: "activations", bytes: 1 << 62 });
        let error = buffer.resize(usize::MAX).unwrap_err();
        assert_eq!(error, DeviceError::Overflow { operation: "resize", operand: "activations" });
        assert_eq!(buffer.rows(), 0);
    }

    #[test]
    fn bf16_rounds_to_nearest_even() {
        let one = |bits: u32| f32::from_bits(0x3f80_0000 + bits);
        let round = |x| Precision::Bf16.round(x);
        assert_eq!(round(one(0x7fff)), one(0));
        assert_eq!(round(one(0x8000)), one(0));
        assert_eq!(round(one(0x8001)), one(0x1_0000));
        assert_eq!(round(one(0x1_8000)), one(0x2_0000));
        assert_eq!(Precision::F32.round(one(0x7fff)), one(0x7fff));
        let mut values = [one(1), -one(0x8001)];
        Precision::Bf16.round_all(&mut values);
        assert_eq!(values, [1.0, -one(0x1_0000)]);
    }

    #[test]
    fn rounding_agrees_with_half() {
        // The test covers every sign, exponent and kept digit, with every pattern of the remaining digits
        // that affects rounding.
        for high in 0..=0xffffu32 {
            for low in [0, 1, 0x7fff, 0x8000, 0x8001, 0xffff] {
                let value = f32::from_bits(high << 16 | low);
                let expected = half::bf16::from_f32(value).to_f32();
                assert_eq!(round_to_bf16(value).to_bits(), expected.to_bits(), "{value:?}");
            }
        }
    }

    #[test]
    fn a_buffer_without_columns_has_rows() {
        let mut buffer = CpuBuffer::new(0, Precision::F32);
        buffer.resize(4).unwrap();
        assert_eq!((buffer.rows(), buffer.row(3), buffer.row(4)), (4, Some(&[][..]), None));
        assert_eq!(buffer.rows_in(0..4).len(), 0);
    }
}

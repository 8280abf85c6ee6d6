//! Activations that are rounded to 8 bits, for products with quantised weights.
//!
//! A row is divided into groups of 256 values; the last group may be shorter. A value x of a group is rounded to
//! scale · q with scale = max |x| / 127 and an integer q from −127 to 127, to nearest, ties to even. The integers of a row
//! depend on the values of its own group only.

use super::product::{Matrix, WeightRows};
use super::simd::{BYTES, Kernel, LANES, Simd, Vectors};

/// Number of values with a common scale.
pub(super) const GROUP: usize = 256;

/// Number of vectors of bytes in a group.
pub(super) const CHUNKS: usize = GROUP / BYTES;

/// A scale is 0, and so are all integers of its group, if no value exceeds this bound: the reciprocal of the scale would
/// overflow.
const SMALLEST: f32 = 1e-30;

/// A group of values that are rounded to 8 bits.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
pub(super) struct Group {
    /// The integers as signed bytes; 0 beyond the end of the row.
    pub(super) quants: [[u8; BYTES]; CHUNKS],
    /// The integers plus 128, as unsigned bytes.
    pub(super) plus_128: [[u8; BYTES]; CHUNKS],
    /// The sum of every 16 integers in a row.
    pub(super) sums: [f32; LANES],
    /// NaN if a value of the group is infinite or NaN.
    pub(super) scale: f32,
}

/// The rows of a matrix, rounded to 8 bits.
#[derive(Debug, Default)]
pub(super) struct RoundedRows {
    groups: Vec<Group>,
    groups_per_row: usize,
}

impl RoundedRows {
    /// Rounds every row of `x`.
    pub(super) fn new(vectors: Vectors, x: &Matrix<'_, f32>) -> Self {
        let groups_per_row = x.cols.div_ceil(GROUP);
        Self { groups: vectors.run(Round { x }), groups_per_row }
    }

    /// Returns the number of bytes of a row that a product reads: it needs the integers in one of their two forms.
    pub(super) fn row_bytes(&self) -> usize {
        self.groups_per_row * (size_of::<Group>() - GROUP)
    }

    pub(super) fn row(&self, index: usize) -> &[Group] {
        self.groups
            .get(index * self.groups_per_row..)
            .and_then(|rows| rows.get(..self.groups_per_row))
            .unwrap_or(&[])
    }
}

struct Round<'a> {
    x: &'a Matrix<'a, f32>,
}

impl Kernel for Round<'_> {
    type Output = Vec<Group>;

    #[inline(always)]
    fn run<S: Simd>(self, _: S) -> Vec<Group> {
        let mut groups = Vec::with_capacity(self.x.rows * self.x.cols.div_ceil(GROUP));
        for row in 0..self.x.rows {
            for values in self.x.row(row).chunks(GROUP) {
                let mut padded = [0.0; GROUP];
                padded[..values.len()].copy_from_slice(values);
                groups.push(round(&padded));
            }
        }
        groups
    }
}

/// Rounds the values of a group.
#[inline(always)]
fn round(values: &[f32; GROUP]) -> Group {
    /// A number below 2²² plus this number is rounded to an integer, ties to even.
    const TO_INTEGER: f32 = 1.5 * (1 << 23) as f32;
    let mut largest = [0.0f32; LANES];
    let mut finite = true;
    for values in values.as_chunks::<LANES>().0 {
        for (largest, value) in largest.iter_mut().zip(values) {
            *largest = if value.abs() > *largest { value.abs() } else { *largest };
            finite &= value.is_finite();
        }
    }
    let largest = largest.into_iter().fold(0.0, f32::max);
    let usable = finite && largest > SMALLEST;
    let factor = if usable { 127.0 / largest } else { 0.0 };
    let integers = [[0; BYTES]; CHUNKS];
    let mut group = Group { quants: integers, plus_128: integers, sums: [0.0; LANES], scale: 0.0 };
    for (values, quants) in values.as_chunks::<BYTES>().0.iter().zip(&mut group.quants) {
        for (value, quant) in values.iter().zip(quants) {
            let rounded = (value * factor + TO_INTEGER) - TO_INTEGER;
            *quant = (rounded as i32 as i8).cast_unsigned();
        }
    }
    for (plus_128, quant) in group.plus_128.as_flattened_mut().iter_mut().zip(group.quants.as_flattened()) {
        *plus_128 = quant.wrapping_add(128);
    }
    let sixteens = group.quants.as_flattened().as_chunks::<16>().0;
    for (sum, quants) in group.sums.iter_mut().zip(sixteens) {
        *sum = quants.iter().map(|quant| i32::from(quant.cast_signed())).sum::<i32>() as f32;
    }
    group.scale = match (finite, usable) {
        (false, _) => f32::NAN,
        (true, false) => 0.0,
        (true, true) => largest / 127.0,
    };
    group
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rounded(values: &[f32]) -> Vec<Group> {
        let x = Matrix { elements: values, stride: values.len(), rows: 1, cols: values.len() };
        let rows = RoundedRows::new(Vectors::fastest(), &x);
        rows.row(0).to_vec()
    }

    fn quants(group: &Group) -> Vec<i8> {
        group.quants.as_flattened().iter().map(|quant| quant.cast_signed()).collect()
    }

    #[test]
    fn values_are_rounded_to_the_nearest_multiple_of_their_group_s_scale() {
        let mut values = vec![0.5; 300];
        (values[0], values[1], values[2], values[255], values[299]) = (127.0, -126.5, -2.5, 1.5, -4.0);
        let groups = rounded(&values);
        assert_eq!((groups.len(), groups[0].scale, groups[1].scale), (2, 1.0, 4.0 / 127.0));
        // Ties go to the even integer.
        assert_eq!(quants(&groups[0])[..4], [127, -126, -2, 0]);
        assert_eq!(quants(&groups[0])[255], 2);
        assert_eq!(groups[0].plus_128[0][..4], [255, 2, 126, 128]);
        assert_eq!(groups[0].sums[0], -1.0);
        assert_eq!(quants(&groups[1])[42..45], [16, -127, 0]);
        assert_eq!(groups[1].sums[1..4], [16.0 * 16.0, 11.0 * 16.0 - 127.0, 0.0]);
    }

    #[test]
    fn what_cannot_be_rounded_is_nan_and_what_is_too_small_is_zero() {
        for odd in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut values = vec![1.0; 512];
            values[300] = odd;
            let groups = rounded(&values);
            assert!(groups[0].scale == 1.0 / 127.0 && groups[1].scale.is_nan(), "{odd}");
        }
        for tiny in [0.0, 1e-30, -1e-40] {
            let groups = rounded(&[tiny; 256]);
            assert_eq!((groups[0].scale, quants(&groups[0])), (0.0, vec![0; 256]));
        }
    }
}

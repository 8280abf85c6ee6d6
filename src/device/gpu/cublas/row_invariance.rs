//! Checks whether an algorithm gives a row the same bits at every row count and in every place of a product.
//!
//! This file does not depend on cuBLASLt: a [`ProductTrial`] runs the algorithms, on a GPU or, in the tests,
//! simulated.

use std::ops::Range;

use super::buckets;
use super::trial_data::PERIOD;

/// The operands on which algorithms are tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum TrialOperands {
    /// Activations whose products with the weights cancel in the sum, so that the order of summation shows;
    /// only a slice of the output ids is computed.
    Cancelling,
    /// Activations that are noise of all magnitudes, on the same slice of output ids.
    Noise,
    /// The same noise, multiplied by the model's own weights in their full width.
    Model,
}

/// The algorithms for the products of one shape, with the means to run them.
pub(super) trait ProductTrial {
    /// An error that ends the trial. An algorithm that cannot compute a product is not an error.
    type Error;

    /// Returns the number of algorithms, which are ordered with the most promising ones first.
    fn algorithms(&self) -> usize;

    /// Returns the maximum number of rows of a product for which memory was allocated.
    fn most_rows(&self, operands: TrialOperands) -> usize;

    /// Computes products of ranges of rows of x, which repeat after [`PERIOD`] rows, and passes each row of
    /// the results to `accept`: its index in the period, and its bits. Returns whether the algorithm computed
    /// all products and `accept` returned true for every row; stops at the first failure.
    fn multiply(
        &mut self,
        operands: TrialOperands,
        algorithm: usize,
        products: &[Range<usize>],
        accept: &mut dyn FnMut(usize, &[u8]) -> bool,
    ) -> Result<bool, Self::Error>;

    /// Returns the seconds of a product of the model's own weights; `None` if the algorithm cannot compute
    /// it.
    fn seconds(&mut self, algorithm: usize, rows: usize) -> Result<Option<f32>, Self::Error>;

    /// Returns the seconds since the trial began.
    fn elapsed(&self) -> f32;
}

/// The bits of the result of each row of x; x repeats after [`PERIOD`] rows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct RowBits(Vec<Vec<u8>>);

impl RowBits {
    /// Returns whether the result of row `row` of the period has the bits `bits`.
    fn has(&self, row: usize, bits: &[u8]) -> bool {
        self.0.get(row).is_some_and(|expected| expected == bits)
    }
}

/// Returns the bits that an algorithm gives each row in products of `rows` rows; `None` if the algorithm
/// cannot compute the products, or gives a row different bits in two products.
pub(super) fn row_bits<T: ProductTrial>(
    trial: &mut T,
    operands: TrialOperands,
    algorithm: usize,
    rows: usize,
) -> Result<Option<RowBits>, T::Error> {
    let rows = rows.max(1);
    let products: Vec<_> = (0..PERIOD).step_by(rows).map(|first| first..first + rows).collect();
    let mut found = vec![None; PERIOD];
    let same = trial.multiply(operands, algorithm, &products, &mut |row, bits| match found.get_mut(row) {
        Some(Some(earlier)) => *earlier == bits,
        Some(first) => {
            *first = Some(bits.to_vec());
            true
        }
        None => false,
    })?;
    let rows: Option<Vec<Vec<u8>>> = found.into_iter().collect();
    Ok(rows.filter(|_| same).map(RowBits))
}

/// Returns whether an algorithm gives every row of `products` the bits in `expected`.
pub(super) fn agrees<T: ProductTrial>(
    trial: &mut T,
    operands: TrialOperands,
    algorithm: usize,
    products: &[Range<usize>],
    expected: &RowBits,
) -> Result<bool, T::Error> {
    trial.multiply(operands, algorithm, products, &mut |row, bits| expected.has(row, bits))
}

/// Returns the row counts at which algorithms are tried in a bucket: all row counts of a small bucket; in a
/// large bucket, the row counts around the edges of tiles.
fn counts(bucket: usize) -> Vec<usize> {
    let rows = buckets::rows_of(bucket);
    let (first, last) = (*rows.start(), *rows.end());
    if last <= 64 {
        return rows.collect();
    }
    let step = |rows: usize| {
        if rows < 256 {
            8
        } else if rows < 512 {
            64
        } else {
            256
        }
    };
    let edges = std::iter::successors(Some(step(first)), |&edge| Some(edge + step(edge)));
    let edges = edges.take_while(|&edge| edge <= last).flat_map(|edge| [edge - 1, edge, edge + 1]);
    let mut counts: Vec<usize> = edges.chain([first, last]).filter(|count| rows.contains(count)).collect();
    counts.sort_unstable();
    counts.dedup();
    counts
}

/// Returns the products with which an algorithm is tried thoroughly in a bucket: many row counts, each
/// starting at another row.
pub(super) fn products(bucket: usize) -> Vec<Range<usize>> {
    if bucket == 0 {
        return (0..PERIOD).map(|row| row..row + 1).collect();
    }
    let shifted = |(index, rows): (usize, usize)| {
        let first = index * 5 % PERIOD;
        first..first + rows
    };
    counts(bucket).into_iter().enumerate().map(shifted).collect()
}

/// Returns a few products of a bucket with at most `most` rows: the smallest product, and the largest product
/// from two first rows of x.
pub(super) fn few_products(bucket: usize, most: usize) -> Vec<Range<usize>> {
    if bucket == 0 {
        return (0..PERIOD).step_by(6).map(|row| row..row + 1).collect();
    }
    let rows = buckets::rows_of(bucket);
    let last = (*rows.end()).min(most);
    let products = [0..*rows.start(), 0..last, 5..5 + last];
    products.into_iter().filter(|product| rows.contains(&product.len()) && product.len() <= most).collect()
}

/// Returns products of `rows` rows that start at each row of the period: every row occurs in every place of
/// the product.
pub(super) fn shifted_products(rows: usize) -> Vec<Range<usize>> {
    (0..PERIOD).map(|first| first..first + rows).collect()
}

/// Returns the number of rows of x that all products of the first `buckets` buckets need.
pub(super) fn rows_of_x(buckets: usize) -> usize {
    *buckets::rows_of(buckets.saturating_sub(1)).end() + PERIOD
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_buckets_are_tried_at_every_count_and_large_ones_at_edges() {
        for rows in 1..=64 {
            assert!(products(buckets::bucket_of(rows)).iter().any(|product| product.len() == rows), "{rows}");
        }
        for rows in [65, 71, 72, 73, 127, 128, 129, 255, 256, 257, 319, 320, 321, 511, 513, 1025, 2047, 2048]
        {
            assert!(products(buckets::bucket_of(rows)).iter().any(|product| product.len() == rows), "{rows}");
        }
        for bucket in 0..buckets::COUNT {
            for product in [products(bucket), few_products(bucket, usize::MAX)].concat() {
                assert!(buckets::rows_of(bucket).contains(&product.len()), "{product:?}");
                assert!(product.end <= rows_of_x(bucket + 1), "{product:?}");
            }
            assert!(
                shifted_products(*buckets::rows_of(bucket).end())
                    .iter()
                    .all(|p| p.end <= rows_of_x(bucket + 1))
            );
        }
    }

    #[test]
    fn products_that_do_not_fit_are_left_out() {
        assert_eq!(few_products(3, 100), [0..65, 0..100, 5..105]);
        assert!(few_products(3, 64).is_empty());
        assert!(few_products(0, 1).iter().all(|product| product.len() == 1));
    }
}

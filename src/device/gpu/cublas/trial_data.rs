//! Numbers on which algorithms are tried: their sums reveal the order of the terms.
//!
//! The order of summation changes the last bits of an f32 sum, and rounding to bf16 hides these in nearly
//! every element of a product of noise. The trial's weights are therefore palindromes along K
//! (`w[K−1−k] = w[k]`), and its rows are antisymmetric (`x[K−1−k] = −x[k]`). The terms cancel, and the remainder is the
//! rounding of the partial sums, all of whose bits depend on the order. A few elements have no counterpart,
//! so that the exact sum is not zero: an order that cancels terms in pairs would otherwise round nothing.

use half::bf16;

/// Number of rows after which x repeats: a prime, so that no two tiles begin with the same row.
pub(super) const PERIOD: usize = 67;

/// Number of elements of a cancelling row whose terms no other element cancels.
const UNPAIRED: usize = 4;

/// A stream of random numbers (splitmix64).
#[derive(Clone, Debug)]
struct Random(u64);

impl Random {
    /// Makes stream `stream` of a seed; the streams of a seed share no numbers.
    fn new(seed: u64, stream: u64) -> Self {
        Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ stream << 32)
    }

    fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ mixed >> 31
    }

    /// Returns a number in −1..1, rounded to bf16.
    fn signed(&mut self) -> bf16 {
        bf16::from_f32((self.bits() >> 40) as f32 / (1u32 << 23) as f32 - 1.0)
    }
}

/// Returns weights `[ids, cols]`, whose rows read the same forwards and backwards.
pub(super) fn weights(seed: u64, ids: usize, cols: usize) -> Vec<bf16> {
    let mut random = Random::new(seed, 1);
    let mut weights = vec![bf16::ZERO; ids * cols];
    for row in weights.chunks_exact_mut(cols.max(1)) {
        for k in 0..cols.div_ceil(2) {
            let value = random.signed();
            (row[k], row[cols - 1 - k]) = (value, value);
        }
    }
    weights
}

/// Returns [`PERIOD`] rows `[PERIOD, cols]` whose products with [`weights`] cancel, except for a few small elements.
pub(super) fn cancelling(seed: u64, cols: usize) -> Vec<bf16> {
    let mut random = Random::new(seed, 2);
    // The small elements are about 32 units in the last place of the partial sums: rounding does not lose them, and
    // the remainder in total has a similar size.
    let small = (cols as f32).sqrt() / (1u32 << 20) as f32;
    let mut rows = vec![bf16::ZERO; PERIOD * cols];
    for row in rows.chunks_exact_mut(cols.max(1)) {
        for k in 0..cols / 2 {
            let value = random.signed();
            (row[k], row[cols - 1 - k]) = (value, -value);
        }
        for _ in 0..UNPAIRED.min(cols / 4) {
            let k = (random.bits() % (cols as u64 / 2)) as usize;
            row[k] = bf16::from_f32(small * (1.0 + random.signed().to_f32().abs()));
            row[cols - 1 - k] = bf16::ZERO;
        }
    }
    rows
}

/// Returns [`PERIOD`] rows `[PERIOD, cols]` of noise, each with its own scale, so that sums have all
/// magnitudes.
pub(super) fn noise(seed: u64, cols: usize) -> Vec<bf16> {
    let mut random = Random::new(seed, 3);
    let mut rows = vec![bf16::ZERO; PERIOD * cols];
    for (row, values) in rows.chunks_exact_mut(cols.max(1)).enumerate() {
        let scale = 2f32.powi((row % 13) as i32 - 6);
        values.fill_with(|| bf16::from_f32(scale * random.signed().to_f32()));
    }
    rows
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn terms_cancel_but_for_a_few() {
        for cols in [8usize, 9, 576, 4096] {
            let (w, x) = (weights(5, 3, cols), cancelling(5, cols));
            let mut left = 0;
            for w in w.chunks_exact(cols) {
                assert!(w.iter().eq(w.iter().rev()));
                for x in x.chunks_exact(cols) {
                    let term = |k: usize| w[k].to_f64() * x[k].to_f64();
                    let largest = (0..cols).map(|k| term(k).abs()).fold(0.0, f64::max);
                    let sum = (0..cols).map(term).sum::<f64>().abs();
                    assert!(sum < 1e-3 * largest.max(0.5), "{cols}: {sum} of {largest}");
                    left += usize::from(sum > 0.0);
                }
            }
            assert!(left > 2 * PERIOD, "{cols}: {left}");
        }
    }

    #[test]
    fn rows_and_seeds_differ() {
        let rows = noise(1, 64);
        let mut rows: Vec<Vec<u16>> = rows
            .chunks(64)
            .chain(noise(2, 64).chunks(64))
            .map(|row| row.iter().map(|x| x.to_bits()).collect())
            .collect();
        rows.sort();
        rows.dedup();
        assert_eq!(rows.len(), 2 * PERIOD);
    }

    #[test]
    fn no_columns() {
        assert!(weights(1, 3, 0).is_empty() && cancelling(1, 0).is_empty() && noise(1, 0).is_empty());
        assert_eq!(cancelling(1, 1), [bf16::ZERO; PERIOD]);
    }
}

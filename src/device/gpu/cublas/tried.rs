//! Which products an algorithm is tried with, and how their rows are compared.

use std::ops::Range;

use half::bf16;

/// Numbers of rows around the edges of tiles, and those of a part of a prompt.
const ROWS: [usize; 16] = [1, 2, 7, 8, 9, 16, 17, 33, 64, 65, 127, 128, 129, 255, 257, 512];

/// Rows of noise are repeated after so many, a prime, so that no tile begins with the same one as the last; each has
/// a place in the reference.
pub(super) const PERIOD: usize = 257;

/// Where the rows of a product begin among those of noise: at the beginning, and where every row has another place in
/// its tile.
const SHIFTS: [usize; 2] = [0, 5];

/// Rows of noise that products of up to `most` rows need.
pub(super) fn noise_rows(most: usize) -> usize {
    most.max(PERIOD) + SHIFTS[1]
}

/// The rows of noise of every product that is tried, for products of up to `most` rows.
pub(super) fn products(most: usize) -> Vec<Range<usize>> {
    let mut counts: Vec<usize> = ROWS.into_iter().filter(|&rows| rows < most).collect();
    counts.push(most);
    // A single row of anywhere: what a token decoded alone has.
    let alone = [PERIOD / 2, PERIOD - 1].map(|row| row..row + 1);
    let shifted = |rows| SHIFTS.map(|first| first..first + rows);
    alone.into_iter().chain(counts.into_iter().flat_map(shifted)).collect()
}

/// Which rows of a product are compared: all of a small one, and of a large one its first, middle and last tiles.
pub(super) fn compared(rows: usize) -> Vec<Range<usize>> {
    const PART: usize = 128;
    match rows {
        0..=512 => std::iter::once(0..rows).collect(),
        _ => vec![0..PART, rows / 2..rows / 2 + PART, rows - PART - 1..rows],
    }
}

/// Whether rows `found`, of which the first had row `first` of noise, have the bits of `reference`, the rows of a whole
/// period. A row has `stride` bytes, of which the first `bytes` count.
pub(super) fn same_rows(
    reference: &[u8],
    found: &[u8],
    first: usize,
    (stride, bytes): (usize, usize),
) -> bool {
    let expected = |index: usize| {
        let place = (first + index) % PERIOD * stride;
        reference.get(place..place + bytes)
    };
    let rows = found.chunks(stride.max(1));
    rows.enumerate().all(|(index, row)| row.get(..bytes).is_some() && row.get(..bytes) == expected(index))
}

/// `rows` rows of `cols` numbers in −1..1, repeated after [`PERIOD`] rows.
pub(super) fn noise(rows: usize, cols: usize) -> Vec<bf16> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        bf16::from_f32((state >> 40) as f32 / (1u32 << 23) as f32 - 1.0)
    };
    let period: Vec<bf16> = (0..PERIOD * cols).map(|_| next()).collect();
    period.iter().copied().cycle().take(rows * cols).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn products_are_of_every_size_up_to_the_largest_and_shifted() {
        let tried = products(3000);
        for rows in ROWS.into_iter().chain([3000]) {
            assert!(tried.contains(&(0..rows)) && tried.contains(&(5..rows + 5)), "{rows}");
        }
        assert!(tried.iter().all(|rows| rows.end <= noise_rows(3000)));
        assert_eq!(products(9).iter().map(ExactSizeIterator::len).max(), Some(9));
        assert!(products(1).iter().all(|rows| rows.len() == 1 && rows.end <= noise_rows(1)));
    }

    #[test]
    fn rows_of_large_products_are_compared_at_both_ends() {
        for rows in [1, 7, 512] {
            assert!(compared(rows).into_iter().eq(std::iter::once(0..rows)));
        }
        assert_eq!(compared(1000), [0..128, 500..628, 871..1000]);
    }

    #[test]
    fn a_row_that_differs_in_one_bit_is_found() {
        let row = |row: usize| [row as u8, (row >> 8) as u8, 7, 99];
        let reference: Vec<u8> = (0..PERIOD).flat_map(row).collect();
        let found = |first: usize| (first..first + 300).flat_map(|r| row(r % PERIOD)).collect::<Vec<u8>>();
        assert!(same_rows(&reference, &found(5), 5, (4, 3)));
        assert!(!same_rows(&reference, &found(5), 4, (4, 3)));
        let mut wrong = found(0);
        wrong[299 * 4 + 3] ^= 1;
        // Beyond the columns that count …
        assert!(same_rows(&reference, &wrong, 0, (4, 3)));
        wrong[299 * 4 + 2] ^= 1;
        // … and among them.
        assert!(!same_rows(&reference, &wrong, 0, (4, 3)));
        assert!(!same_rows(&reference, &reference[..6], 0, (4, 3)));
    }

    #[test]
    fn noise_repeats() {
        let noise = noise(PERIOD + 2, 3);
        assert_eq!(noise[..6], noise[PERIOD * 3..]);
        assert_ne!(noise[..3], noise[3..6]);
    }
}

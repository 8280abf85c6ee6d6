//! Buckets of row counts: for each shape, all products in a bucket use one algorithm.

use std::ops::RangeInclusive;

/// The maximum number of rows of one cuBLASLt product. A product of more rows is split into parts: at this size,
/// arithmetic limits a product's speed, so splitting costs nothing, and a trial needs little memory.
pub(super) const MAX_ROWS: usize = 2048;

/// The largest row count of each bucket: one token decoded alone, one verification, a small batch, a large
/// batch with mask rows, and a part of a prompt.
const LAST: [usize; 5] = [1, 16, 64, 256, MAX_ROWS];

/// Number of buckets of row counts.
pub(super) const COUNT: usize = LAST.len();

/// The larger of the two row counts at which the last bucket is timed; the time of larger products grows with
/// their rows.
const MOST_TIMED: usize = 1024;

/// Returns the bucket of a row count; row counts beyond the last bucket also belong to the last bucket.
pub(super) fn bucket_of(rows: usize) -> usize {
    LAST.iter().position(|&last| rows <= last).unwrap_or(COUNT - 1)
}

/// Returns the row counts of a bucket.
pub(super) fn rows_of(bucket: usize) -> RangeInclusive<usize> {
    let bucket = bucket.min(COUNT - 1);
    let first = bucket.checked_sub(1).map_or(1, |below| LAST[below] + 1);
    first..=LAST[bucket]
}

/// Returns the row counts at which a bucket is timed.
pub(super) fn timed_rows(bucket: usize) -> [usize; 2] {
    let rows = rows_of(bucket);
    [*rows.start(), (*rows.end()).min(MOST_TIMED)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_count_is_in_one_bucket() {
        for rows in 1..=MAX_ROWS {
            let bucket = bucket_of(rows);
            assert!(rows_of(bucket).contains(&rows), "{rows}");
            assert_eq!((0..COUNT).filter(|&bucket| rows_of(bucket).contains(&rows)).count(), 1, "{rows}");
        }
        assert_eq!((bucket_of(0), bucket_of(usize::MAX)), (0, COUNT - 1));
        assert_eq!((timed_rows(0), timed_rows(2), timed_rows(4)), ([1, 1], [17, 64], [257, 1024]));
    }
}

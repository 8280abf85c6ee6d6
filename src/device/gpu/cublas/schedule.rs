//! Schedules: the assignment of a product's rows to algorithms.

use std::ops::Range;

use super::buckets;

/// A rule that divides a product of any number of rows into calls of cuBLASLt. Algorithms are indices into a
/// list.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Schedule {
    /// One algorithm per bucket of row counts, starting with the first bucket. A product with more rows than
    /// the last of these buckets is divided into parts of nearly equal size.
    Buckets(Vec<Timed>),
    /// Calls with one constant number of rows; the last call of a product is padded.
    Padded {
        /// The algorithm.
        algorithm: usize,
        /// Number of rows of each call.
        rows: usize,
        /// Seconds of each call, if they were measured.
        seconds: Option<f32>,
    },
    /// One product of any number of rows, by algorithm 0.
    Whole,
}

/// An algorithm, and its seconds at the [timed row counts](buckets::timed_rows) of a bucket, if they were
/// measured.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Timed {
    pub(super) algorithm: usize,
    pub(super) seconds: Option<[f32; 2]>,
}

/// A part of a product: one call of the library.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct LibraryCall {
    /// Range of the product's rows.
    pub(super) rows: Range<usize>,
    pub(super) algorithm: usize,
    /// Rows of the call: more than the part has, if the part is padded.
    pub(super) padded: usize,
}

impl Schedule {
    /// Returns the calls that compute a product of `rows` rows.
    pub(super) fn parts(&self, rows: usize) -> impl Iterator<Item = LibraryCall> + '_ {
        let count = match self {
            Self::Buckets(buckets) => rows.div_ceil(most_rows(buckets)),
            Self::Padded { rows: constant, .. } => rows.div_ceil((*constant).max(1)),
            Self::Whole => rows.min(1),
        };
        (0..count).map(move |index| match self {
            Self::Buckets(buckets) => {
                // The sizes of parts differ by at most one row.
                let part = index * (rows / count) + index.min(rows % count);
                let len = rows / count + usize::from(index < rows % count);
                let algorithm = buckets.get(buckets::bucket_of(len)).map_or(0, |timed| timed.algorithm);
                LibraryCall { rows: part..part + len, algorithm, padded: len }
            }
            Self::Padded { algorithm, rows: constant, .. } => {
                let (first, constant) = (index * (*constant).max(1), (*constant).max(1));
                let rows = first..(first + constant).min(rows);
                LibraryCall { rows, algorithm: *algorithm, padded: constant }
            }
            Self::Whole => LibraryCall { rows: 0..rows, algorithm: 0, padded: rows },
        })
    }

    /// Returns the seconds of a product of `rows` rows, if its calls were measured: interpolated linearly
    /// between the two row counts at which a bucket was timed, and proportional to the rows beyond them.
    pub(super) fn seconds(&self, rows: usize) -> Option<f32> {
        match self {
            Self::Buckets(timed) => {
                let seconds = |part: LibraryCall| {
                    let bucket = buckets::bucket_of(part.rows.len());
                    between(buckets::timed_rows(bucket), timed.get(bucket)?.seconds?, part.rows.len())
                };
                self.parts(rows).map(seconds).sum()
            }
            Self::Padded { seconds, .. } => Some((*seconds)? * self.parts(rows).count() as f32),
            Self::Whole => None,
        }
    }
}

/// Returns the maximum number of rows that one call computes.
pub(super) fn most_rows(timed: &[Timed]) -> usize {
    *buckets::rows_of(timed.len().saturating_sub(1)).end()
}

/// Returns the seconds at `rows`, interpolated from the seconds at two row counts.
fn between([first, last]: [usize; 2], [at_first, at_last]: [f32; 2], rows: usize) -> Option<f32> {
    if rows > last {
        return Some(at_last * rows as f32 / last as f32);
    }
    let span = last.checked_sub(first).filter(|&span| span > 0);
    let share = span.map_or(0.0, |span| rows.saturating_sub(first) as f32 / span as f32);
    Some(at_first + share * (at_last - at_first))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn timed(algorithm: usize, seconds: [f32; 2]) -> Timed {
        Timed { algorithm, seconds: Some(seconds) }
    }

    fn buckets(count: usize) -> Schedule {
        let times = [[1.0, 1.0], [2.0, 16.0], [20.0, 30.0], [40.0, 50.0], [60.0, 70.0]];
        Schedule::Buckets((0..count).map(|bucket| timed(bucket, times[bucket])).collect())
    }

    proptest! {
        /// Each row is in one call, a call's row count lies in its algorithm's bucket, and no call exceeds
        /// its limits.
        #[test]
        fn parts_are_the_product(rows in 0usize..6000, count in 1usize..=5, constant in 1usize..300) {
            let padded = Schedule::Padded { algorithm: 7, rows: constant, seconds: None };
            for schedule in [buckets(count), padded, Schedule::Whole] {
                let mut next = 0;
                for part in schedule.parts(rows) {
                    prop_assert_eq!(part.rows.start, next);
                    prop_assert!(part.rows.len() <= part.padded && !part.rows.is_empty());
                    match schedule {
                        Schedule::Buckets(_) => {
                            prop_assert!(buckets::rows_of(part.algorithm).contains(&part.rows.len()));
                            prop_assert!(part.algorithm < count && part.padded == part.rows.len());
                        }
                        Schedule::Padded { .. } => prop_assert_eq!(part.padded, constant),
                        Schedule::Whole => prop_assert_eq!(part.rows.len(), rows),
                    }
                    next = part.rows.end;
                }
                prop_assert_eq!(next, rows);
            }
        }
    }

    #[test]
    fn seconds_are_those_of_the_calls() {
        let five = buckets(5);
        assert_eq!(
            [1, 2, 9, 16, 17, 1024].map(|rows| five.seconds(rows)),
            [1.0, 2.0, 9.0, 16.0, 20.0, 70.0].map(Some)
        );
        assert_eq!(five.seconds(0), Some(0.0));
        // Twice the rows take twice the time, at once and in two parts.
        assert_eq!((five.seconds(2048), five.seconds(4096)), (Some(140.0), Some(280.0)));
        // The largest bucket ends at 16 rows, so 33 rows are computed in three parts of 11 rows.
        assert_eq!(buckets(2).seconds(33), Some(3.0 * 11.0));
        let padded = Schedule::Padded { algorithm: 0, rows: 16, seconds: Some(3.0) };
        assert_eq!([1, 16, 17].map(|rows| padded.seconds(rows)), [3.0, 3.0, 6.0].map(Some));
        let unknown = Schedule::Buckets(vec![timed(0, [1.0; 2]), Timed { algorithm: 0, seconds: None }]);
        assert_eq!((unknown.seconds(1), unknown.seconds(2)), (Some(1.0), None));
    }
}

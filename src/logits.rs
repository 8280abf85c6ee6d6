//! Rows of logits that no token may be drawn from.

use std::fmt;

/// The reason why no token may be drawn from a row of logits. Logits of −∞ alone are legal: they forbid their ids.
///
/// Draws are defined for such rows too ([`crate::sampling`]), so that a draft may come from one: a draft is verified
/// whatever it was drawn from. A token of the target may not come from one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum LogitsFault {
    /// A logit is NaN.
    Nan,
    /// A logit is +∞, and none is NaN.
    Infinite,
    /// All logits are −∞: every id is forbidden. A row without any id is the same.
    Forbidden,
}

impl LogitsFault {
    /// Returns the fault of a row of logits `[vocab]`, or `None` if a token may be drawn from the row.
    pub fn of(row: &[f32]) -> Option<Self> {
        // Both folds read the whole row, so that they run on vector registers.
        let bounded = row.iter().fold(true, |bounded, &logit| bounded & (logit < f32::INFINITY));
        let allows = row.iter().fold(false, |allows, &logit| allows | (logit > f32::NEG_INFINITY));
        match (bounded, allows) {
            (true, true) => None,
            (true, false) => Some(Self::Forbidden),
            (false, _) if row.iter().any(|logit| logit.is_nan()) => Some(Self::Nan),
            (false, _) => Some(Self::Infinite),
        }
    }
}

impl fmt::Display for LogitsFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Nan => "a NaN",
            Self::Infinite => "+infinity",
            Self::Forbidden => "no finite value",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_rows_without_a_distribution_are_faulty() {
        const INF: f32 = f32::INFINITY;
        for (row, expected) in [
            (&[0.0, -INF, 3e38][..], None),
            (&[-INF, -3e38], None),
            (&[1.0, f32::NAN, INF], Some(LogitsFault::Nan)),
            (&[-INF, f32::NAN], Some(LogitsFault::Nan)),
            (&[-INF, INF, 0.0], Some(LogitsFault::Infinite)),
            (&[-INF, -INF], Some(LogitsFault::Forbidden)),
            (&[], Some(LogitsFault::Forbidden)),
        ] {
            assert_eq!(LogitsFault::of(row), expected, "{row:?}");
        }
    }
}

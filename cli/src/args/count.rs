//! Arguments that are counts of at least one.

use std::num::NonZeroUsize;

/// Parses a count of at least one.
pub fn at_least_one(text: &str) -> Result<NonZeroUsize, String> {
    text.parse().map_err(|_| "expected a whole number of at least 1".into())
}

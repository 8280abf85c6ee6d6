//! Counts of at least one.

use std::num::NonZeroUsize;

/// Reads a count that may not be 0.
pub fn at_least_one(text: &str) -> Result<NonZeroUsize, String> {
    let count = text.parse().map_err(|_| format!("`{text}` is not a number"))?;
    Ok(NonZeroUsize::new(count).ok_or("it must be at least 1")?)
}

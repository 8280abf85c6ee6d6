//! Arguments that are counts of at least one.

use std::num::NonZeroUsize;

/// Parses a count; 0 is an error.
pub fn at_least_one(text: &str) -> Result<NonZeroUsize, String> {
    let count = text.parse().map_err(|_| format!("`{text}` is not a number"))?;
    Ok(NonZeroUsize::new(count).ok_or("it must be at least 1")?)
}

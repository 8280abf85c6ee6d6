//! Calls of the `tokenizers` crate that turn its panics into errors.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use crate::model::LoadError;

/// Calls into the `tokenizers` crate, which indexes and unwraps on malformed files, and turns a panic into an
/// error.
pub(super) fn guarded<T>(path: &Path, call: impl FnOnce() -> tokenizers::Result<T>) -> Result<T, LoadError> {
    let reason = match catch_unwind(AssertUnwindSafe(call)) {
        Ok(Ok(value)) => return Ok(value),
        Ok(Err(error)) => error.to_string(),
        Err(_) => "the file does not make a working tokenizer".to_owned(),
    };
    Err(LoadError::Tokenizer { path: path.into(), reason })
}

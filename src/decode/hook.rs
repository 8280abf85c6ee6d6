//! The logits hook of a request: a change of the target's logits that the logit processors do not offer.

/// The error of a hook. A `String` or a `&str` converts to it with `into`.
pub type HookError = Box<dyn std::error::Error + Send + Sync>;

/// A hook that changes the target's logits before warping: penalties, biases, grammars.
///
/// The engine calls the hook once per row of target logits that a step uses, including rows after draft
/// tokens that are rejected later. The result must depend on the arguments alone; then the output is
/// distributed exactly like autoregressive decoding with the same hook.
///
/// A hook fails a row if it returns an error, panics, or leaves a row with a
/// [fault](crate::logits::LogitsFault): NaN, +∞, or −∞ for every id. If the output reaches the row, the request ends
/// with [`DecodeError::Hook`](super::DecodeError::Hook) after the tokens before the row. If the row follows a draft token that is rejected, the
/// failure has no effect. Other requests are never affected. The hook does not see rows in which the target itself
/// left a fault.
pub trait LogitsHook: Send {
    /// Edits `logits` `[vocab]`, which predict the token at `position`. `prefix` holds the tokens at
    /// positions 0..`position`: the prompt, the committed tokens, and the draft tokens before the row. To force a
    /// token, set all other logits to −∞.
    ///
    /// # Errors
    ///
    /// Any error for which the hook cannot edit the row.
    fn edit(&mut self, position: usize, prefix: &[u32], logits: &mut [f32]) -> Result<(), HookError>;
}

impl<F: FnMut(usize, &[u32], &mut [f32]) -> Result<(), HookError> + Send> LogitsHook for F {
    fn edit(&mut self, position: usize, prefix: &[u32], logits: &mut [f32]) -> Result<(), HookError> {
        self(position, prefix, logits)
    }
}

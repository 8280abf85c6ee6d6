//! The hooks of a request on the target's logits: a change that the logit processors do not offer, and masks of allowed
//! ids.

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

/// A source of masks of allowed ids, such as a grammar.
///
/// The engine calls the source once per step and request, on the host before it launches the step, so that the source's
/// time adds to the step's. The masks act where [`LogitProcessors::allowed`](crate::processors::LogitProcessors::allowed)
/// acts, together with that mask, on every device and without a copy of logits. Each mask must depend on the tokens before
/// its row alone; then the output is distributed exactly like autoregressive decoding with the same source.
///
/// ```
/// use flexdraft::decode::{HookError, MaskProvider};
///
/// /// Allows an even id after an odd id, and the reverse.
/// struct Alternating;
///
/// impl MaskProvider for Alternating {
///     fn fill(
///         &mut self,
///         prompt: &[u32],
///         output: &[u32],
///         draft: &[u32],
///         masks: &mut [u32],
///     ) -> Result<(), HookError> {
///         let words = masks.len() / (draft.len() + 1);
///         let newest = output.last().or(prompt.last());
///         for (before, mask) in newest.into_iter().chain(draft).zip(masks.chunks_exact_mut(words)) {
///             // Bit id mod 32 of word id / 32 allows an id.
///             mask.fill(if before % 2 == 0 { 0xaaaa_aaaa } else { 0x5555_5555 });
///         }
///         Ok(())
///     }
/// }
/// ```
pub trait MaskProvider: Send {
    /// Fills `masks` `[v + 1, ⌈V / 32⌉]`, whose bits are all 1 before. Row i is for the token after `prompt`, `output` and
    /// the draft tokens d_1..d_i of `draft`, which has v tokens: bit id mod 32 of word id / 32 allows an id. A row after a
    /// draft token that an earlier row forbids is never used.
    ///
    /// # Errors
    ///
    /// Any error for which there are no masks. An error, like a panic, ends the request with
    /// [`DecodeError::Hook`](super::DecodeError::Hook) after `output`. A mask that allows no id ends the request in
    /// the same way, if the output reaches its row.
    fn fill(
        &mut self,
        prompt: &[u32],
        output: &[u32],
        draft: &[u32],
        masks: &mut [u32],
    ) -> Result<(), HookError>;
}

impl<F> MaskProvider for F
where
    F: FnMut(&[u32], &[u32], &[u32], &mut [u32]) -> Result<(), HookError> + Send,
{
    fn fill(
        &mut self,
        prompt: &[u32],
        output: &[u32],
        draft: &[u32],
        masks: &mut [u32],
    ) -> Result<(), HookError> {
        self(prompt, output, draft, masks)
    }
}

//! Draft tokens that no step verified.
//!
//! A policy that verifies a part of a draft, or nothing of it, still learns whether the rest was right, because the sequence
//! commits tokens at the same positions later. The engine keeps the rest until a token differs, the draft ends, or the
//! sequence has a new draft.

use super::policy::ComparedToken;

/// A draft whose tokens before `slot` were accepted, or equal the committed tokens.
#[derive(Clone, Debug)]
pub(super) struct UnverifiedTokens {
    pub(super) tokens: Vec<u32>,
    pub(super) confidence: Vec<f32>,
    /// The place, counted from 0, of the first token that was neither verified nor compared.
    pub(super) slot: usize,
}

impl UnverifiedTokens {
    /// Compares the first token with the token that the sequence commits at its position.
    pub(super) fn compare(&self, committed: u32) -> Option<ComparedToken> {
        compare((&self.tokens, &self.confidence), self.slot, committed)
    }
}

/// Compares the token of `slot` of a draft, tokens and confidences, with the token that the sequence commits at its position.
/// Returns `None` if the draft has no such token.
pub(super) fn compare(
    (tokens, confidence): (&[u32], &[f32]),
    slot: usize,
    committed: u32,
) -> Option<ComparedToken> {
    let (&token, &confidence) = tokens.get(slot).zip(confidence.get(slot))?;
    Some(ComparedToken { slot, confidence, is_equal: token == committed })
}

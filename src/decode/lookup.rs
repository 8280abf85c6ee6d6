//! Prompt lookup: proposes the tokens that followed an earlier occurrence of the last tokens of the text.

use super::hook::HookError;
use super::proposal::{MAX_PROPOSAL, Proposal, Proposer};

/// Prompt lookup (Saxena, "Prompt Lookup Decoding", 2023): a source of proposals that needs no drafter.
///
/// The source searches prompt and output for an earlier occurrence of the last tokens: the longest match, and among
/// equally long matches the latest. It proposes the tokens that followed the match. A proposal that reaches the end of
/// the text continues with its own first tokens, so that a repetition continues. Lookup helps with text that repeats
/// itself: summaries, code, answers with quotations.
///
/// ```
/// use flexdraft::decode::{PromptLookup, Request};
///
/// let request = Request { proposer: Some(Box::new(PromptLookup::default())), ..Request::new(vec![1, 2, 3], 64) };
/// # assert!(request.proposer.is_some());
/// assert_eq!(PromptLookup::default().find(&[7, 8, 9, 5, 7, 8]).take(3).collect::<Vec<_>>(), [9, 5, 7]);
/// ```
///
/// A request needs an engine whose policy drafts. If the model has no drafter, [`EngineOptions::proposers`] allows that.
///
/// [`EngineOptions::proposers`]: super::EngineOptions::proposers
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PromptLookup {
    /// The maximum length of a match, in tokens.
    pub longest: usize,
    /// The minimum length of a match, in tokens.
    pub shortest: usize,
    /// The number of tokens to propose, at most [`MAX_PROPOSAL`].
    pub tokens: usize,
}

impl Default for PromptLookup {
    /// Returns the settings 4, 2 and 8.
    fn default() -> Self {
        Self { longest: 4, shortest: 2, tokens: 8 }
    }
}

impl PromptLookup {
    /// Iterates over the tokens that the source expects after `text`: infinitely many if there is a match, otherwise
    /// none.
    pub fn find<'a>(&self, text: &'a [u32]) -> impl Iterator<Item = u32> + use<'a> {
        let from = self.occurrence(text);
        // Token i after an occurrence that ended `period` tokens ago repeats every `period` tokens.
        let known = from.map(|end| &text[end..]).unwrap_or(&[]);
        known.iter().copied().cycle()
    }

    /// Returns the end of the latest of the longest earlier occurrences of the last tokens of `text`.
    fn occurrence(&self, text: &[u32]) -> Option<usize> {
        let longest = self.longest.min(text.len());
        let (mut best, mut found) = (self.shortest.max(1), None);
        for end in (best..text.len()).rev() {
            let pairs = text[..end].iter().rev().zip(text.iter().rev());
            let same = pairs.take(longest).take_while(|(a, b)| a == b).count();
            if same >= best {
                (best, found) = (same + 1, Some(end));
                if same == longest {
                    break;
                }
            }
        }
        found
    }
}

impl Proposer for PromptLookup {
    fn propose(&mut self, prefix: &[u32], proposal: &mut Proposal<'_>) -> Result<(), HookError> {
        for token in self.find(prefix).take(self.tokens.min(MAX_PROPOSAL)) {
            proposal.push(token)?;
        }
        Ok(())
    }
}

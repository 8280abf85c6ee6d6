//! Sources of prompts.

use super::self_prompt::SelfPrompt;
use super::windows::Windows;

/// Prompts, or the source that they are made from.
#[derive(Clone, Debug)]
pub enum Prompts {
    /// Given prompts, in order.
    Given(Vec<Vec<u32>>),
    /// Windows of a text.
    Windows(Windows),
    /// Messages that the target itself writes.
    Written(SelfPrompt),
}

impl Prompts {
    /// The number of tokens of the longest prompt.
    pub fn longest(&self) -> usize {
        match self {
            Self::Given(prompts) => prompts.iter().map(Vec::len).max().unwrap_or(0),
            Self::Windows(windows) => windows.longest(),
            Self::Written(prompt) => prompt.longest(),
        }
    }

    /// The prompts that are known before generation starts.
    pub(super) fn known(&self) -> Box<dyn Iterator<Item = Vec<u32>> + '_> {
        match self {
            Self::Given(prompts) => Box::new(prompts.iter().cloned()),
            Self::Windows(windows) => Box::new(windows.iter()),
            Self::Written(_) => Box::new(std::iter::empty()),
        }
    }

    pub(super) fn self_prompt(&self) -> Option<&SelfPrompt> {
        match self {
            Self::Written(prompt) => Some(prompt),
            Self::Given(_) | Self::Windows(_) => None,
        }
    }
}

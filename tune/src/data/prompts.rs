//! Sources of prompts: a file, windows of a text, or the target itself.

use super::self_prompt::SelfPrompt;
use super::windows::Windows;

/// Prompts, or the source that makes them.
#[derive(Clone, Debug)]
pub enum Prompts {
    /// Prompts that a file gives, in order.
    Given(Vec<Vec<u32>>),
    /// Windows of a text file.
    Windows(Windows),
    /// Messages that the target itself writes.
    Written(SelfPrompt),
}

impl Prompts {
    /// Returns the number of tokens of the longest prompt.
    pub fn longest(&self) -> usize {
        match self {
            Self::Given(prompts) => prompts.iter().map(Vec::len).max().unwrap_or(0),
            Self::Windows(windows) => windows.longest(),
            Self::Written(prompt) => prompt.longest(),
        }
    }

    /// Returns the prompts that exist before generation starts.
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

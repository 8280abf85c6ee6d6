//! Where prompts come from.

use super::self_prompt::SelfPrompt;
use super::windows::Windows;

/// Prompts, or what they are made from.
#[derive(Clone, Debug)]
pub enum Prompts {
    /// These, in order.
    Given(Vec<Vec<u32>>),
    /// Windows of a text.
    Windows(Windows),
    /// Messages that the target writes.
    Written(SelfPrompt),
}

impl Prompts {
    /// Tokens of the longest prompt.
    pub fn longest(&self) -> usize {
        match self {
            Self::Given(prompts) => prompts.iter().map(Vec::len).max().unwrap_or(0),
            Self::Windows(windows) => windows.longest(),
            Self::Written(prompt) => prompt.longest(),
        }
    }

    /// The prompts that are known before anything is generated.
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

//! The card of a drafter: the use for which its acceptance length was measured.

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::format::json::JsonFile;
use super::load_error::LoadError;

/// The use for which a drafter's acceptance length was measured. `flexdraft-tune eval --card` writes the card into the
/// drafter's `config.json`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct DrafterCard {
    /// Hash of the chat template of the prompts ([`ChatTemplate::hash`](super::ChatTemplate::hash)); `None` for prompts
    /// without a template.
    pub template: Option<String>,
    /// Value of the template's variable `enable_thinking`; `None` if the variable was not set.
    pub thinking: Option<bool>,
    /// Block size of the measurement.
    pub block_size: usize,
    /// Acceptance length τ by the name of the set of prompts.
    pub acceptance_lengths: BTreeMap<String, f64>,
}

impl DrafterCard {
    /// Name of the card's key in `config.json`.
    pub const KEY: &str = "flexdraft_card";

    /// Reads the card of a drafter's directory; `None` if the drafter has no card.
    ///
    /// # Errors
    /// [`LoadError`] if `config.json` cannot be read, or if the card has other fields or values.
    pub fn read(dir: &Path) -> Result<Option<Self>, LoadError> {
        let file = JsonFile::read(&dir.join("config.json"))?;
        let fields = file.fields();
        let Some(card) = fields.get(Self::KEY) else { return Ok(None) };
        let expected = "template, thinking, block_size and acceptance_lengths, as flexdraft-tune writes them";
        let card: Self =
            serde_json::from_value(card.clone()).map_err(|_| fields.invalid(Self::KEY, expected))?;
        Ok(Some(card))
    }

    /// Returns the smallest acceptance length of the card; `None` if the card has none.
    pub fn least_acceptance_length(&self) -> Option<f64> {
        self.acceptance_lengths.values().copied().reduce(f64::min)
    }
}

//! Writes the card of a drafter into its `config.json`.

use std::fs;
use std::path::Path;

use flexdraft::model::DrafterCard;
use serde_json::Value;

use crate::checkpoint::write_whole;
use crate::error::{Result, TuneError};

/// Adds the acceptance length on a set of prompts to the card of the drafter in `dir`. Acceptance lengths of other sets
/// stay if they were measured with the same template, thinking mode and block size, and are dropped otherwise.
///
/// # Errors
/// [`TuneError::Runner`] for a card that cannot be read; [`TuneError::Io`]; [`TuneError::File`] if `config.json` is no
/// JSON object.
pub fn add_to_card(
    dir: &Path,
    template: Option<String>,
    block_size: usize,
    prompts: &str,
    acceptance_length: f64,
) -> Result<()> {
    let new = DrafterCard { template, thinking: None, block_size, ..DrafterCard::default() };
    let old = DrafterCard::read(dir).map_err(flexdraft::Error::from)?.unwrap_or_default();
    let same = (&old.template, old.thinking, old.block_size) == (&new.template, new.thinking, new.block_size);
    let mut card = if same { old } else { new };
    card.acceptance_lengths.insert(prompts.to_owned(), acceptance_length);

    let path = dir.join("config.json");
    let invalid =
        |error: serde_json::Error| TuneError::File { path: path.clone(), reason: error.to_string() };
    let bytes = fs::read(&path).map_err(TuneError::io("read", &path))?;
    let mut config: serde_json::Map<String, Value> = serde_json::from_slice(&bytes).map_err(invalid)?;
    config.insert(DrafterCard::KEY.to_owned(), serde_json::to_value(card).map_err(invalid)?);
    let text = serde_json::to_string_pretty(&config).map_err(invalid)?;
    write_whole(&path, (text + "\n").as_bytes())
}

//! Writes the card of a drafter into its `config.json`.

use std::fs;
use std::path::Path;

use flexdraft::model::{ChatTemplate, DrafterCard, LoadError};
use serde_json::Value;

use crate::checkpoint::write_whole;
use crate::data::Source;
use crate::error::{Result, TuneError};

/// The way in which the prompts of a measurement were rendered.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rendered {
    /// Hash of the chat template; `None` for prompts without a template.
    pub template: Option<String>,
    /// Value of the template's variable `enable_thinking`; `None` if the variable was not set.
    pub thinking: Option<bool>,
}

impl Rendered {
    /// Returns the rendering of prompts with the chat template of the target at `path`, if it has a template.
    ///
    /// # Errors
    /// [`TuneError::Runner`] for a template that cannot be read.
    pub fn with_template_of(path: &Path, thinking: Option<bool>) -> Result<Self> {
        match ChatTemplate::read(path) {
            Ok(template) => Ok(Self { template: Some(template.hash()), thinking }),
            Err(LoadError::NoChatTemplate { .. }) => Ok(Self::default()),
            Err(error) => Err(error.into()),
        }
    }

    /// Returns the rendering of transcripts from `source`, which the target at `path` wrote.
    ///
    /// # Errors
    /// [`TuneError::Runner`] for a template that cannot be read.
    pub fn of_source(source: &Source, path: &Path) -> Result<Self> {
        match source.uses_template() {
            true => Self::with_template_of(path, source.thinking()),
            false => Ok(Self::default()),
        }
    }
}

/// Adds the acceptance length on a set of prompts to the card of the drafter in `dir`. Acceptance lengths of other sets
/// stay if they were measured with the same template, thinking mode and block size, and are dropped otherwise.
///
/// # Errors
/// [`TuneError::Runner`] for a card that cannot be read; [`TuneError::Io`]; [`TuneError::File`] if `config.json` is no
/// JSON object.
pub fn add_to_card(
    dir: &Path,
    rendered: Rendered,
    block_size: usize,
    prompts: &str,
    acceptance_length: f64,
) -> Result<()> {
    let Rendered { template, thinking } = rendered;
    let new = DrafterCard { template, thinking, block_size, ..DrafterCard::default() };
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

//! The drafter that a run starts from.

use flexdraft::model::{DrafterWeights, ModelConfig};

use super::settings::Settings;
use crate::chain::ChainHeads;
use crate::drafter::Drafter;
use crate::error::{Result, TuneError};
use crate::shortlist::Shortlist;
use crate::target::FrozenTarget;

/// An exported drafter whose weights a run starts from.
#[derive(Debug)]
pub(super) struct Start {
    weights: DrafterWeights,
    shortlist: Shortlist,
}

impl Start {
    /// Reads the drafter that the setting `init_from` names, if there is one, and checks its sizes against the other
    /// settings. The block size may differ, because no tensor depends on it.
    ///
    /// # Errors
    /// [`TuneError::Setting`] for a setting that differs from the drafter; [`TuneError::Runner`] for files that are not a
    /// FlexDraft drafter of a target with the configuration `target`.
    pub fn read(settings: &Settings, target: &ModelConfig) -> Result<Option<Self>> {
        let Some(dir) = &settings.init_from else { return Ok(None) };
        let weights = DrafterWeights::read(dir, target)?;
        let b2 = weights.calibrator.as_ref().and_then(|calibrator| calibrator.output.bias.as_ref());
        let shortlist = match b2 {
            Some(b2) => Shortlist::of_biases(&b2.to_f32()),
            None => Shortlist::All(target.vocab_size),
        };
        let differs = |setting, value: String, expected: String| {
            Err(TuneError::setting(setting, value, format!("{expected}, as in {}", dir.display())))
        };
        let (listed, expected) = match (settings.shortlist, &shortlist) {
            (0, Shortlist::All(_)) => (0, 0),
            (listed, shortlist) => (listed, shortlist.len()),
        };
        let rank = weights.calibrator.as_ref().map_or(0, |calibrator| calibrator.hidden.weight.shape()[0]);
        for (setting, value, expected) in [
            ("tail_layers", settings.tail_layers, weights.config.tail_layers),
            ("rank", settings.rank, rank),
            ("shortlist", listed, expected),
        ] {
            if value != expected {
                return differs(setting, value.to_string(), expected.to_string());
            }
        }
        if let Some(chain) = &weights.chain {
            let (kind, rank) = (chain.config.kind, chain.first.weight.shape()[0]);
            let expected = format!("{} of rank {rank}", kind.name());
            let value = match settings.chain.map(super::ChainChoice::shape) {
                Some(own) => format!("{} of rank {}", own.config.kind.name(), own.rank),
                None => "none".to_owned(),
            };
            if value != expected {
                return differs("chain", value, expected);
            }
        }
        Ok(Some(Self { weights, shortlist }))
    }

    /// Returns the ids that the drafter may draft.
    pub fn shortlist(&self) -> &Shortlist {
        &self.shortlist
    }

    /// Sets the weights of a drafter and, if the exported drafter has a chain, of its chain.
    ///
    /// # Errors
    /// Candle's errors: mismatched shapes, out of memory.
    pub fn load(&self, target: &FrozenTarget, drafter: &Drafter, chain: Option<&ChainHeads>) -> Result<()> {
        drafter.load_exported(target, &self.weights, &self.shortlist)?;
        if let Some((exported, chain)) = self.weights.chain.as_ref().zip(chain) {
            chain.load_exported(target, exported)?;
        }
        Ok(())
    }
}

//! Reads the drafter's part of the configuration of an Orthrus model, whose other keys are the keys of a Qwen3.

use super::{DrafterConfig, DrafterKind, ModelConfig};
use crate::layout::MAX_BLOCK_SIZE;
use crate::model::LoadError;
use crate::model::format::json::Fields;

/// The `model_type` of an Orthrus model.
pub(in crate::model) const MODEL_TYPE: &str = "orthrus";

/// The class with which the official implementation loads an Orthrus model.
pub(super) const CLASS: &str = "OrthrusLM";

/// The keys of an Orthrus drafter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::model) struct OrthrusConfig {
    block_size: usize,
    /// The token whose embedding is the mask embedding; an id of the target's vocabulary.
    pub(in crate::model) mask_token_id: u32,
}

impl OrthrusConfig {
    /// Reads the keys of an Orthrus drafter, whose target has the configuration `target`.
    pub(super) fn from_fields(fields: &Fields<'_>, target: &ModelConfig) -> Result<Self, LoadError> {
        let key = "mask_token_id";
        let mask_token_id = fields.token_id(key)?.ok_or_else(|| fields.missing(key))?;
        if mask_token_id as usize >= target.vocab_size {
            return Err(fields.invalid(key, format!("an id below `vocab_size`, {}", target.vocab_size)));
        }
        Ok(Self { block_size: fields.required_count("block_size", MAX_BLOCK_SIZE)?, mask_token_id })
    }

    /// Returns the configuration of the drafter, whose mask rows run through all layers of `target`.
    pub(in crate::model) fn drafter(self, target: &ModelConfig) -> DrafterConfig {
        DrafterConfig { kind: DrafterKind::Orthrus, tail_layers: target.layers, block_size: self.block_size }
    }
}

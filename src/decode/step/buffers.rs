//! The buffers of a step: activations, logits and results.

use super::padding::PaddingPages;
use crate::decode::sequence::{DrawnFrom, Sequence};
use crate::device::{Device, DeviceError, DraftLogits};
use crate::model::forward::{Model, Workspace};

/// The buffers of a step, which all steps of an engine reuse.
pub(in crate::decode) struct StepBuffers<D: Device> {
    pub(super) work: Workspace<D>,
    /// Logits of the candidates, in a step in which one product of the LM head computes these logits alone.
    pub(super) target_logits: D::Buffer,
    /// The logits that the drafts of the last step were drawn from. This step verifies these drafts.
    pub(super) last_drafts: D::Buffer,
    /// The logits that this step draws drafts from. In a step in which one product of the LM head computes the logits
    /// of candidates and mask groups, the buffer begins with the logits of the candidates and of all groups.
    pub(super) next_drafts: D::Buffer,
    pub(super) results: D::Results,
    /// The cache pages that the padding of steps uses.
    pub(super) padding: PaddingPages,
}

impl<D: Device> StepBuffers<D> {
    /// Makes the buffers for steps of `model`, whose padding uses the cache pages `padding`.
    pub(in crate::decode) fn new(model: &Model<D>, padding: PaddingPages) -> Self {
        Self {
            work: model.new_workspace(),
            target_logits: model.new_logits(),
            last_drafts: model.new_logits(),
            next_drafts: model.new_logits(),
            results: model.device().new_results(),
            padding,
        }
    }

    /// Saves the logits that the draft of `sequence` was drawn from, by copying them to a new buffer. The engine calls
    /// this before a step that does not verify the draft: a later step will need these logits, and the next step reuses
    /// the buffers for other drafts.
    pub(in crate::decode) fn set_aside(
        &self,
        model: &Model<D>,
        sequence: &mut Sequence<D::Buffer>,
    ) -> Result<(), DeviceError> {
        let Some(draft) = &mut sequence.draft else { return Ok(()) };
        let Some(DrawnFrom::LastStep { first_row, first_draw }) = draft.logits else { return Ok(()) };
        let drawn_from = DraftLogits { logits: &self.last_drafts, first_row, first_draw, is_warped: false };
        let mut kept = model.new_logits();
        model.device().copy_draft(drawn_from, draft.tokens.len(), &mut kept)?;
        draft.logits = Some(DrawnFrom::Own(kept));
        Ok(())
    }
}

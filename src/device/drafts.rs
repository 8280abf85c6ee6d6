//! Drafts: where the rows of draft slots are, and the tokens that are drawn from them.

use std::ops::Range;

use crate::acceptance::Rule;
use crate::layout::{GroupSet, Prediction};
use crate::processors::LogitProcessors;
use crate::sampling::SamplingParams;

/// The place of draft slots before the draft is made: rows of the pass, or rows of the logits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SlotRows {
    /// All S slots of each mask group are rows of the most recent pass. The logits of the drafts are computed after
    /// the verdict, in rows from `first_logits` on, draft after draft.
    Pass {
        /// The logits row of the first draft token.
        first_logits: usize,
    },
    /// The S − 1 slots that draft already have rows of logits, in each mask group, before the verdict is known.
    Logits,
}

/// A sequence that drafts from S − 1 slots of the mask group that its verdict selects.
#[derive(Clone, Debug)]
pub struct DraftRows<'a> {
    /// Index of the sequence within the verification.
    pub sequence: usize,
    /// The accepted lengths, as counted by the verdict, for which the pass has a mask group of this sequence.
    /// [`GroupSet::NONE`] if the pass has a single group, for [whatever length is
    /// accepted](crate::device::Verification::begin_drafting).
    pub groups: GroupSet,
    /// The first row of the sequence's first mask group; the rows of its other groups follow. [`SlotRows`] says which
    /// slots of a group have rows, and whether these are rows of the pass or of the logits.
    pub first_row: usize,
    /// S: the number of slots per group, 1 to [`MAX_BLOCK_SIZE`](crate::layout::MAX_BLOCK_SIZE).
    pub slots: usize,
    /// The token that a slot predicts. It decides which slot is left out of the draft: the first or the last.
    pub prediction: Prediction,
    /// The logit processors whose [bias and mask](LogitProcessors::draft_edits) act on the slots' logits, after the
    /// calibration and before confidence and warping.
    pub processors: Option<&'a LogitProcessors>,
    /// The warping of the slots' logits before a token is drawn.
    pub sampling: &'a SamplingParams,
    /// The acceptance rule that will verify the draft: it decides which random numbers the draft uses.
    pub rule: Rule,
    /// The request's seed.
    pub seed: u64,
}

impl DraftRows<'_> {
    /// Returns the number of tokens that the sequence drafts: S − 1.
    pub fn drafted(&self) -> usize {
        self.slots.saturating_sub(1)
    }

    /// Returns the rows of the slots that draft in the mask group for the accepted length `accepted`, or `None` if
    /// the pass has no such group.
    pub fn slot_rows(&self, accepted: usize, rows: SlotRows) -> Option<Range<usize>> {
        let rank = self.groups.iter().position(|k| k == accepted)?;
        let (rows_per_group, first_slot) = match rows {
            SlotRows::Pass { .. } => (self.slots, self.prediction.first_slot()),
            SlotRows::Logits => (self.drafted(), 0),
        };
        let first = self.first_row.saturating_add(rank.saturating_mul(rows_per_group));
        let first = first.saturating_add(first_slot);
        Some(first..first.saturating_add(self.drafted()))
    }
}

/// One drafted token and its confidence.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct DraftToken {
    /// Vocabulary id.
    pub token: u32,
    /// The largest probability of the slot's softmax at temperature 1; 0 if no logit of the slot is above −∞.
    pub confidence: f32,
}

/// The location of a draft's logits: draft token j has row `first_row + j − 1`.
#[derive(Debug)]
pub struct DraftLogits<'a, B> {
    /// The logits that [`draft`](crate::device::DraftSelection::draft) drew from, or a
    /// [copy](crate::device::Device::copy_draft) of them. A device may store values that it computed from a row
    /// when it drew (its largest logit, the sum of its exponentials) with the buffer, so that q is bit for bit
    /// the distribution that the draft was drawn from.
    pub logits: &'a B,
    /// The row of the first draft token.
    pub first_row: usize,
    /// Index of the first draft token among all draws from these logits.
    pub first_draw: usize,
    /// Whether the rows are [warped scores](crate::sampling::warp) already, as of a
    /// [proposal](crate::device::Device::upload_draft). Otherwise the request's warping applies to them.
    pub is_warped: bool,
}

impl<B> Clone for DraftLogits<'_, B> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<B> Copy for DraftLogits<'_, B> {}

//! Tables of a step: everything that the device takes from the host.

use super::drafts::{DraftRows, SlotRows};
use super::verdicts::VerifyRows;
use crate::layout::Pass;

/// Everything that a step needs from the host. It is known before the forward pass, so a device may upload all
/// of it at once.
#[derive(Debug)]
pub struct StepTables<'a, B> {
    /// The rows of the forward pass.
    pub pass: &'a Pass<'a>,
    /// Token ids of the pass's candidate rows.
    pub tokens: &'a [u32],
    /// The rows of the pass whose logits are computed before the verification.
    pub logits_rows: &'a [usize],
    /// The sequences to verify. Their rows are rows of these logits.
    pub sequences: &'a [VerifyRows<'a, B>],
    /// Number of ids of the vocabulary: the columns of the logits.
    pub vocab: usize,
    /// The drafts from mask groups of the pass.
    pub drafts: DraftTables<'a>,
    /// The drafting pass after the verification, if there is one, and the drafts from it. It is laid out for the
    /// largest possible accepted lengths.
    pub drafting: Option<(DraftingPass<'a>, DraftTables<'a>)>,
}

/// Drafts, and the place of their slots.
#[derive(Clone, Copy, Debug)]
pub struct DraftTables<'a> {
    /// The drafts, in the order in which they are drawn.
    pub drafts: &'a [DraftRows<'a>],
    /// Whether the slots are rows of the pass or of the logits.
    pub rows: SlotRows,
}

/// A pass that drafts after a verification.
#[derive(Clone, Copy, Debug)]
pub struct DraftingPass<'a> {
    /// The rows of the pass: no candidates, and one mask group per sequence.
    pub pass: &'a Pass<'a>,
    /// For each sequence of the pass, the index of the verdict that its group follows.
    pub verdicts: &'a [usize],
}

impl<B> Clone for StepTables<'_, B> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<B> Copy for StepTables<'_, B> {}

impl<'a, B> StepTables<'a, B> {
    /// Tables of a step that runs the rows of `pass`, whose candidates are `tokens`, and verifies nothing.
    pub fn new(pass: &'a Pass<'a>, tokens: &'a [u32]) -> Self {
        Self {
            pass,
            tokens,
            logits_rows: &[],
            sequences: &[],
            vocab: 0,
            drafts: DraftTables::NONE,
            drafting: None,
        }
    }
}

impl<B> StepTables<'_, B> {
    /// Returns whether the step verifies every candidate of its pass: it reads no prompt, and its results are read.
    pub(super) fn only_decodes(&self) -> bool {
        let verified: usize = self.sequences.iter().map(|sequence| sequence.draft.len() + 1).sum();
        verified > 0 && verified == self.pass.candidate_rows()
    }
}

impl DraftTables<'_> {
    /// No drafts.
    pub const NONE: Self = Self { drafts: &[], rows: SlotRows::Logits };

    /// Returns the draft that each drafted row belongs to, by its index.
    pub fn owners(&self) -> Vec<usize> {
        let rows = |(index, draft): (usize, &DraftRows<'_>)| std::iter::repeat_n(index, draft.drafted());
        self.drafts.iter().enumerate().flat_map(rows).collect()
    }
}

//! The plan of a step for one sequence.

use crate::decode::record::StepMode;
use crate::decode::sequence::{Sequence, Work};
use crate::device::SequenceVerdict;

/// The part of a step that concerns one sequence.
#[derive(Clone, Debug)]
pub(in crate::decode) struct SequencePlan {
    /// Index of the sequence among the active sequences.
    pub(in crate::decode) sequence: usize,
    pub(in crate::decode) work: Work,
    /// v: the number of draft tokens that the step verifies.
    pub(in crate::decode) verify_len: usize,
    /// K: the indices of the candidate rows (within the sequence) after which the joint pass has a mask group.
    pub(in crate::decode) groups: Vec<usize>,
    /// Whether the next block is drafted.
    pub(in crate::decode) draft: bool,
    /// Whether the request's proposer may propose the next block.
    pub(in crate::decode) propose: bool,
}

impl SequencePlan {
    /// Returns the number of candidate rows.
    pub(in crate::decode) fn rows(&self) -> usize {
        match self.work {
            Work::Prefill { rows, .. } | Work::Recompute { rows } => rows,
            Work::Decode => self.verify_len + 1,
        }
    }

    /// Returns whether the step draws a token from the target's logits for this sequence. Otherwise it only fills the
    /// KV cache.
    pub(in crate::decode) fn draws(&self) -> bool {
        matches!(self.work, Work::Decode | Work::Prefill { last: true, .. })
    }

    /// Returns the number of candidates after the first that are tokens of the prompt or of the output, so that they
    /// need no verification.
    pub(super) fn certain(&self) -> usize {
        match self.work {
            Work::Decode => 0,
            Work::Prefill { rows, .. } | Work::Recompute { rows } => rows.saturating_sub(1),
        }
    }

    /// Returns the mode that the step has for this sequence.
    pub(in crate::decode) fn mode(&self) -> StepMode {
        match (self.draft || self.propose, self.groups.len()) {
            (false, 0) if self.verify_len == 0 => StepMode::Autoregressive,
            (_, 0) => StepMode::Sequential,
            (_, groups) if groups == self.verify_len + 1 => StepMode::Parallel,
            _ => StepMode::Mixed,
        }
    }

    /// Returns whether `sequence` needs a draft after `verdict`. A request that ends with this step needs one
    /// only to complete its record, and after a fault there is no record.
    pub(super) fn wants_draft<B>(&self, sequence: &Sequence<B>, verdict: SequenceVerdict) -> bool {
        self.draft && sequence.block_size > 1 && Self::continues(sequence, verdict)
    }

    /// Returns whether the request's proposer is asked for the next block after `verdict`.
    pub(super) fn wants_proposal<B>(&self, sequence: &Sequence<B>, verdict: SequenceVerdict) -> bool {
        self.propose && Self::continues(sequence, verdict)
    }

    /// Returns whether a block after `verdict` is of use.
    fn continues<B>(sequence: &Sequence<B>, verdict: SequenceVerdict) -> bool {
        let goes_on = || sequence.cut(&mut sequence.committed(verdict)).is_none();
        verdict.fault.is_none() && (sequence.request.record || goes_on())
    }
}

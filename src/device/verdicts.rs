//! Verdicts: the requests that a verification answers, and the results of a step.

use super::drafts::{DraftLogits, DraftToken};
use crate::acceptance::Rule;
use crate::logits::LogitsFault;
use crate::processors::LogitEdits;
use crate::sampling::SamplingParams;

/// The request to verify one sequence's draft.
#[derive(Debug)]
pub struct VerifyRows<'a, B> {
    /// Target logits row of candidate 0; candidate i has row `first_row + i`.
    pub first_row: usize,
    /// The draft tokens d_1..d_v under verification. If there are none, the bonus token is drawn with the
    /// *target draw* numbers of its own position, whatever the rule. This is an autoregressive step; the
    /// first bonus token after a prompt is drawn in the same way.
    pub draft: &'a [u32],
    /// The calibrated logits that the draft was drawn from, with the same warping. `None` if the draft did
    /// not come from a distribution: each q_j is then the point mass at d_j. Rules that need no q (greedy,
    /// `match`) do not read the logits. A device reads them in place if all sequences name the same buffer.
    pub draft_logits: Option<DraftLogits<'a, B>>,
    /// The edits that the request's logit processors make in the target's rows of logits, before warping. Edited
    /// logits replace the logits on some devices.
    pub edits: Option<&'a LogitEdits<'a>>,
    /// The warping of the target's and the draft's distributions.
    pub sampling: &'a SamplingParams,
    /// The acceptance rule. At temperature 0 every rule is greedy.
    pub rule: Rule,
    /// The request's seed.
    pub seed: u64,
    /// n: the position of candidate 0.
    pub start: usize,
}

/// The result of verifying one sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SequenceVerdict {
    /// a: the number of accepted draft tokens.
    pub accepted: usize,
    /// The new bonus token, at position n + a + 1, after the a accepted draft tokens. After a fault: an id of the
    /// vocabulary without a meaning.
    pub bonus: u32,
    /// n + a + 1: the position of the bonus token, which is candidate 0 of the next step.
    pub next_start: usize,
    /// The fault in the target's logits after the accepted draft tokens, from which no bonus token may be drawn;
    /// `None` without a fault. Row a is the first faulty row of rows 0..=a′, where a′ is the length that the rule
    /// accepts if draws take NaN for −∞; d_1..d_a stay accepted. Rows beyond a′ are not used, and a draft's logits
    /// may be anything: the rule verifies what was drawn from them.
    pub fault: Option<LogitsFault>,
}

/// The results of a verification and of the drafting after it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct StepResults {
    /// The verdict of each sequence of the verification.
    pub verdicts: Vec<SequenceVerdict>,
    /// The tokens of each draft, in the order of the [selected](crate::device::Verification::select_drafts) drafts.
    pub drafts: Vec<Vec<DraftToken>>,
}

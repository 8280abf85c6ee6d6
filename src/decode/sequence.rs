//! The state of a request between steps.

use std::cell::RefCell;
use std::cmp::Reverse;

use super::hook::{LogitsHook, MaskProvider};
use super::policy::ComparedToken;
use super::proposal::Proposer;
use super::proposal_confidence::CertainTokens;
use super::record::Finish;
use super::request::Request;
use super::request_id::RequestId;
use super::unverified::{UnverifiedTokens, compare};
use crate::acceptance::Rule;
use crate::device::SequenceVerdict;
use crate::layout::Prediction;
use crate::processors::History;

/// The next block, drafted but not yet verified.
pub(super) struct PendingDraft<B> {
    /// The tokens d_1, d_2, …: S − 1 of them from the drafter, and any number from a proposer.
    pub(super) tokens: Vec<u32>,
    /// The drafter's confidence in each token, or for a certain token of a proposal the chance that it is accepted.
    pub(super) confidence: Vec<f32>,
    /// The tokens that count as certain, if the draft is a proposal that has any.
    pub(super) certain: Option<CertainTokens>,
    /// The logits that the tokens were drawn from. `None` if the acceptance rule does not need them, or if
    /// a proposer counts its tokens as certain.
    pub(super) logits: Option<DrawnFrom<B>>,
    /// v: the verify length that the request's confidence threshold gives.
    pub(super) verify_len: usize,
}

/// The location of the logits that a draft was drawn from.
pub(super) enum DrawnFrom<B> {
    /// The logits that the last step drafted from. They are valid until the next step has drafted.
    LastStep {
        /// The logits row of the first drafted token.
        first_row: usize,
        /// Index of the first drafted token among all draft tokens of the step.
        first_draw: usize,
    },
    /// The logits are in a separate buffer, from its first row on.
    Own(B),
    /// The warped scores of a proposal are in a separate buffer, from its first row on.
    Proposed(B),
}

/// The hooks of a request.
pub(super) struct Callbacks {
    pub(super) logits_hook: Option<Box<dyn LogitsHook>>,
    pub(super) mask_provider: Option<Box<dyn MaskProvider>>,
    pub(super) proposer: Option<Box<dyn Proposer>>,
}

/// A request that is being served or is waiting.
pub(super) struct Sequence<B> {
    pub(super) id: RequestId,
    /// The request. Its hooks moved to `callbacks`.
    pub(super) request: Request,
    /// The request's hooks. A step calls them while it reads the sequence.
    pub(super) callbacks: RefCell<Callbacks>,
    /// Whether the request has a proposer.
    pub(super) proposes: bool,
    /// S: the block size; 1 without a drafter.
    pub(super) block_size: usize,
    /// Whether a slot of a mask group predicts the token at its own or at the next position.
    pub(super) prediction: Prediction,
    /// The prompt and all committed tokens. The newest token's KV is not in the cache yet.
    pub(super) tokens: Vec<u32>,
    /// Number of tokens whose keys and values are in the cache.
    pub(super) cached: usize,
    /// Ids of the cache pages, in order of position.
    pub(super) pages: Vec<u32>,
    pub(super) draft: Option<PendingDraft<B>>,
    /// The rest of an earlier draft, if no draft is pending and the rest may still be right.
    pub(super) unverified: Option<UnverifiedTokens>,
    /// The total length at which the request ends, including the prompt.
    pub(super) max_len: usize,
}

/// The work of a sequence in the next step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Work {
    /// Read `rows` tokens of the prompt; `last` if this finishes the prompt.
    Prefill {
        rows: usize,
        last: bool,
    },
    /// Read `rows` tokens again, because their cache pages were given up for other sequences.
    Recompute {
        rows: usize,
    },
    Decode,
}

impl<B> Sequence<B> {
    /// Returns the sequence's rank, from its priority and its time of arrival: the sequence with the lowest rank is
    /// admitted first and keeps its cache pages longest.
    pub(super) fn rank(&self) -> (Reverse<i32>, RequestId) {
        (Reverse(self.request.priority), self.id)
    }

    /// Returns the tokens whose keys and values may come from the cache: all but the newest, from whose row the next
    /// token is drawn.
    pub(super) fn to_read(&self) -> &[u32] {
        &self.tokens[..self.tokens.len().saturating_sub(1)]
    }

    /// Returns the sequence's work in the next step, which reads at most `row_budget` tokens.
    pub(super) fn work(&self, row_budget: usize) -> Work {
        let pending = self.tokens.len() - self.cached;
        if self.tokens.len() == self.request.prompt.len() {
            let rows = pending.min(row_budget);
            Work::Prefill { rows, last: rows == pending }
        } else if pending > 1 {
            Work::Recompute { rows: (pending - 1).min(row_budget) }
        } else {
            Work::Decode
        }
    }

    /// Returns what the rows of a step that verifies `verify_len` draft tokens follow.
    pub(super) fn history(&self, verify_len: usize) -> History<'_> {
        History {
            tokens: &self.tokens,
            prompt_len: self.request.prompt.len(),
            draft: self.draft.as_ref().map_or(&[], |draft| &draft.tokens[..verify_len]),
            stop_ids: &self.request.stop_ids,
        }
    }

    /// Returns the tokens that `verdict` commits: d_1..d_a and, unless there was a fault, the bonus token.
    pub(super) fn committed(&self, verdict: SequenceVerdict) -> Vec<u32> {
        let accepted = self.draft.as_ref().map_or(&[][..], |draft| &draft.tokens[..verdict.accepted]);
        let bonus = verdict.fault.is_none().then_some(verdict.bonus);
        accepted.iter().copied().chain(bonus).collect()
    }

    /// Returns whether verification compares the target's distribution with the drafter's.
    pub(super) fn compares_distributions(&self) -> bool {
        !self.request.sampling.is_greedy() && self.request.rule != Rule::Match
    }

    /// Returns the comparison of the first draft token that no step verified with the bonus token of a step. The step verified
    /// `verify_len` draft tokens and commits `committed`.
    pub(super) fn compared(&self, verify_len: usize, committed: &[u32]) -> Option<ComparedToken> {
        if self.proposes || self.compares_distributions() {
            return None;
        }
        let (&bonus, accepted) = committed.split_last()?;
        match (&self.draft, &self.unverified) {
            (Some(draft), _) if accepted.len() == verify_len => {
                compare((&draft.tokens, &draft.confidence), verify_len, bonus)
            }
            (None, Some(rest)) => rest.compare(bonus),
            _ => None,
        }
    }

    /// Replaces the pending draft after a step with the comparison `compared`. Without a new draft, keeps the rest of the old
    /// draft if all its tokens so far were right.
    pub(super) fn replace_draft(&mut self, draft: Option<PendingDraft<B>>, compared: Option<ComparedToken>) {
        let old = std::mem::replace(&mut self.draft, draft);
        let rest = self.unverified.take();
        let (Some(ComparedToken { slot, is_equal: true, .. }), None) = (compared, &self.draft) else {
            return;
        };
        let slot = slot + 1;
        self.unverified = match old {
            Some(PendingDraft { tokens, confidence, .. }) => {
                Some(UnverifiedTokens { tokens, confidence, slot })
            }
            None => rest.map(|rest| UnverifiedTokens { slot, ..rest }),
        };
    }

    /// Returns the maximum number of tokens that the request may still commit.
    pub(super) fn wanted(&self) -> usize {
        self.max_len.saturating_sub(self.tokens.len())
    }

    /// Cuts `committed` at the first stop id (kept) or at the length limit.
    pub(super) fn cut(&self, committed: &mut Vec<u32>) -> Option<Finish> {
        let room = self.wanted();
        let stop = committed.iter().position(|token| self.request.stop_ids.contains(token));
        match stop {
            Some(last) if last < room => {
                committed.truncate(last + 1);
                Some(Finish::Stop)
            }
            _ if committed.len() >= room => {
                committed.truncate(room);
                Some(Finish::Length)
            }
            _ => None,
        }
    }
}

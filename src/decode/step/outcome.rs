//! The outcome of a step for one sequence.

use super::plan::SequencePlan;
use crate::decode::error::DecodeError;
use crate::decode::logprobs::TokenLogprobs;
use crate::decode::record::{BlockRecord, Record, StepRecord};
use crate::decode::sequence::{PendingDraft, Sequence, Work};
use crate::device::SequenceVerdict;

/// The outcome of a step for one sequence.
pub(in crate::decode) struct Outcome<B> {
    /// Number of candidates whose KV stays in the cache.
    pub(in crate::decode) kept: usize,
    /// The new tokens: the accepted drafts and the bonus token. Empty if no token was drawn, without the bonus token
    /// after a fault.
    pub(in crate::decode) committed: Vec<u32>,
    /// The log-probabilities of the new tokens, if the request asked for them.
    pub(in crate::decode) logprobs: Vec<TokenLogprobs>,
    pub(in crate::decode) draft: Option<PendingDraft<B>>,
    pub(in crate::decode) record: Option<Record>,
    /// The error that ends the request after the new tokens, if there is one.
    pub(in crate::decode) failure: Option<DecodeError>,
}

/// The tokens that a step drew for one plan.
pub(super) struct DrawnTokens<B> {
    /// The verdict, if the plan draws a token.
    pub(super) verdict: Option<SequenceVerdict>,
    /// The next block, if it was drafted.
    pub(super) draft: Option<PendingDraft<B>>,
    /// The target's logits before any change, one row per candidate that was verified, if the request asked for
    /// log-probabilities.
    pub(super) raw_logits: Vec<Vec<f32>>,
    /// The error that ends the request, if there is one.
    pub(super) failure: Option<DecodeError>,
}

impl<B> DrawnTokens<B> {
    /// Returns an entry without any drawn token.
    pub(super) fn nothing() -> Self {
        Self { verdict: None, draft: None, raw_logits: Vec::new(), failure: None }
    }

    /// Returns the outcome of `plan` for `sequence`.
    pub(super) fn outcome(self, sequence: &Sequence<B>, plan: &SequencePlan) -> Outcome<B> {
        let Self { verdict, draft, raw_logits, failure } = self;
        let Some(verdict) = verdict else {
            let (committed, logprobs, draft, record) = (Vec::new(), Vec::new(), None, None);
            return Outcome { kept: plan.rows(), committed, logprobs, draft, record, failure };
        };
        let is_recorded = sequence.request.record && verdict.fault.is_none();
        let record = is_recorded.then(|| record(sequence, plan, verdict, draft.as_ref()));
        let committed = sequence.committed(verdict);
        let count = sequence.request.logprobs.unwrap_or(0);
        let of_row = |(row, &token): (&Vec<f32>, &u32)| TokenLogprobs::of(row, token, count);
        Outcome {
            kept: plan.certain() + verdict.accepted + 1,
            logprobs: raw_logits.iter().zip(&committed).map(of_row).collect(),
            committed,
            draft,
            record,
            failure,
        }
    }
}

fn record<B>(
    sequence: &Sequence<B>,
    plan: &SequencePlan,
    verdict: SequenceVerdict,
    draft: Option<&PendingDraft<B>>,
) -> Record {
    let next = BlockRecord {
        bonus: verdict.bonus,
        draft: draft.map_or_else(Vec::new, |draft| draft.tokens.clone()),
        confidence: draft.map_or_else(Vec::new, |draft| draft.confidence.clone()),
    };
    if plan.work != Work::Decode {
        return Record::Prefill(next);
    }
    let drafted = sequence.draft.as_ref().map_or(&[][..], |draft| &draft.tokens[..plan.verify_len]);
    let newest = &sequence.tokens[sequence.cached..];
    Record::Step(StepRecord {
        mode: plan.mode(),
        position: sequence.cached,
        verify_len: plan.verify_len,
        groups: plan.groups.clone(),
        candidates: [newest, drafted].concat(),
        accepted: verdict.accepted,
        next,
    })
}

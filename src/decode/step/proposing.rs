//! Proposals for the next blocks, after the verification.

use super::groups::Draw;
use super::hooks;
use super::joint::Step;
use super::outcome::DrawnTokens;
use crate::decode::proposal::{Proposal, ProposalRequest, ProposedDraft};
use crate::decode::proposal_confidence::CertainTokens;
use crate::decode::sequence::{DrawnFrom, PendingDraft};
use crate::device::{Device, DeviceError};

/// Lets the proposer of `draw`'s request, if there is one, propose the next block, which replaces the draft in `drawn`.
/// A proposer that fails ends its request.
pub(super) fn propose<D: Device>(
    step: &Step<'_, D>,
    draw: Draw,
    drawn: &mut DrawnTokens<D::Buffer>,
) -> Result<(), DeviceError> {
    let DrawnTokens { verdict, draft, failure, .. } = drawn;
    let (plan, sequence) = (step.plan(draw), step.sequence(draw));
    let Some(verdict) = verdict.filter(|&verdict| plan.wants_proposal(sequence, verdict)) else {
        return Ok(());
    };
    let mut callbacks = sequence.callbacks.borrow_mut();
    let Some(proposer) = callbacks.proposer.as_mut().filter(|_| failure.is_none()) else { return Ok(()) };
    let prefix = [&sequence.tokens[..], &sequence.committed(verdict)].concat();
    let mut proposal = Proposal::new(ProposalRequest {
        vocab_size: step.model.config().vocab_size,
        sampling: &sequence.request.sampling,
        rule: sequence.request.rule,
        seed: sequence.request.seed,
        start: prefix.len() - 1,
        draft: draft.as_ref().map(|draft| (&draft.tokens[..], &draft.confidence[..], draft.verify_len)),
    });
    if let Err(error) = hooks::propose(&mut **proposer, &prefix, &mut proposal) {
        *failure = Some(error);
        return Ok(());
    }
    let source = proposer.source();
    let Some(ProposedDraft { tokens, confidence, places, verify_len, scores }) = proposal.finish() else {
        return Ok(());
    };
    let logits = match scores {
        None => None,
        Some(scores) => {
            let mut logits = step.model.new_logits();
            step.model.device().upload_draft(&scores, &mut logits)?;
            Some(DrawnFrom::Proposed(logits))
        }
    };
    let certain = places.contains(&true).then_some(CertainTokens { source, places });
    *draft = Some(PendingDraft { tokens, confidence, certain, logits, verify_len });
    Ok(())
}

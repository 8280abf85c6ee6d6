//! Drafting of the next blocks, after the verification.

use super::groups::{Drafting, Draw};
use super::joint::Step;
use super::outcome::DrawnTokens;
use crate::decode::error::DecodeError;
use crate::decode::sequence::{DrawnFrom, PendingDraft, Sequence};
use crate::device::{Device, DraftRows, DraftToken, SequenceVerdict, SlotRows, Verification};
use crate::layout::{GroupSet, Pass, SequenceRows};

/// A step whose candidates were verified.
pub(super) struct VerifiedStep<'a, D: Device> {
    step: Step<'a, D>,
    verification: D::Verification<'a>,
}

impl<'a, D: Device> VerifiedStep<'a, D> {
    /// A step, and the verification of its candidates.
    pub(super) fn new(step: Step<'a, D>, verification: D::Verification<'a>) -> Self {
        Self { step, verification }
    }

    /// Drafts the next blocks from `groups` and from drafting passes, and reads verdicts and drafts. Returns the
    /// tokens that were drawn for each plan.
    pub(super) fn draft(mut self, groups: Vec<Drafting>) -> Result<Vec<DrawnTokens<D::Buffer>>, DecodeError> {
        let mut drafting = self.worth_drafting(groups);
        self.sample(&mut drafting)?;
        let apart = self.worth_drafting_apart(&drafting);
        drafting.extend(self.draft_pass(&apart)?);
        let found = self.verification.read()?;
        let mut drawn: Vec<_> = self.step.plans.iter().map(|_| DrawnTokens::nothing()).collect();
        for (draw, verdict) in self.step.draws.iter().zip(found.verdicts) {
            drawn[draw.plan].verdict = Some(verdict);
        }
        self.keep(&drafting, found.drafts, &mut drawn);

        let missed = self.missed(&drawn);
        if !missed.is_empty() {
            let drafting = self.draft_pass(&missed)?;
            let found = self.verification.read()?;
            self.keep(&drafting, found.drafts, &mut drawn);
        }
        Ok(drawn)
    }

    /// Returns the verdict of a draw, if the device already knows its verdicts.
    fn verdict_if_ready(&self, draw: Draw) -> Option<SequenceVerdict> {
        self.verification.verdicts_if_ready()?.get(draw.verdict).copied()
    }

    /// Returns whether the sequence of a draw needs a draft after `verdict`.
    fn wants_draft(&self, draw: Draw, verdict: SequenceVerdict) -> bool {
        self.step.plan(draw).wants_draft(self.step.sequence(draw), verdict)
    }

    /// Returns the entries of `groups` that may be drafted from. If the device already knows its verdicts, these
    /// are the entries with a group for the accepted length.
    fn worth_drafting(&self, mut groups: Vec<Drafting>) -> Vec<Drafting> {
        if self.verification.verdicts_if_ready().is_some() {
            groups.retain(|groups| {
                self.verdict_if_ready(groups.draw).is_some_and(|verdict| {
                    groups.lengths.contains(verdict.accepted) && self.wants_draft(groups.draw, verdict)
                })
            });
        }
        groups
    }

    /// Returns the draws that have no group in the pass and may get a draft from a drafting pass. If the device
    /// already knows its verdicts, these are the draws that need one.
    fn worth_drafting_apart(&self, in_pass: &[Drafting]) -> Vec<Draw> {
        let worth = |&draw: &Draw| {
            let plan = self.step.plan(draw);
            match self.verdict_if_ready(draw) {
                Some(verdict) => {
                    self.wants_draft(draw, verdict)
                        && !in_pass.iter().any(|groups| groups.draw.plan == draw.plan)
                }
                None => plan.draft && plan.groups.is_empty() && self.step.sequence(draw).block_size > 1,
            }
        };
        self.step.draws.iter().copied().filter(worth).collect()
    }

    /// Returns the draws whose sequences want a draft and have none.
    fn missed(&self, drawn: &[DrawnTokens<D::Buffer>]) -> Vec<Draw> {
        let misses = |&draw: &Draw| {
            let DrawnTokens { verdict, draft } = &drawn[draw.plan];
            draft.is_none() && verdict.is_some_and(|verdict| self.wants_draft(draw, verdict))
        };
        self.step.draws.iter().copied().filter(misses).collect()
    }

    /// Drafts sequentially: one mask group for each of `draws`, through the tail only.
    fn draft_pass(&mut self, draws: &[Draw]) -> Result<Vec<Drafting>, DecodeError> {
        if draws.is_empty() {
            return Ok(Vec::new());
        }
        let verdicts = self.verification.verdicts_if_ready();
        let accepted = |draw: Draw| Some(verdicts?.get(draw.verdict)?.accepted);
        let Step { model, cache, work, sequences, plans, .. } = &mut self.step;
        let rows = draws.iter().map(|&draw| {
            let plan = &plans[draw.plan];
            let sequence = &sequences[plan.sequence];
            SequenceRows {
                pages: &sequence.pages,
                start: sequence.cached,
                candidates: 0,
                groups: vec![plan.certain() + accepted(draw).unwrap_or(plan.verify_len)],
                slots: sequence.block_size,
            }
        });
        let pass = Pass { sequences: rows.collect() };
        let mut first_row = 0;
        let groups = draws.iter().zip(&pass.sequences).map(|(&draw, rows)| {
            let lengths = accepted(draw).map_or(GroupSet::NONE, |a| GroupSet::NONE.with(a));
            let drafting = Drafting::in_pass(draw, lengths, first_row);
            first_row += rows.slots;
            drafting
        });
        let mut drafting: Vec<Drafting> = groups.collect();
        let verdicts: Vec<usize> = draws.iter().map(|draw| draw.verdict).collect();
        model.draft_forward(&pass, &verdicts, &self.verification, cache, work)?;
        self.sample(&mut drafting)?;
        Ok(drafting)
    }

    /// Calibrates and samples slots 1..S of the groups that the verdicts select, in the pass that ran last. Logits
    /// that are still to be computed go to the next free rows.
    fn sample(&mut self, drafting: &mut [Drafting]) -> Result<(), DecodeError> {
        let Some(rows) = drafting.first().map(|groups| groups.rows) else { return Ok(()) };
        // The groups of a pass have all their logits before the verdict, or all after it.
        let rows = match rows {
            SlotRows::Logits => SlotRows::Logits,
            SlotRows::Pass { .. } => SlotRows::Pass { first_logits: self.step.next_row },
        };
        let mut first_draw = self.verification.drafted_rows();
        for groups in &mut *drafting {
            let drafted = self.step.drafted(groups.draw);
            groups.first_draw = first_draw;
            first_draw += drafted;
            if let SlotRows::Pass { first_logits } = &mut groups.rows {
                *first_logits = self.step.next_row;
                self.step.next_row += drafted;
            }
        }
        let Step { model, work, next_drafts, sequences, plans, .. } = &mut self.step;
        let requests: Vec<DraftRows<'_>> = drafting
            .iter()
            .map(|groups| {
                let sequence = &sequences[plans[groups.draw.plan].sequence];
                DraftRows {
                    sequence: groups.draw.verdict,
                    groups: groups.lengths,
                    first_row: groups.first_row,
                    slots: sequence.block_size,
                    sampling: &sequence.request.sampling,
                    rule: sequence.request.rule,
                    seed: sequence.request.seed,
                }
            })
            .collect();
        Ok(model.draft(&requests, rows, &mut self.verification, work, next_drafts)?)
    }

    /// Keeps the drafts that are wanted and whose groups are for the accepted lengths.
    fn keep(
        &mut self,
        drafting: &[Drafting],
        drafts: Vec<Vec<DraftToken>>,
        drawn: &mut [DrawnTokens<D::Buffer>],
    ) {
        let vocab_size = self.step.model.config().vocab_size;
        for (groups, slots) in drafting.iter().zip(drafts) {
            let DrawnTokens { verdict, draft } = &mut drawn[groups.draw.plan];
            let Some(verdict) = *verdict else { continue };
            if !groups.has(verdict.accepted) || !self.wants_draft(groups.draw, verdict) {
                continue;
            }
            let sequence = &mut self.step.sequences[self.step.plans[groups.draw.plan].sequence];
            let mut tokens: Vec<u32> = slots.iter().map(|slot| slot.token).collect();
            let confidence: Vec<f32> = slots.iter().map(|slot| slot.confidence).collect();
            let proposed = propose(sequence, verdict, vocab_size, &mut tokens);
            let compared = sequence.compares_distributions() && !proposed;
            let first_row = groups.logits_row(verdict.accepted, tokens.len());
            let logits = compared.then_some(DrawnFrom::LastStep { first_row, first_draw: groups.first_draw });
            let verify_len = sequence.request.confidence.verify_len(&confidence);
            *draft = Some(PendingDraft { tokens, confidence, logits, verify_len });
        }
    }
}

/// Lets the request's proposer replace the drafter's tokens. Returns whether it did.
fn propose<B>(
    sequence: &mut Sequence<B>,
    verdict: SequenceVerdict,
    vocab_size: usize,
    tokens: &mut Vec<u32>,
) -> bool {
    let committed = sequence.committed(verdict);
    let Some(proposer) = sequence.request.proposer.as_mut() else { return false };
    let prefix = [&sequence.tokens[..], &committed].concat();
    let mut proposal = tokens.clone();
    let proposed = proposer.propose(&prefix, &mut proposal)
        && proposal.iter().all(|&token| (token as usize) < vocab_size);
    if proposed {
        *tokens = proposal;
    }
    proposed
}

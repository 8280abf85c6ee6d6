//! Drafting of the next blocks, after the verification.

use super::groups::{Drafting, Draw};
use super::joint::Step;
use super::layout::{DraftingLayout, draft_rows, draft_tables};
use super::outcome::DrawnTokens;
use super::proposing;
use crate::decode::sequence::{DrawnFrom, PendingDraft};
use crate::device::{Device, DeviceError, DraftToken, SequenceVerdict, Verification};

/// A step whose candidates were verified.
pub(super) struct VerifiedStep<'a, D: Device> {
    step: Step<'a, D>,
    verification: D::Verification<'a>,
}

impl<'a, D: Device> VerifiedStep<'a, D> {
    /// Makes a verified step from a step and the verification of its candidates.
    pub(super) fn new(step: Step<'a, D>, verification: D::Verification<'a>) -> Self {
        Self { step, verification }
    }

    /// Drafts the next blocks from the groups of the joint pass and from drafting passes, and reads verdicts and drafts.
    /// Returns the tokens that were drawn for each plan.
    pub(super) fn draft(mut self) -> Result<Vec<DrawnTokens<D::Buffer>>, DeviceError> {
        let drafting = if self.verification.verdicts_if_ready().is_some() {
            self.draft_by_verdicts()?
        } else {
            self.draft_as_laid_out()?
        };
        let found = self.verification.read()?;
        let mut drawn: Vec<_> = self.step.plans.iter().map(|_| DrawnTokens::nothing()).collect();
        for (draw, verdict) in self.step.layout.draws.iter().zip(found.verdicts) {
            drawn[draw.plan].failure = self.step.failure(*draw, verdict);
            drawn[draw.plan].verdict = Some(verdict);
        }
        for (draw, rows) in self.step.layout.draws.iter().zip(std::mem::take(&mut self.step.raw_logits)) {
            drawn[draw.plan].raw_logits = rows;
        }
        self.keep(&drafting, found.drafts, &mut drawn);

        let missed = self.missed(&drawn);
        if !missed.is_empty() {
            let drafting = self.draft_pass(&missed)?;
            let found = self.verification.read()?;
            self.keep(&drafting, found.drafts, &mut drawn);
        }
        for draw in &self.step.layout.draws {
            proposing::propose(&self.step, *draw, &mut drawn[draw.plan])?;
        }
        Ok(drawn)
    }

    /// Drafts from all groups that the step's layout has, while the host does not know the verdicts.
    fn draft_as_laid_out(&mut self) -> Result<Vec<Drafting>, DeviceError> {
        let Self { step, verification } = self;
        let (layout, tables) = (step.layout, step.tables);
        let mut drafting = layout.groups.clone();
        if !drafting.is_empty() {
            step.model.draft(tables.drafts, verification, step.work, step.next_drafts)?;
        }
        if let (Some(apart), Some((pass, drafts))) = (&layout.apart, tables.drafting) {
            step.model.draft_forward(pass, verification, step.cache, step.work)?;
            step.model.draft(drafts, verification, step.work, step.next_drafts)?;
            drafting.extend_from_slice(&apart.groups);
        }
        Ok(drafting)
    }

    /// Drafts only for sequences that need a draft after their verdict; the host already knows the verdicts.
    fn draft_by_verdicts(&mut self) -> Result<Vec<Drafting>, DeviceError> {
        let mut drafting = self.worth_drafting();
        self.step.places = self.step.layout.first_places;
        self.sample(&mut drafting)?;
        let apart = self.worth_drafting_apart(&drafting);
        drafting.extend(self.draft_pass(&apart)?);
        Ok(drafting)
    }

    /// Returns the verdict for the plan of `draw`, if the host already knows the verdicts.
    fn verdict_if_ready(&self, draw: Draw) -> Option<SequenceVerdict> {
        self.verification.verdicts_if_ready()?.get(draw.verdict).copied()
    }

    /// Returns whether the sequence of `draw`'s plan needs a draft after `verdict`.
    fn wants_draft(&self, draw: Draw, verdict: SequenceVerdict) -> bool {
        self.step.plan(draw).wants_draft(self.step.sequence(draw), verdict)
    }

    /// Returns the mask groups of sequences that need a draft after their verdict, if the joint pass has a group for
    /// the accepted length.
    fn worth_drafting(&self) -> Vec<Drafting> {
        let worth = |groups: &Drafting| {
            self.verdict_if_ready(groups.draw).is_some_and(|verdict| {
                groups.lengths.contains(verdict.accepted) && self.wants_draft(groups.draw, verdict)
            })
        };
        self.step.layout.groups.iter().filter(|groups| worth(groups)).cloned().collect()
    }

    /// Returns the plans whose sequences need a draft after their verdict, and get none from `in_pass`, the groups of
    /// the joint pass.
    fn worth_drafting_apart(&self, in_pass: &[Drafting]) -> Vec<Draw> {
        let worth = |&draw: &Draw| {
            self.verdict_if_ready(draw).is_some_and(|verdict| self.wants_draft(draw, verdict))
                && !in_pass.iter().any(|groups| groups.draw.plan == draw.plan)
        };
        self.step.layout.draws.iter().copied().filter(worth).collect()
    }

    /// Returns the plans whose sequences need a draft after their verdict, and have none in `drawn`.
    fn missed(&self, drawn: &[DrawnTokens<D::Buffer>]) -> Vec<Draw> {
        let misses = |&draw: &Draw| {
            let DrawnTokens { verdict, draft, failure, .. } = &drawn[draw.plan];
            failure.is_none()
                && draft.is_none()
                && verdict.is_some_and(|verdict| self.wants_draft(draw, verdict))
        };
        self.step.layout.draws.iter().copied().filter(misses).collect()
    }

    /// Drafts sequentially, after the verification: runs one mask group for each plan of `draws` through the tail
    /// layers, and draws tokens from it.
    fn draft_pass(&mut self, draws: &[Draw]) -> Result<Vec<Drafting>, DeviceError> {
        if draws.is_empty() {
            return Ok(Vec::new());
        }
        let Self { step, verification } = self;
        let verdicts = verification.verdicts_if_ready();
        let accepted = |draw: Draw| Some(verdicts?.get(draw.verdict)?.accepted);
        let laid_out = DraftingLayout::new(draws, accepted, step.sequences, step.plans);
        step.model.draft_forward(laid_out.pass(), verification, step.cache, step.work)?;
        let mut groups = laid_out.groups;
        self.sample(&mut groups)?;
        Ok(groups)
    }

    /// Calibrates the logits of the groups that the verdicts select in the pass that ran last, and samples the draft
    /// tokens. Logits that are still to be computed go to the next free rows.
    fn sample(&mut self, groups: &mut [Drafting]) -> Result<(), DeviceError> {
        let Self { step: Step { model, work, next_drafts, sequences, plans, places, .. }, verification } =
            self;
        if groups.is_empty() {
            return Ok(());
        }
        places.give(groups, sequences, plans);
        let drafts = draft_rows(groups, sequences, plans);
        model.draft(draft_tables(groups, &drafts), verification, work, next_drafts)
    }

    /// Stores a sequence's draft in `drawn`, if the sequence needs a draft after its verdict and the draft's group is
    /// for the accepted length.
    fn keep(
        &mut self,
        drafting: &[Drafting],
        drafts: Vec<Vec<DraftToken>>,
        drawn: &mut [DrawnTokens<D::Buffer>],
    ) {
        for (groups, slots) in drafting.iter().zip(drafts) {
            let DrawnTokens { verdict, draft, .. } = &mut drawn[groups.draw.plan];
            let Some(verdict) = *verdict else { continue };
            if !groups.has(verdict.accepted) || !self.wants_draft(groups.draw, verdict) {
                continue;
            }
            let sequence = &self.step.sequences[self.step.plans[groups.draw.plan].sequence];
            let tokens: Vec<u32> = slots.iter().map(|slot| slot.token).collect();
            let confidence: Vec<f32> = slots.iter().map(|slot| slot.confidence).collect();
            let first_row = groups.logits_row(verdict.accepted, tokens.len());
            let first_draw = groups.first_draw;
            let compared = sequence.compares_distributions();
            let logits = compared.then_some(DrawnFrom::LastStep { first_row, first_draw });
            let verify_len = sequence.request.confidence.verify_len(&confidence);
            *draft = Some(PendingDraft { tokens, confidence, certain: None, logits, verify_len });
        }
    }
}

//! The joint pass of a step, and the verification of its candidates.

use super::buffers::StepBuffers;
use super::groups::{Drafting, Draw};
use super::plan::SequencePlan;
use crate::decode::error::DecodeError;
use crate::decode::sequence::{DrawnFrom, Sequence, Work};
use crate::device::{Device, DraftLogits, SlotRows, VerifyRows};
use crate::layout::{Pass, SequenceRows};
use crate::model::forward::{Model, Workspace};

/// A step while it runs: the plans, the sequences that they are for, and the memory that they use.
pub(super) struct Step<'a, D: Device> {
    pub(super) model: &'a Model<D>,
    pub(super) cache: &'a mut D::Cache,
    pub(super) work: &'a mut Workspace<D>,
    /// Logits of the candidates, if they have a buffer of their own.
    target_logits: &'a mut D::Buffer,
    /// The logits of the drafts that the step verifies.
    last_drafts: &'a D::Buffer,
    /// The logits of the drafts that the step makes.
    pub(super) next_drafts: &'a mut D::Buffer,
    /// Number of rows of `next_drafts` in use.
    pub(super) next_row: usize,
    pub(super) sequences: &'a mut [Sequence<D::Buffer>],
    pub(super) plans: &'a [SequencePlan],
    /// The plans that draw a token.
    pub(super) draws: Vec<Draw>,
}

impl<'a, D: Device> Step<'a, D> {
    /// Makes a step, and returns it with the memory of its verification.
    pub(super) fn new(
        model: &'a Model<D>,
        cache: &'a mut D::Cache,
        buffers: &'a mut StepBuffers<D>,
        sequences: &'a mut [Sequence<D::Buffer>],
        plans: &'a [SequencePlan],
    ) -> (Self, &'a mut D::Results) {
        let StepBuffers { work, target_logits, last_drafts, next_drafts, results } = buffers;
        let draws = Draw::all(plans);
        let step = Self {
            model,
            cache,
            work,
            target_logits,
            last_drafts,
            next_drafts,
            next_row: 0,
            sequences,
            plans,
            draws,
        };
        (step, results)
    }

    /// Returns the plan of a draw.
    pub(super) fn plan(&self, draw: Draw) -> &'a SequencePlan {
        &self.plans[draw.plan]
    }

    /// Returns the sequence of a draw.
    pub(super) fn sequence(&self, draw: Draw) -> &Sequence<D::Buffer> {
        &self.sequences[self.plan(draw).sequence]
    }

    /// Returns the number of tokens that a block of a draw's sequence drafts: S − 1.
    pub(super) fn drafted(&self, draw: Draw) -> usize {
        self.sequence(draw).block_size.saturating_sub(1)
    }

    /// Runs the joint pass. Returns the groups in it.
    pub(super) fn forward(&mut self) -> Result<Vec<Drafting>, DecodeError> {
        let mut tokens = Vec::new();
        let mut pass = Pass::default();
        for plan in self.plans {
            let sequence = &self.sequences[plan.sequence];
            let own = sequence.tokens.len().min(sequence.cached + plan.rows());
            tokens.extend_from_slice(&sequence.tokens[sequence.cached..own]);
            if let (Work::Decode, Some(draft)) = (plan.work, &sequence.draft) {
                tokens.extend_from_slice(&draft.tokens[..plan.verify_len]);
            }
            pass.sequences.push(SequenceRows {
                pages: &sequence.pages,
                start: sequence.cached,
                candidates: plan.rows(),
                groups: plan.groups.clone(),
                slots: sequence.block_size,
            });
        }
        self.model.forward(&pass, &tokens, self.cache, self.work)?;
        let groups = |&draw: &Draw| {
            let plan = &self.plans[draw.plan];
            let first_row = pass.group_rows(draw.plan, *plan.groups.first()?)?.start;
            let lengths = plan.groups.iter().map(|k| k - plan.certain()).collect();
            Some(Drafting::in_pass(draw, lengths, first_row))
        };
        Ok(self.draws.iter().filter_map(groups).collect())
    }

    /// Computes the target's logits, lets hooks edit them, and verifies the drafts. If one head product computes
    /// the logits of candidates and `groups`, `groups` become rows of the logits.
    pub(super) fn verify(
        &mut self,
        groups: &mut [Drafting],
        results: &'a mut D::Results,
    ) -> Result<D::Verification<'a>, DecodeError> {
        let candidates = |&draw: &Draw| {
            let plan = &self.plans[draw.plan];
            draw.first_candidate..draw.first_candidate + plan.rows() - plan.certain()
        };
        let mut rows: Vec<usize> = self.draws.iter().flat_map(candidates).collect();
        let joined = self.join(groups, &mut rows);
        let Self { model, work, target_logits, last_drafts, next_drafts, sequences, plans, draws, .. } = self;
        let (model, last_drafts, plans) = (*model, *last_drafts, *plans);
        let target_logits = if joined { next_drafts } else { target_logits };
        model.logits(&rows, work, target_logits)?;

        for draw in &*draws {
            let plan = &plans[draw.plan];
            let sequence = &mut sequences[plan.sequence];
            let Some(hook) = sequence.request.logits_hook.as_mut() else { continue };
            let mut prefix = sequence.tokens.clone();
            for i in 0..=plan.verify_len {
                let mut edit = |logits: &mut [f32]| hook.edit(prefix.len(), &prefix, logits);
                model.device().edit_row(target_logits, draw.first_logits + i, &mut edit)?;
                prefix.extend(sequence.draft.as_ref().and_then(|draft| draft.tokens.get(i)));
            }
        }

        let requests: Vec<VerifyRows<'_, D::Buffer>> = draws
            .iter()
            .map(|draw| {
                let plan = &plans[draw.plan];
                let sequence = &sequences[plan.sequence];
                let draft = sequence.draft.as_ref();
                VerifyRows {
                    first_row: draw.first_logits,
                    draft: draft.map_or(&[], |draft| &draft.tokens[..plan.verify_len]),
                    draft_logits: draft.and_then(|draft| draft.logits.as_ref()).map(|from| match from {
                        &DrawnFrom::LastStep { first_row, first_draw } => {
                            DraftLogits { logits: last_drafts, first_row, first_draw }
                        }
                        DrawnFrom::Own(logits) => DraftLogits { logits, first_row: 0, first_draw: 0 },
                    }),
                    sampling: &sequence.request.sampling,
                    rule: sequence.request.rule,
                    seed: sequence.request.seed,
                    start: sequence.cached + plan.certain(),
                }
            })
            .collect();
        Ok(model.device().verify(target_logits, &requests, results)?)
    }

    /// Adds the slots of all `groups` to the candidates' `rows`, if one head product is to compute the logits of
    /// both. Returns whether it is.
    fn join(&mut self, groups: &mut [Drafting], rows: &mut Vec<usize>) -> bool {
        let drafted = |groups: &Drafting| self.drafted(groups.draw);
        let all: usize = groups.iter().map(|groups| groups.count() * drafted(groups)).sum();
        let selected = groups.iter().map(drafted).sum();
        if !self.model.joins_head_products(rows.len(), all, selected) {
            return false;
        }
        for groups in groups {
            let (first, slots) = (groups.first_row, self.sequence(groups.draw).block_size);
            (groups.first_row, groups.rows) = (rows.len(), SlotRows::Logits);
            for rank in 0..groups.count() {
                rows.extend(first + rank * slots + 1..first + (rank + 1) * slots);
            }
        }
        self.next_row = rows.len();
        true
    }
}

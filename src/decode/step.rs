//! One step: forward, accept, draft the next block.
//!
//! Everything that can fail happens before any sequence changes: [`run`] only computes, and what it
//! returns is committed afterwards.

use std::ops::Range;

use super::error::DecodeError;
use super::record::{BlockRecord, Record, StepMode, StepRecord};
use super::sequence::{Draft, Sequence, Work};
use crate::device::{Device, DraftRows, VerifyRows};
use crate::layout::{Pass, SequenceRows};
use crate::model::forward::{DraftSlots, Model, Workspace};

/// What a step does for one sequence.
#[derive(Clone, Debug)]
pub(super) struct Plan {
    /// Index of the sequence.
    pub(super) sequence: usize,
    pub(super) work: Work,
    /// v; 0 where nothing is verified.
    pub(super) verify_len: usize,
    /// K.
    pub(super) groups: Vec<usize>,
    /// Whether the next block is drafted.
    pub(super) draft: bool,
}

impl Plan {
    /// Candidate rows of the sequence.
    pub(super) fn rows(&self) -> usize {
        match self.work {
            Work::Prefill { rows, .. } | Work::Recompute { rows } => rows,
            Work::Decode => self.verify_len + 1,
        }
    }

    /// Whether a token is drawn after the rows.
    pub(super) fn draws(&self) -> bool {
        matches!(self.work, Work::Decode | Work::Prefill { last: true, .. })
    }

    /// How many of the rows are known to be accepted before the step.
    fn certain(&self) -> usize {
        match self.work {
            Work::Decode => 0,
            Work::Prefill { rows, .. } | Work::Recompute { rows } => rows.saturating_sub(1),
        }
    }

    pub(super) fn mode(&self) -> StepMode {
        match (self.draft, self.groups.len()) {
            (false, 0) if self.verify_len == 0 => StepMode::Autoregressive,
            (_, 0) => StepMode::Sequential,
            (_, groups) if groups == self.verify_len + 1 => StepMode::Parallel,
            _ => StepMode::Mixed,
        }
    }
}

/// What a step yielded for one sequence.
pub(super) struct Outcome<B> {
    /// Candidates whose KV stays.
    pub(super) kept: usize,
    /// New tokens: the accepted drafts and the bonus token. Empty where none was drawn.
    pub(super) committed: Vec<u32>,
    pub(super) draft: Option<Draft<B>>,
    pub(super) record: Option<Record>,
}

/// Buffers of a step, reused from step to step.
pub(super) struct StepBuffers<D: Device> {
    work: Workspace<D>,
    target_logits: D::Buffer,
    draft_logits: D::Buffer,
}

impl<D: Device> StepBuffers<D> {
    pub(super) fn new(model: &Model<D>) -> Self {
        Self {
            work: model.new_workspace(),
            target_logits: model.new_logits(),
            draft_logits: model.new_logits(),
        }
    }
}

/// The groups of one plan: accepted length, and rows of the pass.
type GroupRows = Vec<(usize, Range<usize>)>;

/// A verification's result, before the next block is drafted.
struct Verified {
    accepted: usize,
    bonus: u32,
}

/// Runs the planned step. Sequences keep their tokens, drafts and lengths; spare logits buffers may move
/// into the outcomes.
pub(super) fn run<D: Device>(
    model: &Model<D>,
    cache: &mut D::Cache,
    buffers: &mut StepBuffers<D>,
    sequences: &mut [Sequence<D::Buffer>],
    plans: &[Plan],
) -> Result<Vec<Outcome<D::Buffer>>, DecodeError> {
    let group_rows = forward(model, cache, buffers, sequences, plans)?;
    let verified = verify(model, buffers, sequences, plans)?;

    let mut drafts: Vec<Option<Draft<D::Buffer>>> = plans.iter().map(|_| None).collect();
    let (mut drafted_in_pass, mut to_draft) = (Vec::new(), Vec::new());
    for (index, (plan, verified)) in plans.iter().zip(&verified).enumerate() {
        let Some(verified) = verified else { continue };
        if !wants_draft(&sequences[plan.sequence], plan, verified) {
            continue;
        }
        let accepted = plan.certain() + verified.accepted;
        match group_rows[index].iter().find(|(k, _)| *k == accepted) {
            Some((_, rows)) => drafted_in_pass.push((index, rows.start + 1..rows.end)),
            None => to_draft.push((index, accepted)),
        }
    }
    draft(model, buffers, sequences, plans, &verified, &drafted_in_pass, &mut drafts)?;
    if !to_draft.is_empty() {
        let slots = draft_pass(model, cache, buffers, sequences, plans, &to_draft)?;
        draft(model, buffers, sequences, plans, &verified, &slots, &mut drafts)?;
    }

    Ok(plans
        .iter()
        .zip(verified)
        .zip(drafts)
        .map(|((plan, verified), draft)| outcome(&sequences[plan.sequence], plan, verified, draft))
        .collect())
}

/// The joint pass. Returns, for each plan, the rows of each of its groups.
fn forward<D: Device>(
    model: &Model<D>,
    cache: &mut D::Cache,
    buffers: &mut StepBuffers<D>,
    sequences: &[Sequence<D::Buffer>],
    plans: &[Plan],
) -> Result<Vec<GroupRows>, DecodeError> {
    let mut tokens = Vec::new();
    let mut pass = Pass::default();
    for plan in plans {
        let sequence = &sequences[plan.sequence];
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
    model.forward(&pass, &tokens, cache, &mut buffers.work)?;
    let rows_of = |(index, plan): (usize, &Plan)| {
        plan.groups.iter().filter_map(|&k| Some((k, pass.group_rows(index, k)?))).collect()
    };
    Ok(plans.iter().enumerate().map(rows_of).collect())
}

/// Target logits, hooks, acceptance. `None` for plans that draw no token.
fn verify<D: Device>(
    model: &Model<D>,
    buffers: &mut StepBuffers<D>,
    sequences: &mut [Sequence<D::Buffer>],
    plans: &[Plan],
) -> Result<Vec<Option<Verified>>, DecodeError> {
    let mut rows = Vec::new();
    let mut first_rows = Vec::new();
    let mut first_candidate = 0;
    for plan in plans {
        first_rows.push(rows.len());
        if plan.draws() {
            rows.extend(first_candidate + plan.certain()..first_candidate + plan.rows());
        }
        first_candidate += plan.rows();
    }
    model.logits(&rows, &mut buffers.work, &mut buffers.target_logits)?;

    for (plan, &first_row) in plans.iter().zip(&first_rows) {
        let sequence = &mut sequences[plan.sequence];
        let Some(hook) = sequence.request.logits_hook.as_mut().filter(|_| plan.draws()) else { continue };
        let mut prefix = sequence.tokens.clone();
        for i in 0..=plan.verify_len {
            let mut edit = |logits: &mut [f32]| hook.edit(prefix.len(), &prefix, logits);
            model.device().edit_row(&mut buffers.target_logits, first_row + i, &mut edit)?;
            prefix.extend(sequence.draft.as_ref().and_then(|draft| draft.tokens.get(i)));
        }
    }

    let drawing: Vec<(usize, &Plan)> = plans.iter().enumerate().filter(|(_, plan)| plan.draws()).collect();
    let requests: Vec<VerifyRows<'_, D::Buffer>> = drawing
        .iter()
        .map(|&(index, plan)| {
            let sequence = &sequences[plan.sequence];
            let draft = sequence.draft.as_ref();
            VerifyRows {
                first_row: first_rows[index],
                draft: draft.map_or(&[], |draft| &draft.tokens[..plan.verify_len]),
                draft_logits: draft.and_then(|draft| draft.logits.as_ref()),
                sampling: &sequence.request.sampling,
                rule: sequence.request.rule,
                seed: sequence.request.seed,
                start: sequence.cached + plan.certain(),
            }
        })
        .collect();
    let verdicts = model.device().verify(&buffers.target_logits, &requests)?;
    let mut verified: Vec<Option<Verified>> = plans.iter().map(|_| None).collect();
    for ((index, _), verdict) in drawing.into_iter().zip(verdicts) {
        verified[index] = Some(Verified { accepted: verdict.accepted, bonus: verdict.bonus });
    }
    Ok(verified)
}

/// A request that ends with this step needs no further draft, unless its record is to be whole.
fn wants_draft<B>(sequence: &Sequence<B>, plan: &Plan, verified: &Verified) -> bool {
    plan.draft
        && sequence.block_size > 1
        && (sequence.request.record || sequence.cut(&mut committed(sequence, verified)).is_none())
}

/// d_1..d_a and the bonus token.
fn committed<B>(sequence: &Sequence<B>, verified: &Verified) -> Vec<u32> {
    let accepted = sequence.draft.as_ref().map_or(&[][..], |draft| &draft.tokens[..verified.accepted]);
    [accepted, &[verified.bonus]].concat()
}

/// Sequential drafting: one group of mask rows a sequence, through the tail only.
fn draft_pass<D: Device>(
    model: &Model<D>,
    cache: &mut D::Cache,
    buffers: &mut StepBuffers<D>,
    sequences: &[Sequence<D::Buffer>],
    plans: &[Plan],
    to_draft: &[(usize, usize)],
) -> Result<Vec<(usize, Range<usize>)>, DecodeError> {
    let rows = to_draft.iter().map(|&(index, accepted)| {
        let sequence = &sequences[plans[index].sequence];
        SequenceRows {
            pages: &sequence.pages,
            start: sequence.cached,
            candidates: 0,
            groups: vec![accepted],
            slots: sequence.block_size,
        }
    });
    let pass = Pass { sequences: rows.collect() };
    model.forward(&pass, &[], cache, &mut buffers.work)?;
    let slots = |(row, &(index, accepted)): (usize, &(usize, usize))| {
        let rows = pass.group_rows(row, accepted)?;
        Some((index, rows.start + 1..rows.end))
    };
    Ok(to_draft.iter().enumerate().filter_map(slots).collect())
}

/// Calibrates and samples slots 1..S of the groups that came true. `slots` are (plan, rows of the pass
/// that ran last).
fn draft<D: Device>(
    model: &Model<D>,
    buffers: &mut StepBuffers<D>,
    sequences: &mut [Sequence<D::Buffer>],
    plans: &[Plan],
    verified: &[Option<Verified>],
    slots: &[(usize, Range<usize>)],
    drafts: &mut [Option<Draft<D::Buffer>>],
) -> Result<(), DecodeError> {
    if slots.is_empty() {
        return Ok(());
    }
    let bonus = |index: usize| verified[index].as_ref().map_or(0, |verified| verified.bonus);
    let draft_slots: Vec<DraftSlots> =
        slots.iter().map(|(index, rows)| DraftSlots { rows: rows.clone(), bonus: bonus(*index) }).collect();

    let mut first_row = 0;
    let requests: Vec<DraftRows<'_>> = slots
        .iter()
        .map(|(index, rows)| {
            let plan = &plans[*index];
            let sequence = &sequences[plan.sequence];
            let accepted = verified[*index].as_ref().map_or(0, |verified| verified.accepted);
            let rows = first_row..first_row + rows.len();
            first_row = rows.end;
            DraftRows {
                rows,
                sampling: &sequence.request.sampling,
                rule: sequence.request.rule,
                seed: sequence.request.seed,
                start: sequence.cached + plan.certain() + accepted + 1,
            }
        })
        .collect();
    let drafted = model.draft(&draft_slots, &requests, &mut buffers.work, &mut buffers.draft_logits)?;
    let logits_rows: Vec<Range<usize>> = requests.into_iter().map(|request| request.rows).collect();

    for (((index, _), drafted), rows) in slots.iter().zip(drafted).zip(logits_rows) {
        let sequence = &mut sequences[plans[*index].sequence];
        let mut tokens: Vec<u32> = drafted.iter().map(|slot| slot.token).collect();
        let confidence: Vec<f32> = drafted.iter().map(|slot| slot.confidence).collect();
        let proposed = verified[*index]
            .as_ref()
            .is_some_and(|verified| propose(sequence, verified, model.config().vocab_size, &mut tokens));
        let mut logits = None;
        if sequence.keeps_draft_logits() && !proposed {
            let mut kept = sequence.spare_logits.take().unwrap_or_else(|| model.new_logits());
            let rows: Vec<usize> = rows.collect();
            model.device().gather(&buffers.draft_logits, &rows, &mut kept)?;
            logits = Some(kept);
        }
        let verify_len = sequence.request.confidence.verify_len(&confidence);
        drafts[*index] = Some(Draft { tokens, confidence, logits, verify_len });
    }
    Ok(())
}

/// Lets the request's proposer replace the drafter's tokens.
fn propose<B>(
    sequence: &mut Sequence<B>,
    verified: &Verified,
    vocab_size: usize,
    tokens: &mut Vec<u32>,
) -> bool {
    let committed = committed(sequence, verified);
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

fn outcome<B>(
    sequence: &Sequence<B>,
    plan: &Plan,
    verified: Option<Verified>,
    draft: Option<Draft<B>>,
) -> Outcome<B> {
    let Some(verified) = verified else {
        return Outcome { kept: plan.rows(), committed: Vec::new(), draft: None, record: None };
    };
    let record = sequence.request.record.then(|| {
        let next = BlockRecord {
            bonus: verified.bonus,
            draft: draft.as_ref().map_or_else(Vec::new, |draft| draft.tokens.clone()),
            confidence: draft.as_ref().map_or_else(Vec::new, |draft| draft.confidence.clone()),
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
            accepted: verified.accepted,
            next,
        })
    });
    Outcome {
        kept: plan.certain() + verified.accepted + 1,
        committed: committed(sequence, &verified),
        draft,
        record,
    }
}

//! One step: forward, accept, draft the next block.
//!
//! Everything that can fail happens before any sequence changes: [`run`] only computes, and what it
//! returns is committed afterwards.

use super::error::DecodeError;
use super::record::{BlockRecord, Record, StepMode, StepRecord};
use super::sequence::{Draft, Sequence, Work};
use crate::device::{Device, DraftRows, DraftToken, Verdict, VerifyRows};
use crate::layout::{GroupSet, Pass, SequenceRows};
use crate::model::forward::{Model, Workspace};

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
    results: D::Results,
}

impl<D: Device> StepBuffers<D> {
    pub(super) fn new(model: &Model<D>) -> Self {
        Self {
            work: model.new_workspace(),
            target_logits: model.new_logits(),
            draft_logits: model.new_logits(),
            results: model.device().new_results(),
        }
    }
}

/// The groups that a plan's sequence has in the pass that ran last.
struct Drafting {
    /// Index of the plan.
    plan: usize,
    /// Index of its verdict.
    verdict: usize,
    /// Their accepted lengths, as the verdict counts them.
    lengths: GroupSet,
    /// The row of slot 0 of the first of them.
    first_row: usize,
}

/// Runs the planned step. Sequences keep their tokens, drafts and lengths; spare logits buffers may move
/// into the outcomes.
///
/// The device is waited for once, for the verdicts and the drafts from groups in the pass; once more where
/// a sequence drafts in a pass of its own; and not at all where no token is drawn.
pub(super) fn run<D: Device>(
    model: &Model<D>,
    cache: &mut D::Cache,
    buffers: &mut StepBuffers<D>,
    sequences: &mut [Sequence<D::Buffer>],
    plans: &[Plan],
) -> Result<Vec<Outcome<D::Buffer>>, DecodeError> {
    let mut verdicts: Vec<Option<Verdict>> = vec![None; plans.len()];
    let mut drafts: Vec<Option<Draft<D::Buffer>>> = plans.iter().map(|_| None).collect();
    let in_pass = forward(model, cache, buffers, sequences, plans)?;
    let drawing = verify(model, buffers, sequences, plans)?;
    if !drawing.is_empty() {
        let in_pass = worth_drafting(model, buffers, sequences, plans, in_pass);
        draft(model, buffers, sequences, plans, &in_pass)?;
        let found = model.device().read(&mut buffers.results)?;
        for (&plan, verdict) in drawing.iter().zip(found.verdicts) {
            verdicts[plan] = Some(verdict);
        }
        take(model, buffers, sequences, plans, &verdicts, in_pass.iter().zip(found.drafts), &mut drafts)?;

        let undrafted = |&(plan, verdict): &(usize, Verdict)| {
            drafts[plan].is_none() && wants_draft(&sequences[plans[plan].sequence], &plans[plan], verdict)
        };
        let known = drawing.iter().filter_map(|&plan| Some((plan, verdicts[plan]?)));
        let apart: Vec<_> = known.enumerate().filter(|(_, known)| undrafted(known)).collect();
        if !apart.is_empty() {
            let apart = draft_pass(model, cache, buffers, sequences, plans, &apart)?;
            draft(model, buffers, sequences, plans, &apart)?;
            let found = model.device().read(&mut buffers.results)?;
            take(model, buffers, sequences, plans, &verdicts, apart.iter().zip(found.drafts), &mut drafts)?;
        }
    }
    Ok(plans
        .iter()
        .zip(verdicts)
        .zip(drafts)
        .map(|((plan, verdict), draft)| outcome(&sequences[plan.sequence], plan, verdict, draft))
        .collect())
}

/// The joint pass. Returns the groups of those plans that have some.
fn forward<D: Device>(
    model: &Model<D>,
    cache: &mut D::Cache,
    buffers: &mut StepBuffers<D>,
    sequences: &[Sequence<D::Buffer>],
    plans: &[Plan],
) -> Result<Vec<Drafting>, DecodeError> {
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
    let drawing = plans.iter().enumerate().filter(|(_, plan)| plan.draws());
    let groups = |(verdict, (index, plan)): (usize, (usize, &Plan))| {
        let first_row = pass.group_rows(index, *plan.groups.first()?)?.start;
        let lengths = plan.groups.iter().map(|k| k - plan.certain()).collect();
        Some(Drafting { plan: index, verdict, lengths, first_row })
    };
    Ok(drawing.enumerate().filter_map(groups).collect())
}

/// Target logits, hooks, acceptance. Returns the plan of each verdict: those that draw a token.
fn verify<D: Device>(
    model: &Model<D>,
    buffers: &mut StepBuffers<D>,
    sequences: &mut [Sequence<D::Buffer>],
    plans: &[Plan],
) -> Result<Vec<usize>, DecodeError> {
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
    let drawing: Vec<usize> = (0..plans.len()).filter(|&index| plans[index].draws()).collect();
    if drawing.is_empty() {
        return Ok(drawing);
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

    let requests: Vec<VerifyRows<'_, D::Buffer>> = drawing
        .iter()
        .map(|&index| {
            let plan = &plans[index];
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
    model.device().verify(&buffers.target_logits, &requests, &mut buffers.results)?;
    Ok(drawing)
}

/// Those of `groups` that may be drafted from: where the device knows its verdicts already, the ones that came
/// true.
fn worth_drafting<D: Device>(
    model: &Model<D>,
    buffers: &StepBuffers<D>,
    sequences: &[Sequence<D::Buffer>],
    plans: &[Plan],
    mut groups: Vec<Drafting>,
) -> Vec<Drafting> {
    if let Some(verdicts) = model.device().known(&buffers.results) {
        groups.retain(|groups| {
            let plan = &plans[groups.plan];
            verdicts.get(groups.verdict).is_some_and(|&verdict| {
                groups.lengths.contains(verdict.accepted)
                    && wants_draft(&sequences[plan.sequence], plan, verdict)
            })
        });
    }
    groups
}

/// A request that ends with this step needs no further draft, unless its record is to be whole.
fn wants_draft<B>(sequence: &Sequence<B>, plan: &Plan, verdict: Verdict) -> bool {
    plan.draft
        && sequence.block_size > 1
        && (sequence.request.record || sequence.cut(&mut committed(sequence, verdict)).is_none())
}

/// d_1..d_a and the bonus token.
fn committed<B>(sequence: &Sequence<B>, verdict: Verdict) -> Vec<u32> {
    let accepted = sequence.draft.as_ref().map_or(&[][..], |draft| &draft.tokens[..verdict.accepted]);
    [accepted, &[verdict.bonus]].concat()
}

/// Sequential drafting: one group of mask rows a sequence, through the tail only. `apart` are verdicts, with
/// their index and that of the plan.
fn draft_pass<D: Device>(
    model: &Model<D>,
    cache: &mut D::Cache,
    buffers: &mut StepBuffers<D>,
    sequences: &[Sequence<D::Buffer>],
    plans: &[Plan],
    apart: &[(usize, (usize, Verdict))],
) -> Result<Vec<Drafting>, DecodeError> {
    let rows = apart.iter().map(|&(_, (index, verdict))| {
        let plan = &plans[index];
        let sequence = &sequences[plan.sequence];
        SequenceRows {
            pages: &sequence.pages,
            start: sequence.cached,
            candidates: 0,
            groups: vec![plan.certain() + verdict.accepted],
            slots: sequence.block_size,
        }
    });
    let pass = Pass { sequences: rows.collect() };
    model.forward(&pass, &[], cache, &mut buffers.work)?;
    let groups = |(row, &(verdict, (plan, found))): (usize, &(usize, (usize, Verdict)))| {
        let first_row = pass.group_rows(row, plans[plan].certain() + found.accepted)?.start;
        Some(Drafting { plan, verdict, lengths: GroupSet::NONE.with(found.accepted), first_row })
    };
    Ok(apart.iter().enumerate().filter_map(groups).collect())
}

/// Calibrates and samples slots 1..S of the groups that come true, of the pass that ran last.
fn draft<D: Device>(
    model: &Model<D>,
    buffers: &mut StepBuffers<D>,
    sequences: &[Sequence<D::Buffer>],
    plans: &[Plan],
    drafting: &[Drafting],
) -> Result<(), DecodeError> {
    if drafting.is_empty() {
        return Ok(());
    }
    let requests: Vec<DraftRows<'_>> = drafting
        .iter()
        .map(|groups| {
            let sequence = &sequences[plans[groups.plan].sequence];
            DraftRows {
                sequence: groups.verdict,
                groups: groups.lengths,
                first_row: groups.first_row,
                slots: sequence.block_size,
                sampling: &sequence.request.sampling,
                rule: sequence.request.rule,
                seed: sequence.request.seed,
            }
        })
        .collect();
    let StepBuffers { work, draft_logits, results, .. } = buffers;
    Ok(model.draft(&requests, results, work, draft_logits)?)
}

/// Makes drafts of what was sampled by the [`draft`] before, where its group came true and it is wanted.
fn take<'a, D: Device>(
    model: &Model<D>,
    buffers: &StepBuffers<D>,
    sequences: &mut [Sequence<D::Buffer>],
    plans: &[Plan],
    verdicts: &[Option<Verdict>],
    drafted: impl Iterator<Item = (&'a Drafting, Vec<DraftToken>)>,
    drafts: &mut [Option<Draft<D::Buffer>>],
) -> Result<(), DecodeError> {
    let mut end = 0;
    for (groups, drafted) in drafted {
        let rows = end..end + drafted.len();
        end = rows.end;
        let plan = &plans[groups.plan];
        let sequence = &mut sequences[plan.sequence];
        let Some(verdict) = verdicts[groups.plan] else { continue };
        if !groups.lengths.contains(verdict.accepted) || !wants_draft(sequence, plan, verdict) {
            continue;
        }
        let mut tokens: Vec<u32> = drafted.iter().map(|slot| slot.token).collect();
        let confidence: Vec<f32> = drafted.iter().map(|slot| slot.confidence).collect();
        let proposed = propose(sequence, verdict, model.config().vocab_size, &mut tokens);
        let mut logits = None;
        if sequence.keeps_draft_logits() && !proposed {
            let mut kept = sequence.spare_logits.take().unwrap_or_else(|| model.new_logits());
            let rows: Vec<usize> = rows.collect();
            model.device().gather(&buffers.draft_logits, &rows, &mut kept)?;
            logits = Some(kept);
        }
        let verify_len = sequence.request.confidence.verify_len(&confidence);
        drafts[groups.plan] = Some(Draft { tokens, confidence, logits, verify_len });
    }
    Ok(())
}

/// Lets the request's proposer replace the drafter's tokens.
fn propose<B>(
    sequence: &mut Sequence<B>,
    verdict: Verdict,
    vocab_size: usize,
    tokens: &mut Vec<u32>,
) -> bool {
    let committed = committed(sequence, verdict);
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
    verdict: Option<Verdict>,
    draft: Option<Draft<B>>,
) -> Outcome<B> {
    let Some(verdict) = verdict else {
        return Outcome { kept: plan.rows(), committed: Vec::new(), draft: None, record: None };
    };
    let record = sequence.request.record.then(|| {
        let next = BlockRecord {
            bonus: verdict.bonus,
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
            accepted: verdict.accepted,
            next,
        })
    });
    Outcome {
        kept: plan.certain() + verdict.accepted + 1,
        committed: committed(sequence, verdict),
        draft,
        record,
    }
}

//! One step: forward, accept, draft the next block.
//!
//! Everything that can fail happens before any sequence changes: [`run`] only computes, and what it
//! returns is committed afterwards.

use super::error::DecodeError;
use super::record::{BlockRecord, Record, StepMode, StepRecord};
use super::sequence::{DrawnFrom, PendingDraft, Sequence, Work};
use crate::device::{
    Device, DeviceError, DraftLogits, DraftRows, DraftToken, SequenceVerdict, SlotRows, VerifyRows,
};
use crate::layout::{GroupSet, Pass, SequenceRows};
use crate::model::forward::{Model, Workspace};

/// What a step does for one sequence.
#[derive(Clone, Debug)]
pub(super) struct SequencePlan {
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

impl SequencePlan {
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
    pub(super) draft: Option<PendingDraft<B>>,
    pub(super) record: Option<Record>,
}

/// Buffers of a step, reused from step to step.
pub(super) struct StepBuffers<D: Device> {
    work: Workspace<D>,
    /// Logits of the candidates, in a step that has a head product for the candidates alone.
    target_logits: D::Buffer,
    /// What the drafts of the last step were drawn from, which this one verifies, and what this one drafts from:
    /// logits stay where drafting left them. In a step that has one head product for candidates and groups, the second
    /// buffer begins with the logits of the candidates and of all groups.
    draft_logits: [D::Buffer; 2],
    results: D::Results,
}

impl<D: Device> StepBuffers<D> {
    pub(super) fn new(model: &Model<D>) -> Self {
        Self {
            work: model.new_workspace(),
            target_logits: model.new_logits(),
            draft_logits: [model.new_logits(), model.new_logits()],
            results: model.device().new_results(),
        }
    }

    /// Copies what the draft of `sequence` was drawn from to a buffer of its own, for a step that does not verify
    /// it: it overwrites what the last one drafted from.
    pub(super) fn set_aside(
        &self,
        model: &Model<D>,
        sequence: &mut Sequence<D::Buffer>,
    ) -> Result<(), DeviceError> {
        let Some(draft) = &mut sequence.draft else { return Ok(()) };
        let Some(DrawnFrom::LastStep { first_row, first_draw }) = draft.logits else { return Ok(()) };
        let drawn_from = DraftLogits { logits: &self.draft_logits[LAST], first_row, first_draw };
        let mut kept = model.new_logits();
        model.device().copy_draft(drawn_from, draft.tokens.len(), &mut kept)?;
        draft.logits = Some(DrawnFrom::Own(kept));
        Ok(())
    }
}

/// Which of [`StepBuffers::draft_logits`] is verified, and which drafted.
const LAST: usize = 0;
const NEXT: usize = 1;

/// The groups that a plan's sequence has in the pass that ran last.
struct Drafting {
    /// Index of the plan.
    plan: usize,
    /// Index of its verdict.
    verdict: usize,
    /// Their accepted lengths, as the verdict counts them; none for the one that follows the verdict.
    lengths: GroupSet,
    /// The first row of the first group.
    first_row: usize,
    /// Which rows the groups have.
    rows: SlotRows,
    /// The place of their draft among the step's draws, once it has been drawn.
    first_draw: usize,
}

impl Drafting {
    /// Groups that are rows of the pass.
    fn in_pass(plan: usize, verdict: usize, lengths: GroupSet, first_row: usize) -> Self {
        let rows = SlotRows::Pass { first_logits: 0 };
        Self { plan, verdict, lengths, first_row, rows, first_draw: 0 }
    }

    /// The row of the logits of the first token that was drafted after `accepted`, out of `drafted` tokens.
    fn logits_row(&self, accepted: usize, drafted: usize) -> usize {
        match self.rows {
            SlotRows::Pass { first_logits } => first_logits,
            SlotRows::Logits => {
                let rank = self.lengths.iter().position(|k| k == accepted).unwrap_or(0);
                self.first_row + rank * drafted
            }
        }
    }
}

/// Runs the planned step. Sequences keep their tokens, drafts and lengths. Drafts that the step does not verify were
/// [set aside](StepBuffers::set_aside).
///
/// The host waits for the device once, for verdicts and drafts, drafts of a drafting pass included; once more where a
/// sequence had groups in the pass and the accepted length none of them; and not at all where no token is drawn.
pub(super) fn run<D: Device>(
    model: &Model<D>,
    cache: &mut D::Cache,
    buffers: &mut StepBuffers<D>,
    sequences: &mut [Sequence<D::Buffer>],
    plans: &[SequencePlan],
) -> Result<Vec<Outcome<D::Buffer>>, DecodeError> {
    let mut verdicts: Vec<Option<SequenceVerdict>> = vec![None; plans.len()];
    let mut drafts: Vec<Option<PendingDraft<D::Buffer>>> = plans.iter().map(|_| None).collect();
    let mut in_pass = forward(model, cache, buffers, sequences, plans)?;
    let (drawing, mut next_row) = verify(model, buffers, sequences, plans, &mut in_pass)?;
    if !drawing.is_empty() {
        let mut in_pass = worth_drafting(model, buffers, sequences, plans, in_pass);
        draft(model, buffers, sequences, plans, &mut in_pass, &mut next_row)?;
        let apart = worth_drafting_apart(model, buffers, sequences, plans, &drawing, &in_pass);
        let apart = draft_pass(model, cache, buffers, sequences, plans, &apart, &mut next_row)?;
        let found = model.device().read(&mut buffers.results)?;
        for (&plan, verdict) in drawing.iter().zip(found.verdicts) {
            verdicts[plan] = Some(verdict);
        }
        let drafted = in_pass.iter().chain(&apart).zip(found.drafts);
        take(model, sequences, plans, &verdicts, drafted, &mut drafts);

        let missed = missing_drafts(sequences, plans, &drawing, &verdicts, &drafts);
        if !missed.is_empty() {
            let missed = draft_pass(model, cache, buffers, sequences, plans, &missed, &mut next_row)?;
            let found = model.device().read(&mut buffers.results)?;
            let drafted = missed.iter().zip(found.drafts);
            take(model, sequences, plans, &verdicts, drafted, &mut drafts);
        }
        // Nothing fails after this: until here the last step's drafts could be verified again.
        buffers.draft_logits.swap(LAST, NEXT);
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
    plans: &[SequencePlan],
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
    let groups = |(verdict, (index, plan)): (usize, (usize, &SequencePlan))| {
        let first_row = pass.group_rows(index, *plan.groups.first()?)?.start;
        let lengths = plan.groups.iter().map(|k| k - plan.certain()).collect();
        Some(Drafting::in_pass(index, verdict, lengths, first_row))
    };
    Ok(drawing.enumerate().filter_map(groups).collect())
}

/// Target logits, hooks, acceptance. Returns the plan of each verdict (each plan that draws a token has one), and the
/// number of rows of the next drafts' logits that are in use. If one product computes the logits of candidates and groups,
/// these are the rows in use, and `in_pass` tells where each group is.
fn verify<D: Device>(
    model: &Model<D>,
    buffers: &mut StepBuffers<D>,
    sequences: &mut [Sequence<D::Buffer>],
    plans: &[SequencePlan],
    in_pass: &mut [Drafting],
) -> Result<(Vec<usize>, usize), DecodeError> {
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
        return Ok((drawing, 0));
    }
    let next_row = join(model, sequences, plans, in_pass, &mut rows);
    let StepBuffers { work, target_logits, draft_logits: [last, next], results } = buffers;
    let target_logits = if next_row > 0 { next } else { target_logits };
    model.logits(&rows, work, target_logits)?;

    for (plan, &first_row) in plans.iter().zip(&first_rows) {
        let sequence = &mut sequences[plan.sequence];
        let Some(hook) = sequence.request.logits_hook.as_mut().filter(|_| plan.draws()) else { continue };
        let mut prefix = sequence.tokens.clone();
        for i in 0..=plan.verify_len {
            let mut edit = |logits: &mut [f32]| hook.edit(prefix.len(), &prefix, logits);
            model.device().edit_row(target_logits, first_row + i, &mut edit)?;
            prefix.extend(sequence.draft.as_ref().and_then(|draft| draft.tokens.get(i)));
        }
    }

    let last = &*last;
    let requests: Vec<VerifyRows<'_, D::Buffer>> = drawing
        .iter()
        .map(|&index| {
            let plan = &plans[index];
            let sequence = &sequences[plan.sequence];
            let draft = sequence.draft.as_ref();
            VerifyRows {
                first_row: first_rows[index],
                draft: draft.map_or(&[], |draft| &draft.tokens[..plan.verify_len]),
                draft_logits: draft.and_then(|draft| draft.logits.as_ref()).map(|from| match from {
                    &DrawnFrom::LastStep { first_row, first_draw } => {
                        DraftLogits { logits: last, first_row, first_draw }
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
    model.device().verify(target_logits, &requests, results)?;
    Ok((drawing, next_row))
}

/// Adds the slots of all groups to the candidates' `rows`, if one product is to compute the logits of both. Returns the
/// number of rows then, and 0 otherwise.
fn join<D: Device>(
    model: &Model<D>,
    sequences: &[Sequence<D::Buffer>],
    plans: &[SequencePlan],
    in_pass: &mut [Drafting],
    rows: &mut Vec<usize>,
) -> usize {
    let slots = |groups: &Drafting| sequences[plans[groups.plan].sequence].block_size;
    let drafted = |groups: &Drafting| slots(groups).saturating_sub(1);
    let all: usize = in_pass.iter().map(|groups| groups.lengths.iter().count() * drafted(groups)).sum();
    let selected = in_pass.iter().map(drafted).sum();
    if !model.joins_head_products(rows.len(), all, selected) {
        return 0;
    }
    for groups in in_pass {
        let (first, slots) = (groups.first_row, slots(groups));
        (groups.first_row, groups.rows) = (rows.len(), SlotRows::Logits);
        for rank in 0..groups.lengths.iter().count() {
            rows.extend(first + rank * slots + 1..first + (rank + 1) * slots);
        }
    }
    rows.len()
}

/// The entries of `groups` that may be drafted from. If the device already knows its verdicts, these are the groups
/// that came true.
fn worth_drafting<D: Device>(
    model: &Model<D>,
    buffers: &StepBuffers<D>,
    sequences: &[Sequence<D::Buffer>],
    plans: &[SequencePlan],
    mut groups: Vec<Drafting>,
) -> Vec<Drafting> {
    if let Some(verdicts) = model.device().verdicts_if_ready(&buffers.results) {
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
fn wants_draft<B>(sequence: &Sequence<B>, plan: &SequencePlan, verdict: SequenceVerdict) -> bool {
    plan.draft
        && sequence.block_size > 1
        && (sequence.request.record || sequence.cut(&mut committed(sequence, verdict)).is_none())
}

/// d_1..d_a and the bonus token.
fn committed<B>(sequence: &Sequence<B>, verdict: SequenceVerdict) -> Vec<u32> {
    let accepted = sequence.draft.as_ref().map_or(&[][..], |draft| &draft.tokens[..verdict.accepted]);
    [accepted, &[verdict.bonus]].concat()
}

/// The plans, with the index of their verdict, that have no group in the pass and may be drafted for in a pass
/// of their own. If the device already knows its verdicts, these are the plans that need such a pass.
fn worth_drafting_apart<D: Device>(
    model: &Model<D>,
    buffers: &StepBuffers<D>,
    sequences: &[Sequence<D::Buffer>],
    plans: &[SequencePlan],
    drawing: &[usize],
    in_pass: &[Drafting],
) -> Vec<(usize, usize)> {
    let known = model.device().verdicts_if_ready(&buffers.results);
    let worth = |&(verdict, index): &(usize, usize)| {
        let plan = &plans[index];
        let sequence = &sequences[plan.sequence];
        match known.and_then(|verdicts| verdicts.get(verdict)) {
            Some(&verdict) => {
                wants_draft(sequence, plan, verdict) && !in_pass.iter().any(|groups| groups.plan == index)
            }
            None => plan.draft && plan.groups.is_empty() && sequence.block_size > 1,
        }
    };
    drawing.iter().copied().enumerate().filter(worth).collect()
}

/// The plans, with the index of their verdict, whose sequences want a draft and have none.
fn missing_drafts<B>(
    sequences: &[Sequence<B>],
    plans: &[SequencePlan],
    drawing: &[usize],
    verdicts: &[Option<SequenceVerdict>],
    drafts: &[Option<PendingDraft<B>>],
) -> Vec<(usize, usize)> {
    let misses = |&(_, index): &(usize, usize)| {
        let plan = &plans[index];
        let wants = |verdict| wants_draft(&sequences[plan.sequence], plan, verdict);
        drafts[index].is_none() && verdicts[index].is_some_and(wants)
    };
    drawing.iter().copied().enumerate().filter(misses).collect()
}

/// Sequential drafting: one group of mask rows a sequence, through the tail only, for `apart`, plans with the
/// index of their verdict. The groups follow verdicts that the host does not know.
fn draft_pass<D: Device>(
    model: &Model<D>,
    cache: &mut D::Cache,
    buffers: &mut StepBuffers<D>,
    sequences: &[Sequence<D::Buffer>],
    plans: &[SequencePlan],
    apart: &[(usize, usize)],
    next_row: &mut usize,
) -> Result<Vec<Drafting>, DecodeError> {
    if apart.is_empty() {
        return Ok(Vec::new());
    }
    let known = model.device().verdicts_if_ready(&buffers.results);
    let accepted = |verdict: usize| Some(known?.get(verdict)?.accepted);
    let rows = apart.iter().map(|&(verdict, index)| {
        let plan = &plans[index];
        let sequence = &sequences[plan.sequence];
        SequenceRows {
            pages: &sequence.pages,
            start: sequence.cached,
            candidates: 0,
            groups: vec![plan.certain() + accepted(verdict).unwrap_or(plan.verify_len)],
            slots: sequence.block_size,
        }
    });
    let pass = Pass { sequences: rows.collect() };
    let verdicts: Vec<usize> = apart.iter().map(|&(verdict, _)| verdict).collect();
    let mut first_row = 0;
    let mut drafting: Vec<Drafting> = apart
        .iter()
        .zip(&pass.sequences)
        .map(|(&(verdict, plan), rows)| {
            let lengths = accepted(verdict).map_or(GroupSet::NONE, |a| GroupSet::NONE.with(a));
            let drafting = Drafting::in_pass(plan, verdict, lengths, first_row);
            first_row += rows.slots;
            drafting
        })
        .collect();
    model.draft_forward(&pass, &verdicts, &buffers.results, cache, &mut buffers.work)?;
    draft(model, buffers, sequences, plans, &mut drafting, next_row)?;
    Ok(drafting)
}

/// Calibrates and samples slots 1..S of the groups that come true, of the pass that ran last. Logits that are still to
/// be computed go to the rows from `next_row` on.
fn draft<D: Device>(
    model: &Model<D>,
    buffers: &mut StepBuffers<D>,
    sequences: &[Sequence<D::Buffer>],
    plans: &[SequencePlan],
    drafting: &mut [Drafting],
    next_row: &mut usize,
) -> Result<(), DecodeError> {
    let Some(rows) = drafting.first().map(|groups| groups.rows) else { return Ok(()) };
    // The groups of a pass have all their logits before the verdict, or all after it.
    let rows = match rows {
        SlotRows::Logits => SlotRows::Logits,
        SlotRows::Pass { .. } => SlotRows::Pass { first_logits: *next_row },
    };
    let mut first_draw = model.device().drafted_rows(&buffers.results);
    for groups in &mut *drafting {
        let drafted = sequences[plans[groups.plan].sequence].block_size.saturating_sub(1);
        groups.first_draw = first_draw;
        first_draw += drafted;
        if let SlotRows::Pass { first_logits } = &mut groups.rows {
            *first_logits = *next_row;
            *next_row += drafted;
        }
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
    Ok(model.draft(&requests, rows, results, work, &mut draft_logits[NEXT])?)
}

/// Makes drafts of what was sampled, where its group came true and it is wanted.
fn take<'a, D: Device>(
    model: &Model<D>,
    sequences: &mut [Sequence<D::Buffer>],
    plans: &[SequencePlan],
    verdicts: &[Option<SequenceVerdict>],
    drafted: impl Iterator<Item = (&'a Drafting, Vec<DraftToken>)>,
    drafts: &mut [Option<PendingDraft<D::Buffer>>],
) {
    for (groups, drafted) in drafted {
        let plan = &plans[groups.plan];
        let sequence = &mut sequences[plan.sequence];
        let Some(verdict) = verdicts[groups.plan] else { continue };
        let came_true = groups.lengths.is_empty() || groups.lengths.contains(verdict.accepted);
        if !came_true || !wants_draft(sequence, plan, verdict) {
            continue;
        }
        let mut tokens: Vec<u32> = drafted.iter().map(|slot| slot.token).collect();
        let confidence: Vec<f32> = drafted.iter().map(|slot| slot.confidence).collect();
        let proposed = propose(sequence, verdict, model.config().vocab_size, &mut tokens);
        let compared = sequence.compares_distributions() && !proposed;
        let first_row = groups.logits_row(verdict.accepted, tokens.len());
        let logits = compared.then_some(DrawnFrom::LastStep { first_row, first_draw: groups.first_draw });
        let verify_len = sequence.request.confidence.verify_len(&confidence);
        drafts[groups.plan] = Some(PendingDraft { tokens, confidence, logits, verify_len });
    }
}

/// Lets the request's proposer replace the drafter's tokens.
fn propose<B>(
    sequence: &mut Sequence<B>,
    verdict: SequenceVerdict,
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
    plan: &SequencePlan,
    verdict: Option<SequenceVerdict>,
    draft: Option<PendingDraft<B>>,
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

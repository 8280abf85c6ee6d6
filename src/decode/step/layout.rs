//! The layout of a step: which rows its forward passes, its logits and its drafts have. The layout is known before
//! anything runs.

use super::groups::{Drafting, Draw};
use super::hooks::{self, FailedRow};
use super::padding::{PaddingPages, PaddingRows};
use super::plan::SequencePlan;
use crate::decode::sequence::{DrawnFrom, Sequence, Work};
use crate::device::{Device, DraftLogits, DraftRows, DraftTables, DraftingPass, SlotRows, VerifyRows};
use crate::layout::{GroupSet, Pass, SequenceRows};
use crate::model::forward::Model;
use crate::processors::LogitEdits;

/// The layout of a step: which rows its forward passes, its logits and its drafts have.
pub(super) struct StepLayout<'a> {
    /// The plans that draw a token from the target's logits. The other plans only fill the KV cache.
    pub(super) draws: Vec<Draw>,
    /// Token ids of the candidate rows in the joint pass, sequence after sequence.
    pub(super) tokens: Vec<u32>,
    /// The joint pass, which runs the candidate rows of all sequences and the mask rows that draft in the same pass.
    pub(super) pass: Pass<'a>,
    /// The sequence that pads the step, the last of the joint pass.
    padding: Option<PaddingRows>,
    /// The rows of the joint pass whose logits are computed before the verification.
    pub(super) logits_rows: Vec<usize>,
    /// Whether `logits_rows` include the slots of all mask groups, because one product of the LM head computes the
    /// logits of candidates and slots.
    pub(super) joined: bool,
    /// The first row of draft logits and the first index of a draft token that the groups of the joint pass may take.
    pub(super) first_places: DraftPlaces,
    /// The mask groups in the joint pass, one entry per sequence that has any.
    pub(super) groups: Vec<Drafting>,
    /// The drafting pass, which follows the verification, for sequences that need a draft and have no mask group in the
    /// joint pass.
    pub(super) apart: Option<DraftingLayout<'a>>,
}

/// The layout of a drafting pass, which runs mask rows only, after the verification.
pub(super) struct DraftingLayout<'a> {
    pass: Pass<'a>,
    verdicts: Vec<usize>,
    pub(super) groups: Vec<Drafting>,
}

/// The next free row of draft logits, and the next free index of a draft token.
#[derive(Clone, Copy)]
pub(super) struct DraftPlaces {
    /// The next free row in the buffer of draft logits.
    pub(super) row: usize,
    /// The index of the next draft token among all draft tokens of the step.
    pub(super) draw: usize,
}

impl DraftPlaces {
    /// Gives the groups of each sequence the indices of its draft tokens, and rows of draft logits unless all slots
    /// have such rows already.
    pub(super) fn give<B>(
        &mut self,
        groups: &mut [Drafting],
        sequences: &[Sequence<B>],
        plans: &[SequencePlan],
    ) {
        for groups in groups {
            let drafted = groups.draw.drafted(sequences, plans);
            groups.first_draw = self.draw;
            self.draw += drafted;
            if let SlotRows::Pass { first_logits } = &mut groups.rows {
                *first_logits = self.row;
                self.row += drafted;
            }
        }
    }
}

impl<'a> StepLayout<'a> {
    /// Lays out the step that `plans` describe. Also returns the places that are free for drafts that the layout does
    /// not have.
    pub(super) fn new<D: Device>(
        model: &Model<D>,
        sequences: &'a [Sequence<D::Buffer>],
        plans: &[SequencePlan],
        padding: &'a PaddingPages,
    ) -> (Self, DraftPlaces) {
        let draws = Draw::all(plans);
        let (mut tokens, mut pass) = joint_pass(sequences, plans);
        let decodes = plans.iter().all(|plan| plan.work == Work::Decode);
        let padding = if decodes { padding.add_to(&mut pass, &mut tokens) } else { None };
        let groups = |&draw: &Draw| {
            let plan = &plans[draw.plan];
            let first_row = pass.group_rows(draw.plan, *plan.groups.first()?)?.start;
            let lengths = plan.groups.iter().map(|k| k - plan.certain()).collect();
            Some(Drafting::in_pass(draw, lengths, first_row))
        };
        let mut groups: Vec<Drafting> = draws.iter().filter_map(groups).collect();
        let candidates = |&draw: &Draw| {
            let plan = &plans[draw.plan];
            draw.first_candidate..draw.first_candidate + plan.rows() - plan.certain()
        };
        let mut logits_rows: Vec<usize> = draws.iter().flat_map(candidates).collect();
        logits_rows.extend(padding.map(PaddingRows::candidate_rows).into_iter().flatten());
        let joined = join(model, sequences, plans, &mut groups, (&pass, padding), &mut logits_rows);
        let first_places = DraftPlaces { row: if joined { logits_rows.len() } else { 0 }, draw: 0 };
        let mut places = first_places;
        places.give(&mut groups, sequences, plans);
        let without_group = |&draw: &Draw| {
            let plan = &plans[draw.plan];
            plan.draft && plan.groups.is_empty() && sequences[plan.sequence].block_size > 1
        };
        let apart: Vec<Draw> = draws.iter().copied().filter(without_group).collect();
        let apart = (!apart.is_empty()).then(|| {
            let mut apart = DraftingLayout::new(&apart, |_| None, sequences, plans);
            places.give(&mut apart.groups, sequences, plans);
            apart
        });
        (Self { draws, tokens, pass, padding, logits_rows, joined, first_places, groups, apart }, places)
    }

    /// Returns the changes that logit processors and mask providers make to the target's logits: one entry per plan that
    /// draws a token, for its request and a vocabulary of `vocab_size` ids. Also returns the rows at which providers failed.
    pub(super) fn edits<B>(
        &self,
        sequences: &'a [Sequence<B>],
        plans: &[SequencePlan],
        vocab_size: usize,
    ) -> (Vec<LogitEdits<'a>>, Vec<FailedRow>) {
        let mut failed_rows = Vec::new();
        let mut edits = |draw: &Draw| {
            let plan = &plans[draw.plan];
            let sequence = &sequences[plan.sequence];
            let history = sequence.history(plan.verify_len);
            let mut edits = sequence.request.processors.edits(history, vocab_size);
            let mut callbacks = sequence.callbacks.borrow_mut();
            if let Some(provider) = callbacks.mask_provider.as_mut() {
                let masks = hooks::masks(&mut **provider, history, vocab_size);
                edits.allow_by_row(masks.rows, vocab_size);
                failed_rows.extend(masks.failed.map(|(row, error)| FailedRow {
                    verdict: draw.verdict,
                    row,
                    error,
                }));
            }
            edits
        };
        (self.draws.iter().map(&mut edits).collect(), failed_rows)
    }

    /// Returns the input of the device's verification: one entry per plan that draws a token, and the padding's after
    /// them. A draft was drawn from logits in `last_drafts` or in a buffer of its own; `edits` are the changes by the logit
    /// processors.
    pub(super) fn verify_rows<B>(
        &self,
        sequences: &'a [Sequence<B>],
        plans: &[SequencePlan],
        last_drafts: &'a B,
        edits: &'a [LogitEdits<'a>],
    ) -> Vec<VerifyRows<'a, B>> {
        let rows = |(draw, edits): (&Draw, &'a LogitEdits<'a>)| {
            let plan = &plans[draw.plan];
            let sequence = &sequences[plan.sequence];
            let draft = sequence.draft.as_ref();
            VerifyRows {
                first_row: draw.first_logits,
                draft: draft.map_or(&[], |draft| &draft.tokens[..plan.verify_len]),
                draft_logits: draft.and_then(|draft| draft.logits.as_ref()).map(|from| match from {
                    &DrawnFrom::LastStep { first_row, first_draw } => {
                        DraftLogits { logits: last_drafts, first_row, first_draw, is_warped: false }
                    }
                    DrawnFrom::Own(logits) => {
                        DraftLogits { logits, first_row: 0, first_draw: 0, is_warped: false }
                    }
                    DrawnFrom::Proposed(logits) => {
                        DraftLogits { logits, first_row: 0, first_draw: 0, is_warped: true }
                    }
                }),
                edits: (!edits.is_empty()).then_some(edits),
                sampling: &sequence.request.sampling,
                rule: sequence.request.rule,
                seed: sequence.request.seed,
                start: sequence.cached + plan.certain(),
            }
        };
        let verified: usize = self.draws.iter().map(|draw| plans[draw.plan].verify_len + 1).sum();
        let padding = self.padding.map(|padding| padding.verify_rows(verified));
        self.draws.iter().zip(edits).map(rows).chain(padding).collect()
    }
}

impl<'a> DraftingLayout<'a> {
    /// Lays out a drafting pass with one mask group for each plan of `draws`: for the accepted length that `accepted`
    /// returns, or for the largest possible one if `accepted` returns `None`.
    pub(super) fn new<B>(
        draws: &[Draw],
        accepted: impl Fn(Draw) -> Option<usize>,
        sequences: &'a [Sequence<B>],
        plans: &[SequencePlan],
    ) -> Self {
        let (mut rows, mut groups, mut first_row) = (Vec::new(), Vec::new(), 0);
        for &draw in draws {
            let plan = &plans[draw.plan];
            let (sequence, accepted) = (&sequences[plan.sequence], accepted(draw));
            let lengths = accepted.map_or(GroupSet::NONE, |a| GroupSet::NONE.with(a));
            groups.push(Drafting::in_pass(draw, lengths, first_row));
            first_row += sequence.block_size;
            rows.push(SequenceRows {
                pages: &sequence.pages,
                start: sequence.cached,
                candidates: 0,
                groups: vec![plan.certain() + accepted.unwrap_or(plan.verify_len)],
                slots: sequence.block_size,
            });
        }
        let verdicts = draws.iter().map(|draw| draw.verdict).collect();
        Self { pass: Pass { sequences: rows }, verdicts, groups }
    }

    /// Returns the drafting pass in the form that a device takes.
    pub(super) fn pass(&self) -> DraftingPass<'_> {
        DraftingPass { pass: &self.pass, verdicts: &self.verdicts }
    }
}

/// Returns the device's input for drafting from `groups`; `drafts` is what [`draft_rows`] returned for these groups.
pub(super) fn draft_tables<'a>(groups: &[Drafting], drafts: &'a [DraftRows<'a>]) -> DraftTables<'a> {
    // Either the logits of all groups of a pass are computed before the verdict, or the logits of all groups after it,
    // so checking the first group is enough.
    DraftTables { drafts, rows: groups.first().map_or(SlotRows::Logits, |groups| groups.rows) }
}

/// Returns the rows and settings with which a device drafts from `groups`, one entry per sequence.
pub(super) fn draft_rows<'a, B>(
    groups: &[Drafting],
    sequences: &'a [Sequence<B>],
    plans: &[SequencePlan],
) -> Vec<DraftRows<'a>> {
    let rows = |groups: &Drafting| {
        let sequence = &sequences[plans[groups.draw.plan].sequence];
        DraftRows {
            sequence: groups.draw.verdict,
            groups: groups.lengths,
            first_row: groups.first_row,
            slots: sequence.block_size,
            prediction: sequence.prediction,
            processors: sequence.request.processors_on_drafts.then_some(&sequence.request.processors),
            sampling: &sequence.request.sampling,
            rule: sequence.request.rule,
            seed: sequence.request.seed,
        }
    };
    groups.iter().map(rows).collect()
}

/// Returns the token ids of the candidate rows in the joint pass, and the joint pass.
fn joint_pass<'a, B>(sequences: &'a [Sequence<B>], plans: &[SequencePlan]) -> (Vec<u32>, Pass<'a>) {
    let (mut tokens, mut pass) = (Vec::new(), Pass::default());
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
    (tokens, pass)
}

/// Adds the slots of all mask `groups`, and of the padding's, to `rows`, the candidates' rows of the pass, if one product of
/// the LM head is to compute the logits of both; each entry of `groups` then counts rows of the logits. Returns whether one
/// product does.
fn join<D: Device>(
    model: &Model<D>,
    sequences: &[Sequence<D::Buffer>],
    plans: &[SequencePlan],
    groups: &mut [Drafting],
    (pass, padding): (&Pass<'_>, Option<PaddingRows>),
    rows: &mut Vec<usize>,
) -> bool {
    let drafted = |groups: &Drafting| groups.draw.drafted(sequences, plans);
    let added = padding.map_or(0, |padding| padding.drafting_rows(pass).count());
    let all = groups.iter().map(|groups| groups.count() * drafted(groups)).sum::<usize>() + added;
    let selected = groups.iter().map(drafted).sum();
    if !model.joins_head_products(rows.len(), all, selected) {
        return false;
    }
    for groups in groups {
        let slots = sequences[plans[groups.draw.plan].sequence].block_size;
        let first = groups.first_row;
        (groups.first_row, groups.rows) = (rows.len(), SlotRows::Logits);
        for rank in 0..groups.count() {
            rows.extend(first + rank * slots + 1..first + (rank + 1) * slots);
        }
    }
    rows.extend(padding.into_iter().flat_map(|padding| padding.drafting_rows(pass)));
    true
}

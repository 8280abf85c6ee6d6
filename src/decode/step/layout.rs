//! The layout of a step: the rows of its passes, of its logits and of its drafts. It is known before anything runs.

use super::groups::{Drafting, Draw};
use super::plan::SequencePlan;
use crate::decode::sequence::{DrawnFrom, Sequence, Work};
use crate::device::{Device, DraftLogits, DraftRows, DraftTables, DraftingPass, SlotRows, VerifyRows};
use crate::layout::{GroupSet, Pass, SequenceRows};
use crate::model::forward::Model;
use crate::processors::LogitEdits;

/// The layout of a step.
pub(super) struct StepLayout<'a> {
    /// The plans that draw a token.
    pub(super) draws: Vec<Draw>,
    /// Token ids of the candidates.
    pub(super) tokens: Vec<u32>,
    /// The joint pass.
    pub(super) pass: Pass<'a>,
    /// The rows of the joint pass whose logits are computed before the verification.
    pub(super) logits_rows: Vec<usize>,
    /// Whether these rows include the slots of all groups.
    pub(super) joined: bool,
    /// The places of the drafts from the joint pass.
    pub(super) first_places: DraftPlaces,
    /// The groups in the joint pass.
    pub(super) groups: Vec<Drafting>,
    /// The drafting pass of the draws that have no group in the joint pass.
    pub(super) apart: Option<DraftingLayout<'a>>,
}

/// The layout of a drafting pass.
pub(super) struct DraftingLayout<'a> {
    pass: Pass<'a>,
    verdicts: Vec<usize>,
    pub(super) groups: Vec<Drafting>,
}

/// The next free places for the rows that a step drafts.
#[derive(Clone, Copy)]
pub(super) struct DraftPlaces {
    /// The next row of logits.
    pub(super) row: usize,
    /// The next draw.
    pub(super) draw: usize,
}

impl DraftPlaces {
    /// Gives each of `groups` its draws, and rows of logits if it has none.
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
    /// Lays out the step that `plans` describe. Also returns the places of the rows that are drafted later.
    pub(super) fn new<D: Device>(
        model: &Model<D>,
        sequences: &'a [Sequence<D::Buffer>],
        plans: &[SequencePlan],
    ) -> (Self, DraftPlaces) {
        let draws = Draw::all(plans);
        let (tokens, pass) = joint_pass(sequences, plans);
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
        let joined = join(model, sequences, plans, &mut groups, &mut logits_rows);
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
        (Self { draws, tokens, pass, logits_rows, joined, first_places, groups, apart }, places)
    }

    /// Returns what the logit processors of each draw's request change, over a vocabulary of `vocab_size` ids.
    pub(super) fn edits<B>(
        &self,
        sequences: &'a [Sequence<B>],
        plans: &[SequencePlan],
        vocab_size: usize,
    ) -> Vec<LogitEdits<'a>> {
        let edits = |draw: &Draw| {
            let plan = &plans[draw.plan];
            sequences[plan.sequence].logit_edits(plan.verify_len, vocab_size)
        };
        self.draws.iter().map(edits).collect()
    }

    /// Returns the verifications of the draws, whose drafts were drawn from `last_drafts` or from own logits, and
    /// whose rows have `edits`.
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
                        DraftLogits { logits: last_drafts, first_row, first_draw }
                    }
                    DrawnFrom::Own(logits) => DraftLogits { logits, first_row: 0, first_draw: 0 },
                }),
                edits: (!edits.is_empty()).then_some(edits),
                sampling: &sequence.request.sampling,
                rule: sequence.request.rule,
                seed: sequence.request.seed,
                start: sequence.cached + plan.certain(),
            }
        };
        self.draws.iter().zip(edits).map(rows).collect()
    }
}

impl<'a> DraftingLayout<'a> {
    /// Lays out a pass with one group for each of `draws`: for the length that `accepted` returns, or for the largest
    /// possible length if it is not known.
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

    /// Returns the pass, as a device takes it.
    pub(super) fn pass(&self) -> DraftingPass<'_> {
        DraftingPass { pass: &self.pass, verdicts: &self.verdicts }
    }
}

/// Returns the tables of drafts from `groups`, whose rows [`draft_rows`] made.
pub(super) fn draft_tables<'a>(groups: &[Drafting], drafts: &'a [DraftRows<'a>]) -> DraftTables<'a> {
    // The groups of a pass have all their logits before the verdict, or all after it.
    DraftTables { drafts, rows: groups.first().map_or(SlotRows::Logits, |groups| groups.rows) }
}

/// Returns the drafts from `groups`.
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
            sampling: &sequence.request.sampling,
            rule: sequence.request.rule,
            seed: sequence.request.seed,
        }
    };
    groups.iter().map(rows).collect()
}

/// Returns the token ids of the candidates, and the joint pass.
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

/// Adds the slots of all `groups` to the candidates' `rows`, if one head product is to compute the logits of both;
/// the groups then become rows of the logits. Returns whether it is.
fn join<D: Device>(
    model: &Model<D>,
    sequences: &[Sequence<D::Buffer>],
    plans: &[SequencePlan],
    groups: &mut [Drafting],
    rows: &mut Vec<usize>,
) -> bool {
    let drafted = |groups: &Drafting| groups.draw.drafted(sequences, plans);
    let all: usize = groups.iter().map(|groups| groups.count() * drafted(groups)).sum();
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
    true
}

//! Verdicts and drafts of the CPU device, and the rows that the verdicts select.

use std::ops::Range;

use super::buffer::CpuBuffer;
use super::linear::{CpuLinear, Output};
use super::pool::Pool;
use super::sampling::{self, Slots};
use super::simd::Vectors;
use super::{chain, check, elementwise};
use crate::device::{
    CalibratorOutput, Corrections, DeviceError, DraftRows, DraftTables, Precision, SequenceVerdict, SlotRows,
    StepResults,
};
use crate::layout::MAX_BLOCK_SIZE;

/// Memory for the verdicts and drafts of a step.
#[derive(Clone, Debug, Default)]
pub struct CpuResults {
    /// The verdicts, and the drafts that were not read yet.
    found: StepResults,
    /// Number of rows drafted since the verification.
    drafted: usize,
}

/// A verification on the CPU device.
#[derive(Debug)]
pub struct CpuVerification<'a> {
    compute: (&'a Pool, Vectors),
    precision: Precision,
    results: &'a mut CpuResults,
}

/// Drafts and the rows that the verdicts select for them.
#[derive(Debug)]
pub struct CpuSelection<'s> {
    compute: (&'s Pool, Vectors),
    precision: Precision,
    results: &'s mut CpuResults,
    selected: Vec<SelectedDraft<'s>>,
}

/// A draft, its sequence's verdict, and the rows that the verdict selects.
#[derive(Debug)]
struct SelectedDraft<'s> {
    draft: &'s DraftRows<'s>,
    verdict: SequenceVerdict,
    /// Indices of the rows of the slots that draft: rows of the pass, or rows of logits.
    sources: Range<usize>,
    /// Indices of the rows of logits that belong to the slots that draft.
    logits: Range<usize>,
}

impl<'a> CpuVerification<'a> {
    /// A verification that found `verdicts`, on a device that rounds activations to `precision`.
    pub(super) fn new(
        compute: (&'a Pool, Vectors),
        precision: Precision,
        verdicts: Vec<SequenceVerdict>,
        results: &'a mut CpuResults,
    ) -> Self {
        *results = CpuResults { found: StepResults { verdicts, drafts: Vec::new() }, drafted: 0 };
        Self { compute, precision, results }
    }

    /// Returns the verdicts.
    pub fn verdicts(&self) -> &[SequenceVerdict] {
        &self.results.found.verdicts
    }

    /// Returns the number of rows drafted since the verification.
    pub(super) fn drafted(&self) -> usize {
        self.results.drafted
    }

    /// Writes the embeddings of the bonus tokens of `verdicts` to `out`.
    pub(super) fn embed_bonus_tokens(
        &self,
        table: &CpuLinear,
        verdicts: &[usize],
        out: &mut CpuBuffer,
    ) -> Result<(), DeviceError> {
        let mut bonus = Vec::with_capacity(verdicts.len());
        for &index in verdicts {
            check::index("embed_bonus", "verdict", index, self.verdicts().len())?;
            bonus.extend(self.verdicts().get(index).map(|verdict| verdict.bonus));
        }
        out.resize(bonus.len())?;
        table.embed(&bonus, 0, out)
    }

    /// Selects, by the verdicts, the slots and bonus tokens of `drafts`.
    pub(super) fn select<'s>(
        &'s mut self,
        DraftTables { drafts, rows }: DraftTables<'s>,
    ) -> Result<CpuSelection<'s>, DeviceError> {
        const OPERATION: &str = "select_drafts";
        let mut selected = Vec::with_capacity(drafts.len());
        let mut next = rows;
        for draft in drafts {
            let (index, limit) = (draft.sequence, self.verdicts().len());
            let verdict = self.verdicts().get(index).copied();
            let verdict = verdict.ok_or(DeviceError::OutOfRange {
                operation: OPERATION,
                what: "sequence",
                index,
                limit,
            })?;
            check::index(OPERATION, "number of slots", draft.slots, MAX_BLOCK_SIZE + 1)?;
            let sources = draft
                .slot_rows(verdict.accepted, rows)
                .ok_or_else(|| DeviceError::without_group(OPERATION, verdict.accepted))?;
            let logits = match &mut next {
                SlotRows::Logits => sources.clone(),
                SlotRows::Pass { first_logits } => {
                    let first = *first_logits;
                    *first_logits = first.saturating_add(sources.len());
                    first..*first_logits
                }
            };
            selected.push(SelectedDraft { draft, verdict, sources, logits });
        }
        Ok(CpuSelection { compute: self.compute, precision: self.precision, results: self.results, selected })
    }

    /// Returns the verdicts, and the drafts since the last call.
    pub(super) fn take(&mut self) -> StepResults {
        let StepResults { verdicts, drafts } = &mut self.results.found;
        StepResults { verdicts: verdicts.clone(), drafts: std::mem::take(drafts) }
    }
}

impl CpuSelection<'_> {
    /// Writes the selected rows of `x` to `out`.
    pub(super) fn gather_rows(&self, x: &CpuBuffer, out: &mut CpuBuffer) -> Result<(), DeviceError> {
        let rows: Vec<usize> = self.selected.iter().flat_map(|draft| draft.sources.clone()).collect();
        elementwise::gather(x, &rows, out)
    }

    /// Writes the embeddings of the bonus tokens to `out`.
    pub(super) fn embed_tokens(&self, table: &CpuLinear, out: &mut CpuBuffer) -> Result<(), DeviceError> {
        let bonus: Vec<u32> = self.selected.iter().map(|draft| draft.verdict.bonus).collect();
        out.resize(bonus.len())?;
        table.embed(&bonus, 0, out)
    }

    /// Corrects the selected rows of `logits`, and samples the drafts from them.
    pub(super) fn sample(
        self,
        Corrections { calibration, chain }: Corrections<'_, CpuBuffer, CpuLinear>,
        logits: &mut CpuBuffer,
    ) -> Result<(), DeviceError> {
        let Self { compute, precision, results, selected } = self;
        if let Some(CalibratorOutput { hidden, output }) = calibration {
            // Drafts with consecutive rows of logits share one product.
            let mut first = 0;
            for rows in selected.chunk_by(|draft, next| draft.logits.end == next.logits.start) {
                let count: usize = rows.iter().map(|draft| draft.logits.len()).sum();
                let to = rows.first().map_or(0, |draft| draft.logits.start);
                output.apply(compute, hidden, first..first + count, Output::Add, (logits, to))?;
                first += count;
            }
        }
        for draft in &selected {
            let Some(processors) = draft.draft.processors else { continue };
            let edits = processors.draft_edits();
            for (slot, row) in draft.logits.clone().enumerate() {
                elementwise::edit_row(logits, row, &mut |row| edits.apply(slot, row))?;
            }
        }
        let slots: Vec<Slots<'_>> = selected.iter().map(SelectedDraft::slots).collect();
        let tokens = match chain {
            None => sampling::draft(compute, logits, &slots)?,
            Some(operands) => {
                let bonuses: Vec<u32> = selected.iter().map(|draft| draft.verdict.bonus).collect();
                chain::draft(compute, precision, &operands, logits, &slots, &bonuses)?
            }
        };
        results.found.drafts.extend(tokens);
        results.drafted += slots.iter().map(|slots| slots.rows.len()).sum::<usize>();
        Ok(())
    }
}

impl<'s> SelectedDraft<'s> {
    /// Returns the draft's rows of logits, with their sampling parameters.
    fn slots(&self) -> Slots<'s> {
        let &Self { draft, verdict, .. } = self;
        let (rows, start) = (self.logits.clone(), verdict.next_start);
        Slots { rows, sampling: draft.sampling, rule: draft.rule, seed: draft.seed, start }
    }
}

//! Verdicts and drafts: the device looks them up in its own memory, and the host reads them in one piece.

use super::buffer::GpuBuffer;
use super::chain::ChainMemory;
use super::check::{self, expect, index, index32};
use super::context::Context;
use super::kv_cache::GpuKvCache;
use super::linear::{GpuLinear, Linears};
use super::pass::UploadedPass;
use super::products::Products;
use super::report::{HostReport, StepReport};
use super::sampling;
use super::scratch::{Scratch, error_word};
use super::selected::{Selected, SelectionTables, staged};
use super::step_tables::UploadedTables;
use super::verify::{self, VerificationMemory};
use crate::device::{
    Corrections, DeviceError, DraftRows, DraftTables, DraftToken, DraftingPass, SequenceVerdict, SlotRows,
    StepResults,
};
use crate::kernels::acceptance::Verdict;
use crate::kernels::embedding::Gather;
use crate::kernels::sampling::RowStats;
use crate::kernels::selection::{Draft, DraftGroups, FollowVerdicts, SelectDrafts};
use crate::kernels::{Fault, Faults};
use crate::layout::GroupSet;
use crate::runtime::Runtime;

/// Memory for the verdicts and drafts of a step, and for the operations that find them.
#[derive(Debug)]
pub struct GpuResults<R: Runtime> {
    report: StepReport<R>,
    /// The number of tokens of each draft that the host has not read from the report yet.
    drafts: Vec<usize>,
    /// The verdicts, once they have been read.
    known: Option<Vec<SequenceVerdict>>,
    selected: Selected<R>,
    verification: VerificationMemory<R>,
    chain: ChainMemory<R>,
}

impl<R: Runtime> Default for GpuResults<R> {
    fn default() -> Self {
        GpuResults {
            report: StepReport::default(),
            drafts: Vec::new(),
            known: None,
            selected: Selected::default(),
            verification: VerificationMemory::default(),
            chain: ChainMemory::default(),
        }
    }
}

/// A verification on a GPU.
#[derive(Debug)]
pub struct GpuVerification<'a, P: Products> {
    linears: Linears<'a, P>,
    tables: UploadedTables<'a, P::Runtime>,
    results: &'a mut GpuResults<P::Runtime>,
}

/// Drafts on a GPU, and the rows that the verdicts select for them.
#[derive(Debug)]
pub struct GpuSelection<'s, P: Products> {
    linears: Linears<'s, P>,
    results: &'s mut GpuResults<P::Runtime>,
    drafts: &'s [DraftRows<'s>],
}

impl<'a, P: Products> GpuVerification<'a, P> {
    /// Verifies the sequences in `tables`.
    pub(super) fn new(
        linears: Linears<'a, P>,
        tables: UploadedTables<'a, P::Runtime>,
        logits: &mut GpuBuffer<P::Runtime>,
        results: &'a mut GpuResults<P::Runtime>,
    ) -> Result<Self, DeviceError> {
        results.known = None;
        results.drafts.clear();
        results.report.begin(linears.context, tables.step.sequences.len())?;
        let of_step = (tables.step.sequences, &tables.verify);
        let GpuResults { verification, report, .. } = results;
        verify::verify(linears.context, logits, of_step, &tables.block, verification, report)?;
        Ok(Self { linears, tables, results })
    }

    fn context(&self) -> &'a Context<P::Runtime> {
        self.linears.context
    }

    /// Returns the verdicts, once they have been read.
    pub(super) fn known(&self) -> Option<&[SequenceVerdict]> {
        self.results.known.as_deref()
    }

    /// Returns the number of draft rows since the verification.
    pub(super) fn drafted(&self) -> usize {
        self.results.report.rows()
    }

    /// Uploads a drafting pass. The device moves each group to the place that its verdict gives it, unless the
    /// host knows the verdicts and has put the group there.
    pub(super) fn begin_pass<'p>(
        &'p self,
        drafting: DraftingPass<'p>,
        cache: &GpuKvCache<P::Runtime>,
    ) -> Result<UploadedPass<'p, P::Runtime>, DeviceError> {
        const OPERATION: &str = "begin_drafting";
        let (context, results) = (self.context(), &self.results);
        let DraftingPass { pass, verdicts } = drafting;
        let announced = self.tables.take_drafting(drafting);
        let mut uploaded = match announced {
            Some(uploaded) => uploaded,
            None => {
                check::drafting_pass(drafting)?;
                UploadedPass::late(context, pass, cache.paging())?
            }
        };
        if verdicts.is_empty() || results.known.is_some() {
            return Ok(uploaded);
        }
        let host = verdicts.iter().map(|&verdict| index32(OPERATION, "verdict", verdict));
        let host: Vec<i32> = host.collect::<Result<_, _>>()?;
        let mut scratch = context.scratch();
        let Scratch { followed, error, .. } = &mut *scratch;
        let sequences = match self.tables.block.indices(context.queue(), &host) {
            Some(sequences) => sequences?,
            None => {
                let count = host.len();
                context.input(followed.holding(context.queue(), host)?, 0..count)?
            }
        };
        let args = FollowVerdicts {
            pass: uploaded.memory.tables_mut(),
            sequences,
            verdicts: results.report.verdicts(OPERATION, context)?,
            error: Some(error_word(context.queue(), error)?),
        };
        context.kernels.follow_verdicts(&context.stream, args)?;
        drop(scratch);
        Ok(uploaded)
    }

    /// Finds the rows and bonus tokens of `drafts` on the device.
    pub(super) fn select<'s>(
        &'s mut self,
        tables: DraftTables<'s>,
    ) -> Result<GpuSelection<'s, P>, DeviceError> {
        const OPERATION: &str = "select_drafts";
        let context = self.context();
        let GpuResults { report, known, selected, .. } = &mut *self.results;
        let DraftTables { drafts, rows: slots } = tables;
        for draft in drafts {
            if let Some(verdict) = known.as_ref().and_then(|known| known.get(draft.sequence))
                && !draft.groups.contains(verdict.accepted)
            {
                return Err(DeviceError::without_group(OPERATION, verdict.accepted));
            }
        }
        match self.tables.drafts(tables) {
            Some(announced) => {
                selected.tables = announced.clone();
                selected.block = Some(self.tables.block.clone());
            }
            None => {
                selected.block = None;
                selected.late.clear();
                selected.tables = SelectionTables::stage(&mut selected.late, tables, report.batch())?;
                let staging = &mut context.scratch().staging;
                // Gathered launches use the tables of an earlier selection only if the host has not read its drafts.
                if known.is_some() && report.is_read() {
                    selected.late.upload_ahead(context.queue(), staging)?;
                } else {
                    selected.late.upload(context.queue(), staging)?;
                }
            }
        }
        let (count, rows) = (selected.tables.drafts.len(), selected.tables.row_sampling.len());
        (selected.drafts, selected.rows, selected.slots) = (count, rows, slots);
        launch_selection(context, report, selected)?;
        Ok(GpuSelection { linears: self.linears, results: self.results, drafts })
    }

    /// Writes the embeddings of the bonus tokens of `verdicts` to `out`.
    pub(super) fn embed_bonus_tokens(
        &mut self,
        table: &GpuLinear<P>,
        verdicts: &[usize],
        out: &mut GpuBuffer<P::Runtime>,
    ) -> Result<(), DeviceError> {
        let context = self.context();
        let GpuResults { report, selected, .. } = &mut *self.results;
        if let Some((announced, slots)) = self.tables.drafts_of(verdicts) {
            selected.tables = announced.clone();
            selected.block = Some(self.tables.block.clone());
            (selected.drafts, selected.rows) = (announced.drafts.len(), announced.row_sampling.len());
            selected.slots = slots;
            launch_selection(context, report, selected)?;
            return embed_selected(self.linears, selected, table, out);
        }
        let mut entries = Vec::with_capacity(verdicts.len());
        for &sequence in verdicts {
            index("embed_bonus", "verdict", sequence, report.batch())?;
            // A mask group of one slot has a bonus token and drafts nothing.
            let groups =
                DraftGroups { sequence, groups: GroupSet::NONE, first_slot: 0, slots: 1, first_draft: 0 };
            entries.push(Draft::new(&groups)?);
        }
        (selected.drafts, selected.rows, selected.slots) = (entries.len(), 0, SlotRows::Logits);
        selected.block = None;
        selected.late.clear();
        let drafts = selected.late.push(&entries);
        selected.tables = SelectionTables { drafts, ..SelectionTables::default() };
        selected.late.upload(context.queue(), &mut context.scratch().staging)?;
        launch_selection(context, report, selected)?;
        embed_selected(self.linears, selected, table, out)
    }

    /// Waits for the device, and returns the verdicts and the drafts that were not read yet.
    pub(super) fn take(&mut self) -> Result<StepResults, DeviceError> {
        let (context, results) = (self.context(), &mut *self.results);
        let drafts = std::mem::take(&mut results.drafts);
        let mut scratch = context.scratch();
        let HostReport { error, verdicts, stats } = results.report.read(context, &mut scratch)?;
        // A NaN among the logits concerns one verdict, or only a draft, which is verified like any other.
        if let Some(faults) = Faults::of(error).and_then(|faults| faults.without(Fault::Nan)) {
            let (runtime, stream) = context.queue();
            runtime.upload(stream, &[0], scratch.error.reserve(context.queue(), 1)?, 0)?;
            return Err(DeviceError::Faults(faults));
        }
        let verdicts: Vec<SequenceVerdict> = verdicts.iter().map(host_verdict).collect::<Result<_, _>>()?;
        let mut stats = stats.iter();
        let tokens = |len: usize| {
            let token = |stats: &RowStats| DraftToken {
                token: stats.token.unsigned_abs(),
                confidence: stats.confidence,
            };
            stats.by_ref().take(len).map(token).collect()
        };
        results.known = Some(verdicts.clone());
        Ok(StepResults { verdicts, drafts: drafts.into_iter().map(tokens).collect() })
    }
}

impl<P: Products> GpuSelection<'_, P> {
    /// Writes the selected rows of `x` to `out`.
    pub(super) fn gather_rows(
        &self,
        x: &GpuBuffer<P::Runtime>,
        out: &mut GpuBuffer<P::Runtime>,
    ) -> Result<(), DeviceError> {
        const OPERATION: &str = "gather";
        let (context, selected) = (self.linears.context, &self.results.selected);
        expect(OPERATION, "out", vec![out.rows(), x.cols()], vec![out.rows(), out.cols()])?;
        let (rows, cols) = (selected.rows, x.cols());
        out.resize(context.queue(), rows)?;
        let Some(sources) = selected.sources.memory().filter(|_| rows > 0) else { return Ok(()) };
        let mut scratch = context.scratch();
        let args = Gather {
            indices: context.input(sources, 0..rows)?,
            x: context.input(x.activations(OPERATION, "x")?, 0..x.rows() * cols)?,
            out: context.output(out.activations_mut(OPERATION, "out")?, 0..rows * cols)?,
            error: Some(error_word(context.queue(), &mut scratch.error)?),
            cols,
        };
        Ok(context.kernels.gather(&context.stream, &args)?)
    }

    /// Writes the embeddings of the bonus tokens to `out`.
    pub(super) fn embed_tokens(
        &self,
        table: &GpuLinear<P>,
        out: &mut GpuBuffer<P::Runtime>,
    ) -> Result<(), DeviceError> {
        embed_selected(self.linears, &self.results.selected, table, out)
    }

    /// Corrects the selected rows of `logits`, if there is a calibrator, and samples the drafts from them.
    pub(super) fn sample(
        self,
        corrections: Corrections<'_, GpuBuffer<P::Runtime>, GpuLinear<P>>,
        logits: &mut GpuBuffer<P::Runtime>,
    ) -> Result<(), DeviceError> {
        let Self { linears, results, drafts } = self;
        let GpuResults { report, selected, chain, .. } = &mut *results;
        let owners = DraftTables { drafts, rows: selected.slots }.owners();
        let edits = sampling::draft_edits(drafts, logits.cols())?;
        sampling::draft(linears, (corrections, edits), logits, (selected, &owners), (report, chain))?;
        // The next step may use the block again.
        selected.block = None;
        results.drafts.extend(drafts.iter().map(DraftRows::drafted));
        Ok(())
    }
}

/// Finds the rows and bonus tokens of the selected drafts, whose tables are on the device.
fn launch_selection<R: Runtime>(
    context: &Context<R>,
    report: &StepReport<R>,
    selected: &mut Selected<R>,
) -> Result<(), DeviceError> {
    let (count, rows) = (selected.drafts, selected.rows);
    let Selected { tables, late, block, bonus, starts, sources, draft_rows, .. } = selected;
    let staged = staged(late, block);
    let mut scratch = context.scratch();
    let args = SelectDrafts {
        drafts: staged.view(context.queue(), &tables.drafts)?,
        verdicts: report.verdicts("select_drafts", context)?,
        bonus: context.output(bonus.reserve(context.queue(), count)?, 0..count)?,
        starts: context.output(starts.reserve(context.queue(), count)?, 0..count)?,
        sources: context.output(sources.reserve(context.queue(), rows)?, 0..rows)?,
        draft_rows: context.output(draft_rows.reserve(context.queue(), rows)?, 0..rows)?,
        error: Some(error_word(context.queue(), &mut scratch.error)?),
    };
    Ok(context.kernels.select_drafts(&context.stream, &args)?)
}

/// Writes the embeddings of the bonus tokens of the selected drafts to `out`.
fn embed_selected<P: Products>(
    linears: Linears<'_, P>,
    selected: &Selected<P::Runtime>,
    table: &GpuLinear<P>,
    out: &mut GpuBuffer<P::Runtime>,
) -> Result<(), DeviceError> {
    const OPERATION: &str = "embed_bonus";
    let context = linears.context;
    expect(OPERATION, "out", vec![out.rows(), table.in_cols], vec![out.rows(), out.cols()])?;
    let drafts = selected.drafts;
    out.resize(context.queue(), drafts)?;
    let Some(bonus) = selected.bonus.memory().filter(|_| drafts > 0) else { return Ok(()) };
    linears.embed_ids(table, context.input(bonus, 0..drafts)?, 0, out)
}

/// Converts a verdict to the host's types.
fn host_verdict(verdict: &Verdict) -> Result<SequenceVerdict, DeviceError> {
    let convert = || {
        Some(SequenceVerdict {
            accepted: usize::try_from(verdict.accepted).ok()?,
            bonus: u32::try_from(verdict.bonus).ok()?,
            next_start: usize::try_from(verdict.cached_length).ok()?,
            fault: verdict.logits_fault(),
        })
    };
    convert().ok_or_else(|| DeviceError::Contract {
        operation: "read",
        operand: "verdict",
        expected: "a verdict without negative numbers",
        found: format!("{verdict:?}"),
    })
}

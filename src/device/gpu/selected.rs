//! The drafts that the verdicts select, with the rows, bonus tokens and positions that the device gives them, and the
//! sampling parameters of their rows.

use std::sync::Arc;

use super::check::index;
use super::memory::GrowableMemory;
use super::table_block::TableBlock;
use super::tables::{StagedTables, TableRange};
use crate::acceptance::Rule;
use crate::device::{DeviceError, DraftRows, DraftTables, SlotRows};
use crate::kernels::sampling::RowSampling;
use crate::kernels::selection::{Draft, DraftGroups};
use crate::layout::Prediction;
use crate::random::{Purpose, Stream};
use crate::runtime::Runtime;
use crate::sampling::SamplingParams;

/// The tables of drafts that are to be selected, among other tables.
#[derive(Clone, Debug, Default)]
pub(super) struct SelectionTables {
    pub(super) drafts: TableRange<Draft>,
    /// The sampling parameters of the drafts' rows.
    pub(super) row_sampling: TableRange<RowSampling>,
}

impl SelectionTables {
    /// Adds the tables of `drafts`, of a verification of `batch` sequences, to `tables`.
    pub(super) fn stage<R: Runtime>(
        tables: &mut StagedTables<R>,
        DraftTables { drafts, rows: slots }: DraftTables<'_>,
        batch: usize,
    ) -> Result<Self, DeviceError> {
        const OPERATION: &str = "select_drafts";
        let (mut table, mut row_sampling) = (Vec::with_capacity(drafts.len()), Vec::new());
        for (place, draft) in (0..).zip(drafts) {
            index(OPERATION, "sequence", draft.sequence, batch)?;
            let groups = DraftGroups {
                sequence: draft.sequence,
                groups: draft.groups,
                first_slot: draft.first_row,
                slots: draft.slots,
                first_draft: row_sampling.len(),
            };
            table.push(match (slots, draft.prediction) {
                (SlotRows::Pass { .. }, Prediction::OwnPosition) => Draft::new(&groups)?,
                (SlotRows::Pass { .. }, Prediction::NextPosition) => Draft::predicting_next(&groups)?,
                (SlotRows::Logits, _) => Draft::in_logits(&groups)?,
            });
            for slot in 1..draft.slots {
                row_sampling.push(slot_sampling(draft, slot)?.relative_to(place));
            }
        }
        Ok(Self { drafts: tables.push(&table), row_sampling: tables.push(&row_sampling) })
    }
}

/// The selected drafts, with the rows, bonus tokens and positions that the verdicts give them. The tables are filled
/// by the device.
#[derive(Debug)]
pub(super) struct Selected<R: Runtime> {
    /// Number of drafts.
    pub(super) drafts: usize,
    /// Number of rows of all drafts.
    pub(super) rows: usize,
    pub(super) slots: SlotRows,
    /// The drafts, and the sampling parameters of their rows, if the step did not announce them.
    pub(super) late: StagedTables<R>,
    /// The tables of the drafts, in `late` or in the step's block.
    pub(super) tables: SelectionTables,
    /// The block with the tables, if the step announced the drafts.
    pub(super) block: Option<Arc<TableBlock<R>>>,
    /// The bonus token of each draft.
    pub(super) bonus: GrowableMemory<R, i32>,
    /// The position from which each draft's random numbers count.
    pub(super) starts: GrowableMemory<R, i32>,
    /// The row of the pass or of the logits that each draft row comes from.
    pub(super) sources: GrowableMemory<R, i32>,
    /// The row of the logits that each draft row is sampled from.
    pub(super) draft_rows: GrowableMemory<R, i32>,
}

impl<R: Runtime> Default for Selected<R> {
    fn default() -> Self {
        Selected {
            drafts: 0,
            rows: 0,
            slots: SlotRows::Logits,
            late: StagedTables::default(),
            tables: SelectionTables::default(),
            block: None,
            bonus: GrowableMemory::default(),
            starts: GrowableMemory::default(),
            sources: GrowableMemory::default(),
            draft_rows: GrowableMemory::default(),
        }
    }
}

/// Returns the memory with the tables of drafts: the step's block, if the step announced them.
pub(super) fn staged<'a, R: Runtime>(
    late: &'a StagedTables<R>,
    block: &'a Option<Arc<TableBlock<R>>>,
) -> &'a StagedTables<R> {
    block.as_ref().map_or(late, |block| &block.tables)
}

/// Returns the sampling parameters of slot `slot` of a draft.
pub(super) fn slot_sampling(draft: &DraftRows<'_>, slot: usize) -> Result<RowSampling, DeviceError> {
    // Positions count from the start of the next step, which the device knows.
    let numbers = match draft.rule {
        Rule::Match => Stream::target_draw(draft.seed, slot),
        Rule::Rejection | Rule::Block => Stream::new(draft.seed, Purpose::DraftDraw, slot, 0),
    };
    row_sampling("select_drafts", draft.sampling, (!draft.sampling.is_greedy()).then_some(numbers))
}

/// Returns the sampling parameters of a row that is drawn with the random numbers `numbers`.
pub(super) fn row_sampling(
    operation: &'static str,
    params: &SamplingParams,
    numbers: Option<Stream>,
) -> Result<RowSampling, DeviceError> {
    RowSampling::new(params, numbers).map_err(|error| DeviceError::Contract {
        operation,
        operand: "sampling",
        expected: "parameters that describe a distribution",
        found: error.to_string(),
    })
}

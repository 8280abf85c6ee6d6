//! Memory that a verification reuses from step to step, and the sampling parameters of its rows.

use super::memory::{GrowableMemory, StagedTables};
use crate::acceptance::Rule;
use crate::device::{DeviceError, DraftRows};
use crate::kernels::sampling::{RowSampling, RowStats};
use crate::random::{Purpose, Stream};
use crate::runtime::Runtime;
use crate::sampling::SamplingParams;

/// What a verification works on.
#[derive(Debug)]
pub(super) struct VerificationMemory<B: Runtime> {
    /// How rows are sampled, the requests, and their tokens.
    pub(super) tables: StagedTables<B>,
    pub(super) target_stats: GrowableMemory<B, RowStats>,
    /// Acceptance's own workspace: it reads what sampling left in the scratch.
    pub(super) workspace: GrowableMemory<B, f32>,
    /// The logits of every q, side by side, and the statistics of their draws, where they are not in one buffer.
    pub(super) draft_logits: GrowableMemory<B, f32>,
    pub(super) draws: GrowableMemory<B, u64>,
    /// Zero between launches.
    pub(super) arrived: GrowableMemory<B, u32>,
    pub(super) committed: GrowableMemory<B, i32>,
}

impl<B: Runtime> Default for VerificationMemory<B> {
    fn default() -> Self {
        VerificationMemory {
            tables: StagedTables::default(),
            target_stats: GrowableMemory::default(),
            workspace: GrowableMemory::default(),
            draft_logits: GrowableMemory::default(),
            draws: GrowableMemory::default(),
            arrived: GrowableMemory::default(),
            committed: GrowableMemory::default(),
        }
    }
}

/// Parameters that a request's validation should not have let through.
fn invalid(what: &'static str) -> DeviceError {
    DeviceError::OutOfRange { operation: "sample", what, index: 0, limit: 0 }
}

/// How slot `slot` of a draft is sampled.
pub(super) fn slot_sampling(draft: &DraftRows<'_>, slot: usize) -> Result<RowSampling, DeviceError> {
    // Positions count from the start of the next step, which the device knows.
    let numbers = match draft.rule {
        Rule::Match => Stream::target_draw(draft.seed, slot),
        Rule::Rejection | Rule::Block => Stream::new(draft.seed, Purpose::DraftDraw, slot, 0),
    };
    new_row_sampling(draft.sampling, (!draft.sampling.is_greedy()).then_some(numbers))
}

pub(super) fn new_row_sampling(
    params: &SamplingParams,
    numbers: Option<Stream>,
) -> Result<RowSampling, DeviceError> {
    RowSampling::new(params, numbers).map_err(|_| invalid("sampling parameter"))
}

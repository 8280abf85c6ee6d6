//! The CUDA kernels behind a safe interface: one method per kernel.
//!
//! | kernel | method | module | launches | equation |
//! |---|---|---|---|---|
//! | joint attention | [`joint_attention`](Kernels::joint_attention) | [`attention`] | 1, or 2 if keys are divided | softmax(q·Kᵀ/√d)·V under the joint mask (FlexDraft) |
//! | sampling | [`sample`](Kernels::sample) | [`sampling`] | 2 | logits + W2·u + b2, warping, Gumbel-max draw |
//! | acceptance | [`accept`](Kernels::accept) | [`acceptance`] | 1, or 2 with `block` | arXiv 2211.17192, 2302.01318, 2403.10444 |
//! | chain | [`chain_choose`](Kernels::chain_choose), [`chain_score`](Kernels::chain_score), [`chain_walk`](Kernels::chain_walk) | [`chain`] | 1 each | Chained Calibration ([`chain`]) |
//! | selection | [`follow_verdicts`](Kernels::follow_verdicts), [`select_drafts`](Kernels::select_drafts) | [`selection`] | 1 each | the mask group of the accepted length |
//! | embedding | [`embed`](Kernels::embed), [`gather`](Kernels::gather) | [`embedding`] | 1 each | out\[r\] = table\[ids\[r\]\] |
//! | norm | [`rms_norm`](Kernels::rms_norm), [`add`](Kernels::add) | [`norm`] | 1 each | arXiv 1910.07467, equation 4 |
//! | activation | [`silu_mul`](Kernels::silu_mul), [`silu_add`](Kernels::silu_add) | [`activation`] | 1 each | arXiv 2002.05202, equation 6 |
//! | rotation | [`rope_table`](Kernels::rope_table), [`norm_rope_append`](Kernels::norm_rope_append) | [`rope`] | 1 each | arXiv 2104.09864, equation 34 |
//!
//! A method checks every operand (length, alignment, queue) before it launches anything, fills the kernel's
//! parameter struct and launches. It allocates nothing, never waits, and takes stream and workspace from its
//! caller.
//!
//! Launches can be captured in a CUDA graph. All data that changes from step to step is in device memory, so
//! a graph serves every step with the same numbers of sequences, candidate rows and mask rows, if no sequence
//! sees more positions than in the pass at capture. Upload tables and operands in place before each launch of
//! the graph. A capture must not wait for an event from before it. Its operands are therefore [raw
//! views](crate::runtime::View::from_raw), or memory of a context on which cudarc's event tracking was turned
//! off.

pub mod acceptance;
pub mod activation;
pub mod attention;
pub mod chain;
pub mod embedding;
mod error;
mod faults;
mod half_float;
mod kv;
mod limits;
mod load;
pub mod norm;
mod operands;
pub(crate) mod params;
mod pass;
mod projections;
pub mod rope;
pub mod sampling;
mod scores;
pub mod selection;

pub use error::KernelError;
pub use faults::{Fault, Faults};
pub use half_float::{HalfFloat, HalfView};
pub use kv::{KvStrides, PagedKv, PagedKvMut};
pub use limits::{ExceededLimit, ModelShape, supports};
pub use pass::{Paging, PassTables};
pub use projections::{HeadRows, HeadRowsMut, MaskProjections, Projections, ProjectionsMut};
pub use scores::ScoreChanges;

use crate::runtime::Runtime;

/// The kernels of this crate, loaded on a runtime.
#[derive(Debug)]
pub struct Kernels<R> {
    runtime: R,
}

impl<R: Runtime> Kernels<R> {
    /// Makes the kernels that run on `runtime`.
    pub fn new(runtime: R) -> Self {
        Kernels { runtime }
    }

    /// Returns the runtime on which the kernels run.
    pub fn runtime(&self) -> &R {
        &self.runtime
    }
}

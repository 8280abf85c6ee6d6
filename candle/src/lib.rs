//! # flexdraft-candle
//!
//! The kernels of [flexdraft] on the tensors of [candle](candle_core): joint draft-and-verify attention, calibrated
//! sampling, acceptance, and the operations between them.
//!
//! | kernel | method |
//! |---|---|
//! | joint attention | [`joint_attention`](Kernels::joint_attention) |
//! | rotation | [`rope_table`](Kernels::rope_table), [`norm_rope_append`](Kernels::norm_rope_append) |
//! | sampling | [`sample`](Kernels::sample), [`sample_partials`](Kernels::sample_partials) |
//! | acceptance | [`accept`](Kernels::accept) |
//! | chain | [`chain_choose`](Kernels::chain_choose), [`chain_score`](Kernels::chain_score), [`chain_walk`](Kernels::chain_walk) |
//! | selection | [`follow_verdicts`](Kernels::follow_verdicts), [`select_drafts`](Kernels::select_drafts) |
//! | embedding | [`embed`](Kernels::embed), [`gather`](Kernels::gather) |
//! | norm | [`rms_norm`](Kernels::rms_norm), [`add_rms_norm`](Kernels::add_rms_norm), [`add`](Kernels::add) |
//! | activation | [`silu_mul`](Kernels::silu_mul), [`silu_add`](Kernels::silu_add) |
//!
//! - **Memory.** Kernels read and write the tensors' own memory and copy nothing. Every tensor is contiguous, except
//!   the [`KvCache`] and [`Projections`] in separate tensors; any other layout is an error. Results are new tensors.
//!   Where a method says that it changes a tensor in place, all tensors that share the memory change, as with candle's
//!   in-place operations. The methods have no gradients.
//! - **Devices.** [`Kernels::new`] takes the device. On the CPU, the SIMT emulator runs the kernels' CUDA sources: the
//!   results model the GPU's, and the emulator is slow. On CUDA (feature `cuda`), launches go to candle's stream. The
//!   stream of `Device::new_cuda` is a stream of each calling thread: use the device from one thread, or make it with
//!   `CudaDevice::new_with_stream`.
//! - **Lifetimes.** A tensor may be dropped before a launch that uses it has run, because its memory is freed on the
//!   same stream, after the launch. On the CPU a launch has ended when the method returns.
//! - **Tables.** Structs of the kernels are rows of tensors: see [`table()`] and [`read_table`].
//! - **Errors.** Methods return candle's error, which has an [`Error`] of this crate inside ([`Error::of`]). A
//!   condition that only the device can detect, such as an id out of range, is a fault: [`Kernels::take_faults`].
//!
//! ```
//! use candle_core::{Device, Tensor};
//! use flexdraft::kernels::sampling::{RowSampling, RowStats};
//! use flexdraft::random::Stream;
//! use flexdraft::sampling::SamplingParams;
//! use flexdraft_candle::{Kernels, Sample, SampledLogits, read_table, table};
//!
//! let kernels = Kernels::new(&Device::Cpu)?;
//! // Two rows over a vocabulary of six ids, padded to eight columns.
//! let logits = Tensor::new(
//!     &[[0.5f32, 3.0, 1.0, 3.0, -1.0, 0.0, 9.0, 9.0], [4.0, 1.0, 2.0, 0.0, 0.0, 0.0, 9.0, 9.0]],
//!     &Device::Cpu,
//! )?;
//! let top_two = SamplingParams { top_k: 2, ..SamplingParams::at_temperature(1.0) };
//! let sampling = table(
//!     &[
//!         RowSampling::new(&SamplingParams::GREEDY, None)?,
//!         RowSampling::new(&top_two, Some(Stream::target_draw(7, 120)))?,
//!     ],
//!     &Device::Cpu,
//! )?;
//! let sampled = kernels.sample(&Sample {
//!     vocab: 6,
//!     logits: SampledLogits::Read(&logits),
//!     logit_index: None,
//!     sampling: &sampling,
//!     starts: None,
//!     draft: None,
//!     calibration: None,
//! })?;
//! let stats: Vec<RowStats> = read_table(&sampled.stats)?;
//! assert_eq!(stats[0].token, 1);
//! assert!([0, 2].contains(&stats[1].token));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod acceptance;
mod attention;
mod chain;
mod error;
mod memory;
mod operands;
mod pass;
mod processor;
mod rows;
mod sampling;
mod table;

pub use acceptance::{Accept, Accepted, DraftDistributions, Selected};
pub use attention::{
    Attended, JointAttention, KvCache, MaskProjections, NormRopeAppend, Projections, RotatedProjections,
    ScoreChanges,
};
pub use chain::{ChainChoose, ChainScore, ChainWalk, Chosen};
pub use error::Error;
pub use pass::PassTables;
pub use processor::Kernels;
pub use sampling::{Calibration, Sample, Sampled, SampledLogits};
pub use table::{TableRow, read_table, table, tokens};

//! # flexdraft
//!
//! Lossless parallel speculative decoding: [FlexDraft](https://arxiv.org/abs/2605.20022) as a Rust crate.
//!
//! The language model drafts tokens for itself. In the forward pass that verifies the current block of draft tokens,
//! mask tokens, routed through tuned attention projections in the model's last layers, draft the next block. A small
//! MLP corrects that draft once the bonus token is known. The output is exactly the output of the model without drafts.
//!
//! ## Example
//!
//! A target and its drafter on a CPU, serving one request (feature `runner`):
//!
//! ```no_run
//! # #[cfg(feature = "runner")] {
//! use flexdraft::decode::{Engine, EngineOptions, Mode, Request};
//! use flexdraft::device::cpu::{Cpu, CpuOptions};
//! use flexdraft::model::{DrafterWeights, Model, TargetWeights};
//!
//! let target = TargetWeights::read("target".as_ref())?;
//! let drafter = DrafterWeights::read("drafter".as_ref(), &target.config)?;
//! let model = Model::new(Cpu::new(CpuOptions::default())?, &target, Some(&drafter))?;
//! let mut engine = Engine::new(model, Mode::Parallel, EngineOptions::default())?;
//! engine.add(Request::new(vec![1, 2, 3], 64))?;
//! while !engine.is_idle() {
//!     for committed in engine.step()? {
//!         println!("{:?}", committed.tokens);
//!     }
//! }
//! # }
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! `examples/` has more: a policy of your own, a logits hook, a kernel on the emulator, raw pointers.
//!
//! ## Layers
//!
//! Dependencies point from the top of this list to the bottom.
//!
//! | module | contents | feature |
//! |---|---|---|
//! | `device_selection` | opens a device and tests it before use | `runner` |
//! | `decode` | requests, the engine, the decode step | `runner` |
//! | `model` | configurations, weights, tokenizers, the forward pass | `runner` |
//! | `device` | the operations of a decode step, for CPU and GPU | `runner` |
//! | [`kernels`] | the CUDA kernels: one safe method per kernel, which checks its operands and launches | |
//! | [`runtime`] | the places where kernels run: a GPU, or the SIMT emulator in tests | |
//! | [`acceptance`] | the four acceptance rules | |
//! | [`processors`] | penalties, bias and forbidden ids, which act on the target's logits | |
//! | [`logits`] | rows of logits that no token may be drawn from | |
//! | [`sampling`] | temperature, top-k, top-p, min-p, and drawing a token | |
//! | [`random`] | the random-number contract: Philox, keyed by position | |
//! | [`layout`] | the rows of a pass: their positions, and the positions that each row sees | |
//!
//! Symbols used throughout (the batch dimension is left out): *S* is the block size, *v* the verify length,
//! *a* the accepted length, and *n* the position of the newest token, whose KV is not cached yet.

#![cfg_attr(not(test), warn(clippy::unwrap_used, clippy::expect_used, clippy::panic))]

pub mod acceptance;
#[cfg(feature = "runner")]
pub mod decode;
#[cfg(feature = "runner")]
pub mod device;
#[cfg(feature = "runner")]
pub mod device_selection;
mod error;
pub mod kernels;
pub mod layout;
pub mod logits;
#[cfg(feature = "runner")]
pub mod model;
pub mod processors;
pub mod random;
pub mod runtime;
pub mod sampling;
#[cfg(feature = "runner")]
pub mod tensor;

pub use error::{Error, Result};
pub use half;

// The doc tests compile the readme's example together with the documentation's examples.
#[cfg(all(doctest, feature = "runner"))]
#[doc = include_str!("../README.md")]
struct Readme;

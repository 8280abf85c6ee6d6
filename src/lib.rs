//! # flexdraft
//!
//! Lossless parallel speculative decoding: [FlexDraft](https://arxiv.org/abs/2605.20022) as a Rust crate.
//!
//! A language model drafts for itself. While one forward pass verifies the current block of draft
//! tokens, mask tokens routed through tuned attention projectors of the model's last layers prepare
//! the next block; a small MLP corrects that draft once the bonus token is known. The output is
//! exactly what the model alone would have produced.
//!
//! ## Layers
//!
//! Dependencies point one way, from the top of this list to the bottom.
//!
//! | module | what it is | feature |
//! |---|---|---|
//! | `decode` | requests, the engine, what a step does | `runner` |
//! | `model` | configurations, weights, tokenizers, the forward pass | `runner` |
//! | `device` | the operations of a decode step, and where they run | `runner` |
//! | [`kernels`] | one method a kernel: operands checked, then launched | |
//! | [`backend`] | where kernels run: a GPU, or the SIMT host in tests | |
//! | [`acceptance`] | the four acceptance rules | |
//! | [`sampling`] | temperature, top-k, top-p, min-p, and the draw | |
//! | [`random`] | the random-number contract: Philox, keyed by position | |
//! | [`layout`] | which rows a pass has, where they sit, what they see | |
//!
//! Words used throughout (batch dimension left out): *S* is the block size, *v* the verify length,
//! *a* the accepted length, *n* the position of the newest token, whose KV is not cached yet.

#![cfg_attr(not(test), warn(clippy::unwrap_used, clippy::expect_used, clippy::panic))]

pub mod acceptance;
pub mod backend;
#[cfg(feature = "runner")]
pub mod decode;
#[cfg(feature = "runner")]
pub mod device;
mod error;
pub mod kernels;
pub mod layout;
#[cfg(feature = "runner")]
pub mod model;
pub mod random;
pub mod sampling;
#[cfg(feature = "runner")]
pub mod tensor;

pub use error::{Error, Result};

// The readme's example is compiled with the documentation's.
#[cfg(all(doctest, feature = "runner"))]
#[doc = include_str!("../README.md")]
struct Readme;

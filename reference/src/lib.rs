//! # FlexDraft, stated plainly
//!
//! Every operation of [FlexDraft](https://arxiv.org/abs/2605.20022) (lossless parallel speculative decoding by
//! Attention Tuning and Bonus-guided Calibration), written in the plainest Rust: no cache, no tiles, no batches, no
//! dependencies, generic over the float type. Kernels and decode loops are tested against it, and it is the place to
//! look up how the method is defined.
//!
//! | module | operation | source |
//! |---|---|---|
//! | [`float`] | the float type: f32 or f64 | |
//! | [`philox`] | Philox 4x32-10 | Salmon et al., SC'11 |
//! | [`random`] | which random number is used for what | Gumbel and uniform numbers by counter |
//! | [`linear`] | W x + b | |
//! | [`norm`] | RMSNorm | arXiv 1910.07467, equation 4 |
//! | [`rope`] | rotary embedding; frequencies of types default, linear, llama3, yarn | arXiv 2104.09864, equation 34; 2306.15595; Llama 3.1; 2309.00071 |
//! | [`swiglu`] | the gated MLP | arXiv 2002.05202, equation 6 |
//! | [`layout`] | candidate rows and mask groups: positions and limits | FlexDraft, joint mask |
//! | [`attention`] | mask-token block attention; joint draft-and-verify attention | FlexDraft; arXiv 1706.03762, equation 1; 2305.13245 |
//! | [`calibration`] | Bonus-guided Calibration | FlexDraft |
//! | [`chain`] | Chained Calibration, an optional extension | this project |
//! | [`process`] | penalties, bias, minimum length, bad words, bit mask | arXiv 1909.05858, section 4.1 |
//! | [`warp`] | temperature, top-k, top-p, min-p | arXiv 1805.04833, 1904.09751, 2407.01082 |
//! | [`sample`] | argmax, Gumbel-max draw, confidence | arXiv 1411.0030, section 2 |
//! | [`accept`] | the rules greedy, rejection, block, match | arXiv 2211.17192, 2302.01318, 2403.10444 |
//! | [`propose`] | proposals from outside the model; prompt lookup | Saxena, "Prompt Lookup Decoding", 2023 |
//! | [`schedule`] | confidences to the next verify length | FlexDraft, public code |
//! | [`model`] | a whole target, a whole drafter of either kind | Llama, Qwen3, FlexDraft; Orthrus, arXiv 2605.12825 |
//! | [`decode`] | the decode loop; autoregressive decoding | FlexDraft |
//!
//! ## Words
//!
//! *Target*: the frozen model, L layers; *tail*: its last N layers, where mask rows exist; *S*: the
//! block size, slots a mask group; *bonus token*: the newest token, drawn by the target; *candidates*
//! c_0..c_v: the newest token and the v draft tokens under verification, c_0 at position *n*;
//! *a*: the accepted length.
//!
//! ## How to compare with it
//!
//! Run this crate in f64 on the inputs of the implementation under test, widened to f64. The difference is then that
//! implementation's rounding. [`attention::Attended::magnitude`] is the scale of the error of an attention output.
//! Tokens agree unless the gap between two logits is smaller than that rounding.
//!
//! Shapes are documented preconditions: a call with other shapes panics.

pub mod accept;
pub mod attention;
pub mod calibration;
pub mod chain;
pub mod decode;
pub mod float;
pub mod layout;
pub mod linear;
pub mod model;
pub mod norm;
pub mod philox;
pub mod process;
pub mod propose;
pub mod random;
pub mod rope;
pub mod sample;
pub mod schedule;
pub mod swiglu;
pub mod warp;

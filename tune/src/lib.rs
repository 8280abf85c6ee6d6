//! # flexdraft-tune
//!
//! Makes FlexDraft drafters ([arXiv 2605.20022](https://arxiv.org/abs/2605.20022)) for any target that
//! `flexdraft` loads: Attention Tuning of the last layers' projectors, and Bonus-guided Calibration.

#![cfg_attr(not(test), warn(clippy::unwrap_used, clippy::expect_used, clippy::panic))]

pub mod attention;
pub mod calibration;
pub mod card;
pub mod chain;
pub mod checkpoint;
pub mod curves;
pub mod data;
pub mod drafter;
pub mod engine_size;
pub mod error;
pub mod export;
pub mod generated;
pub mod graph;
pub mod hash;
pub mod headroom;
pub mod hex;
pub mod initial;
pub mod json_lines;
pub mod layers;
pub mod loss;
pub mod metrics;
pub mod ops;
pub mod optimizer;
pub mod pretrain;
pub mod shortlist;
pub mod target;
pub mod transcripts;
pub mod tune;

pub use error::{Result, TuneError};

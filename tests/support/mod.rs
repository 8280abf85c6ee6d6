//! Helpers shared by the test programs: small random models, functions that run them, operands, and the choice of
//! kernels.

#![allow(dead_code)] // Each program uses its own part.

pub mod bench;
pub mod blocks;
pub mod bounds;
pub mod close;
pub mod cpu;
pub mod faults;
pub mod gguf;
pub mod gpu;
pub mod masks;
pub mod models;
pub mod noise;
pub mod official_orthrus;
pub mod planted;
pub mod policies;
pub mod processors;
pub mod properties;
pub mod reference;
pub mod runs;
pub mod simt_variant;

//! A stable C interface of the kernels, for engines in other languages. The header `include/flexdraft.h` declares it and
//! has its conventions and the shapes, units and errors of every function.
//!
//! Callers without a GPU open the SIMT emulator, which runs the kernels on the CPU, over host memory, for tests.

mod acceptance;
mod attention;
mod buffer;
mod chain;
mod pass;
mod processor;
mod rope;
mod rows;
mod sampling;
mod selection;
mod status;

pub use acceptance::*;
pub use attention::*;
pub use buffer::*;
pub use chain::*;
pub use pass::*;
pub use processor::*;
pub use rope::*;
pub use rows::*;
pub use sampling::*;
pub use selection::*;
pub use status::*;

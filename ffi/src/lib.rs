//! The kernels for engines in other languages: a stable C interface, and functions of TVM-FFI on DLPack tensors.
//!
//! The header `include/flexdraft.h` declares the C interface and documents its conventions and the shapes, units and
//! errors of every function. The module `tvm` describes the functions of TVM-FFI.
//!
//! Callers without a GPU open the SIMT emulator, which runs the kernels on the CPU, over host memory, for tests.

mod acceptance;
mod attention;
mod buffer;
mod chain;
mod edits;
mod pass;
mod processor;
mod rope;
mod rows;
mod sampling;
mod selection;
mod status;
/// cbindgen:ignore
mod tvm;

pub use acceptance::*;
pub use attention::*;
pub use buffer::*;
pub use chain::*;
pub use edits::*;
pub use pass::*;
pub use processor::*;
pub use rope::*;
pub use rows::*;
pub use sampling::*;
pub use selection::*;
pub use status::*;

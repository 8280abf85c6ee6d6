//! The CUDA kernels behind a safe interface: one method per kernel.
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
pub mod attention;
mod error;
mod faults;
pub mod glue;
mod kv;
mod load;
mod operands;
pub(crate) mod params;
mod pass;
pub mod sampling;
pub mod selection;

pub use error::KernelError;
pub use faults::{Fault, Faults};
pub use kv::{KvStrides, PagedKv, PagedKvMut};
pub use pass::{Paging, PassTables};

use crate::runtime::Runtime;

/// The kernels of this crate, loaded on a runtime.
#[derive(Debug)]
pub struct Kernels<B> {
    runtime: B,
}

impl<B: Runtime> Kernels<B> {
    /// Makes the kernels that run on `runtime`.
    pub fn new(runtime: B) -> Self {
        Kernels { runtime }
    }

    /// Returns the runtime on which the kernels run.
    pub fn runtime(&self) -> &B {
        &self.runtime
    }
}

//! The kernels, safely: one method a kernel.
//!
//! A method checks every operand (length, alignment, queue) before anything is launched, fills the kernel's
//! parameter struct and launches. It allocates nothing, never waits, and takes stream and workspace from
//! its caller.
//!
//! Launches can be captured in a CUDA graph: what changes from step to step is in device memory, so a graph serves
//! every step with as many sequences, candidate rows and mask rows, whose sequences see no more positions than the
//! pass it was captured with; upload tables and operands in place before each launch of it. A capture must not wait
//! for an event from before it, so operands are [raw views](crate::backend::View::from_raw), or memory of a context
//! whose event tracking cudarc was told to leave off.

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

use crate::backend::Backend;

/// The kernels of this crate, loaded on a backend.
#[derive(Debug)]
pub struct Kernels<B> {
    backend: B,
}

impl<B: Backend> Kernels<B> {
    /// The kernels on `backend`.
    pub fn new(backend: B) -> Self {
        Kernels { backend }
    }

    /// Where the kernels run.
    pub fn backend(&self) -> &B {
        &self.backend
    }
}

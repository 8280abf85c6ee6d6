//! The kernels with operands of a shape, generic over where they run: the benchmark launches them on a GPU
//! at the shapes of a decode step, the tests on the SIMT host at small ones.

pub mod acceptance;
pub mod attention;
pub mod glue;
pub mod sampling;
pub mod selection;

use flexdraft::backend::Backend;
use flexdraft::kernels::KernelError;
use serde::Serialize;

use crate::floor::Floor;
use crate::machine::Machine;

/// A shape of the operands of a kernel; its fields are what a report tells it by.
pub trait Case: Serialize {
    /// What is measured.
    fn kernel(&self) -> &'static str;

    /// What it cannot do without.
    fn floor(&self) -> Floor;

    /// Operands in memory.
    fn prepare<'a, B: Backend>(&self, machine: &'a Machine<B>)
    -> Result<Box<dyn Prepared + 'a>, KernelError>;
}

/// A kernel that can be launched over and over.
pub trait Prepared {
    /// Puts back what the last launch changed, so that every launch does the same work. Not timed.
    fn restore(&mut self) -> Result<(), KernelError> {
        Ok(())
    }

    /// Puts the kernel on the stream, with every launch that it takes.
    fn launch(&mut self) -> Result<(), KernelError>;
}

//! Benchmark cases: a kernel and the shapes of its operands, generic over the runtime. The benchmark launches them on a
//! GPU with the shapes of a decode step, the tests on the SIMT emulator with small shapes.

pub mod acceptance;
pub mod attention;
pub mod chain;
pub mod glue;
pub mod sampling;
pub mod selection;

use flexdraft::kernels::{HalfFloat, KernelError};
use flexdraft::runtime::Runtime;
use half::{bf16, f16};
use serde::Serialize;

use crate::floor::Floor;
use crate::machine::Machine;

/// A type of rows and caches: bf16 or f16.
pub trait Half: HalfFloat {
    fn from_f32(x: f32) -> Self;
}

impl Half for bf16 {
    fn from_f32(x: f32) -> Self {
        bf16::from_f32(x)
    }
}

impl Half for f16 {
    fn from_f32(x: f32) -> Self {
        f16::from_f32(x)
    }
}

/// A kernel and the shape of its operands; a report identifies the case by its serialized fields.
pub trait Case: Serialize {
    /// Returns the name of the measured kernel.
    fn kernel(&self) -> &'static str;

    /// Returns the least bytes and operations that the kernel needs.
    fn floor(&self) -> Floor;

    /// Allocates and fills the operands of the kernel.
    fn prepare<'a, R: Runtime>(&self, machine: &'a Machine<R>)
    -> Result<Box<dyn Prepared + 'a>, KernelError>;
}

/// A kernel with operands, which can be launched repeatedly.
pub trait Prepared {
    /// Undoes the changes of the last launch, so that every launch does the same work. Not timed.
    fn restore(&mut self) -> Result<(), KernelError> {
        Ok(())
    }

    /// Launches every kernel of the case on the stream.
    fn launch(&mut self) -> Result<(), KernelError>;
}

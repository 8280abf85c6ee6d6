//! Activations, and memory that grows with what is asked of it.

use half::bf16;

use crate::backend::{Backend, Element};
use crate::device::DeviceError;

/// Memory of at least as many elements as were ever asked for. What it holds is lost when it grows.
#[derive(Debug)]
pub(super) struct Grown<B: Backend, T: Element> {
    memory: Option<B::Memory<T>>,
    len: usize,
}

impl<B: Backend, T: Element> Default for Grown<B, T> {
    fn default() -> Self {
        Grown { memory: None, len: 0 }
    }
}

impl<B: Backend, T: Element> Grown<B, T> {
    /// What there is.
    pub(super) fn memory(&self) -> Option<&B::Memory<T>> {
        self.memory.as_ref()
    }

    /// `len` elements or more.
    pub(super) fn reserve(
        &mut self,
        backend: &B,
        stream: &B::Stream,
        len: usize,
    ) -> Result<&mut B::Memory<T>, DeviceError> {
        if len > self.len || self.memory.is_none() {
            let len = len.next_power_of_two().max(64);
            // The old memory goes first.
            self.memory = None;
            self.memory = Some(backend.allocate(stream, len)?);
            self.len = len;
        }
        self.memory.as_mut().ok_or(DeviceError::OutOfMemory { what: "scratch", bytes: len * size_of::<T>() })
    }
}

/// Activations `[rows, cols]` in bf16, or logits in f32, row after row; a row of logits ends at a multiple
/// of eight elements.
#[derive(Debug)]
pub struct Buffer<B: Backend> {
    pub(super) values: Values<B>,
    pub(super) rows: usize,
    pub(super) cols: usize,
    capacity: usize,
}

#[derive(Debug)]
pub(super) enum Values<B: Backend> {
    Activations(B::Memory<bf16>),
    Logits(B::Memory<f32>),
    /// Nothing has been allocated yet.
    NoActivations,
    NoLogits,
}

impl<B: Backend> Buffer<B> {
    pub(super) fn new(cols: usize, logits: bool) -> Self {
        let values = if logits { Values::NoLogits } else { Values::NoActivations };
        Buffer { values, rows: 0, cols, capacity: 0 }
    }

    /// Rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Values in a row.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Elements from a row to the next.
    pub(super) fn stride(&self) -> usize {
        match self.values {
            Values::Activations(_) | Values::NoActivations => self.cols,
            Values::Logits(_) | Values::NoLogits => self.cols.next_multiple_of(8),
        }
    }

    /// Sets the number of rows; those that were there before stay as they are.
    pub(super) fn resize(&mut self, backend: &B, stream: &B::Stream, rows: usize) -> Result<(), DeviceError> {
        let stride = self.stride();
        let needed = rows
            .checked_mul(stride)
            .ok_or(DeviceError::OutOfMemory { what: "activations", bytes: usize::MAX })?;
        let fresh = matches!(self.values, Values::NoActivations | Values::NoLogits);
        if needed > self.capacity || fresh {
            let capacity = needed.max(2 * self.capacity);
            let kept = self.rows.min(rows) * stride;
            self.values = match &self.values {
                Values::Activations(old) => Values::Activations(moved(backend, stream, old, kept, capacity)?),
                Values::Logits(old) => Values::Logits(moved(backend, stream, old, kept, capacity)?),
                Values::NoActivations => Values::Activations(backend.allocate(stream, capacity)?),
                Values::NoLogits => Values::Logits(backend.allocate(stream, capacity)?),
            };
            self.capacity = capacity;
        }
        self.rows = rows;
        Ok(())
    }

    /// The activations, for an operation.
    pub(super) fn activations(
        &self,
        operation: &'static str,
        operand: &'static str,
    ) -> Result<&B::Memory<bf16>, DeviceError> {
        match &self.values {
            Values::Activations(memory) => Ok(memory),
            _ => Err(self.not(operation, operand)),
        }
    }

    /// As [`activations`](Self::activations), to be written.
    pub(super) fn activations_mut(
        &mut self,
        operation: &'static str,
        operand: &'static str,
    ) -> Result<&mut B::Memory<bf16>, DeviceError> {
        let error = self.not(operation, operand);
        match &mut self.values {
            Values::Activations(memory) => Ok(memory),
            _ => Err(error),
        }
    }

    /// The logits, for an operation.
    pub(super) fn logits(&self, operation: &'static str) -> Result<&B::Memory<f32>, DeviceError> {
        match &self.values {
            Values::Logits(memory) => Ok(memory),
            _ => Err(self.not(operation, "logits")),
        }
    }

    /// As [`logits`](Self::logits), to be written.
    pub(super) fn logits_mut(&mut self, operation: &'static str) -> Result<&mut B::Memory<f32>, DeviceError> {
        let error = self.not(operation, "logits");
        match &mut self.values {
            Values::Logits(memory) => Ok(memory),
            _ => Err(error),
        }
    }

    /// A buffer that was never resized, or that is of the other kind.
    fn not(&self, operation: &'static str, operand: &'static str) -> DeviceError {
        let (expected, found) = (vec![1, self.cols], vec![self.rows, self.cols]);
        DeviceError::Shape { operation, operand, expected, found }
    }
}

fn moved<B: Backend, T: Element>(
    backend: &B,
    stream: &B::Stream,
    old: &B::Memory<T>,
    kept: usize,
    capacity: usize,
) -> Result<B::Memory<T>, DeviceError> {
    let mut memory = backend.allocate(stream, capacity)?;
    backend.copy(stream, old, &mut memory, 0, kept)?;
    Ok(memory)
}

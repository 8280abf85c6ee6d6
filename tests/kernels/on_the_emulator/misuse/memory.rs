//! Memory of operands that a test can shorten, misalign or move to another emulator.

use flexdraft::runtime::{Element, View, ViewMut};

use super::Host;

/// Elements of any type, stored as bytes so that they can start at any address.
pub struct Memory {
    bytes: Vec<u8>,
    /// Size of an element in bytes.
    size: usize,
    first: usize,
    len: usize,
    elsewhere: bool,
}

/// The alignment in bytes that every operand has until a test shifts it.
const ALIGNMENT: usize = 16;

impl Memory {
    /// Returns memory with `len` elements, all zero.
    pub fn zeros<T: Element>(len: usize) -> Self {
        let size = size_of::<T>();
        let bytes = vec![0u8; len * size + 2 * ALIGNMENT];
        let first = bytes.as_ptr().align_offset(ALIGNMENT);
        Memory { bytes, size, first, len, elsewhere: false }
    }

    pub fn of<T: Element>(values: &[T]) -> Self {
        let mut memory = Memory::zeros::<T>(values.len());
        let bytes: &[u8] = bytemuck::cast_slice(values);
        memory.bytes[memory.first..][..bytes.len()].copy_from_slice(bytes);
        memory
    }

    pub fn len(&self) -> usize {
        self.len
    }

    pub fn shorten(&mut self, by: usize) {
        self.len -= by;
    }

    /// Moves the start of the operand by a number of bytes.
    pub fn shift(&mut self, bytes: usize) {
        assert!((1..=ALIGNMENT).contains(&bytes));
        self.first += bytes;
    }

    pub fn elsewhere(&mut self) {
        self.elsewhere = true;
    }

    fn range(&self) -> std::ops::Range<usize> {
        self.first..self.first + self.len * self.size
    }

    pub fn view<'a, T: Element>(&'a self, host: &Host) -> View<'a, T> {
        let stream = if self.elsewhere { host.elsewhere } else { host.stream };
        stream.view(&self.bytes[self.range()]).cast().unwrap()
    }

    pub fn view_mut<'a, T: Element>(&'a mut self, host: &Host) -> ViewMut<'a, T> {
        let stream = if self.elsewhere { host.elsewhere } else { host.stream };
        let range = self.range();
        stream.view_mut(&mut self.bytes[range]).cast().unwrap()
    }
}

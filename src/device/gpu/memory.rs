//! Device memory that grows on demand.

use crate::device::DeviceError;
use crate::runtime::{Element, Runtime};

/// Allocates `len` elements, which are zero at first. An error names the purpose, `what`.
pub(super) fn allocate<R: Runtime, T: Element>(
    (runtime, stream): (&R, &R::Stream),
    len: usize,
    what: &'static str,
) -> Result<R::Memory<T>, DeviceError> {
    runtime.allocate(stream, len).map_err(|error| {
        let error = DeviceError::from(error);
        let bytes = len.saturating_mul(size_of::<T>());
        if error.is_out_of_memory() { DeviceError::OutOfMemory { what, bytes } } else { error }
    })
}

/// Device memory that grows on demand: by a quarter or more, so that a series of slightly larger requests
/// allocates only a few times. Growing loses the contents.
#[derive(Debug)]
pub(super) struct GrowableMemory<R: Runtime, T: Element> {
    memory: Option<R::Memory<T>>,
    len: usize,
}

impl<R: Runtime, T: Element> Default for GrowableMemory<R, T> {
    fn default() -> Self {
        GrowableMemory { memory: None, len: 0 }
    }
}

impl<R: Runtime, T: Element> GrowableMemory<R, T> {
    /// Returns the memory, if some was allocated.
    pub(super) fn memory(&self) -> Option<&R::Memory<T>> {
        self.memory.as_ref()
    }

    /// Returns memory of at least `len` elements: the present memory if it is large enough.
    pub(super) fn reserve(
        &mut self,
        queue: (&R, &R::Stream),
        len: usize,
    ) -> Result<&mut R::Memory<T>, DeviceError> {
        let memory = match self.memory.take() {
            Some(memory) if len <= self.len => memory,
            old => {
                // The old memory is freed first, so that old and new memory never exist together.
                drop(old);
                let grown = len.max(self.len.saturating_add(self.len / 4)).max(64);
                self.len = 0;
                let memory = allocate(queue, grown, "scratch")?;
                self.len = grown;
                memory
            }
        };
        Ok(self.memory.insert(memory))
    }
}

#[cfg(all(test, feature = "simt"))]
mod tests {
    use super::*;
    use crate::runtime::{Simt, SimtOptions};

    #[test]
    fn memory_grows_by_a_quarter_or_to_what_is_asked_for() {
        let simt = Simt::new(SimtOptions::default());
        let stream = simt.stream();
        let mut memory = GrowableMemory::<Simt, f32>::default();
        for (asked, expected) in [(1, 64), (1000, 1000), (1001, 1250), (1250, 1250), (10, 1250), (3000, 3000)]
        {
            memory.reserve((&simt, &stream), asked).unwrap();
            assert_eq!(memory.memory().map(|memory| memory.len()), Some(expected), "{asked} elements");
        }
        // A failed allocation leaves nothing of the old memory. A smaller request may then succeed.
        let error = memory.reserve((&simt, &stream), usize::MAX / 8).unwrap_err();
        assert!(error.is_out_of_memory(), "{error}");
        assert!(memory.memory().is_none());
        memory.reserve((&simt, &stream), 100).unwrap();
        assert_eq!(memory.memory().map(|memory| memory.len()), Some(100));
    }
}

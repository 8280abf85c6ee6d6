//! The machine that every benchmark case gets: the kernels of a runtime, a stream, and memory for operands.

use flexdraft::kernels::Kernels;
use flexdraft::runtime::{Element, Runtime, RuntimeError};
use half::bf16;

/// The kernels of a runtime, with the stream on which the cases launch them.
pub struct Machine<R: Runtime> {
    pub kernels: Kernels<R>,
    pub stream: R::Stream,
}

/// Number of distinct random values in a tensor; a larger tensor repeats the values.
const DISTINCT: usize = 1 << 20;

impl<R: Runtime> Machine<R> {
    pub fn memory<T: Element>(&self, host: &[T]) -> Result<R::Memory<T>, RuntimeError> {
        let runtime = self.kernels.runtime();
        let mut memory = runtime.allocate(&self.stream, host.len())?;
        runtime.upload(&self.stream, host, &mut memory, 0)?;
        Ok(memory)
    }

    pub fn zeros<T: Element>(&self, len: usize) -> Result<R::Memory<T>, RuntimeError> {
        self.kernels.runtime().allocate(&self.stream, len)
    }

    /// Returns memory filled with uniform random numbers in −2..2.
    pub fn noise<T: Element>(
        &self,
        seed: u64,
        len: usize,
        convert: fn(f32) -> T,
    ) -> Result<R::Memory<T>, RuntimeError> {
        let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        let mut next = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            convert((state >> 40) as f32 / (1u32 << 22) as f32 - 2.0)
        };
        let block: Vec<T> = (0..len.min(DISTINCT)).map(|_| next()).collect();
        let runtime = self.kernels.runtime();
        let mut memory = runtime.allocate(&self.stream, len)?;
        for first in (0..len).step_by(DISTINCT) {
            runtime.upload(&self.stream, &block[..DISTINCT.min(len - first)], &mut memory, first)?;
        }
        Ok(memory)
    }

    pub fn bf16_noise(&self, seed: u64, len: usize) -> Result<R::Memory<bf16>, RuntimeError> {
        self.noise(seed, len, bf16::from_f32)
    }

    pub fn f32_noise(&self, seed: u64, len: usize) -> Result<R::Memory<f32>, RuntimeError> {
        self.noise(seed, len, |x| x)
    }
}

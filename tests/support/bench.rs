//! The kernels on a runtime, with a stream and memory for the operands of one test.

use flexdraft::kernels::Kernels;
use flexdraft::runtime::{Element, Runtime, Simt, SimtOptions, View, ViewMut};

/// The kernels on a runtime, and a stream for a test's launches.
pub struct Bench<R: Runtime> {
    pub kernels: Kernels<R>,
    pub stream: R::Stream,
}

/// An operand in the memory of a runtime. It may have no elements, which memory of a GPU cannot.
#[derive(Debug)]
pub struct Operand<R: Runtime, T: Element> {
    pub memory: R::Memory<T>,
    len: usize,
}

impl<R: Runtime, T: Element> Operand<R, T> {
    /// Makes an operand of the first `len` elements of `memory`.
    pub fn new(memory: R::Memory<T>, len: usize) -> Self {
        Operand { memory, len }
    }

    /// Returns the number of elements of the operand.
    pub fn len(&self) -> usize {
        self.len
    }
}

impl<R: Runtime> Bench<R> {
    pub fn runtime(&self) -> &R {
        self.kernels.runtime()
    }

    /// Returns an operand with the given contents.
    pub fn memory<T: Element>(&self, contents: &[T]) -> Operand<R, T> {
        let memory = self.runtime().allocate(&self.stream, contents.len().max(1)).unwrap();
        let mut operand = Operand { memory, len: contents.len() };
        self.write(contents, &mut operand, 0);
        operand
    }

    /// Writes `contents` to the operand's elements from `first` on.
    pub fn write<T: Element>(&self, contents: &[T], to: &mut Operand<R, T>, first: usize) {
        self.runtime().upload(&self.stream, contents, &mut to.memory, first).unwrap();
    }

    /// Returns the contents of an operand, after all earlier launches have run.
    pub fn host<T: Element>(&self, operand: &Operand<R, T>) -> Vec<T> {
        let mut contents = vec![T::zeroed(); operand.len];
        self.runtime().download(&self.stream, &operand.memory, 0, &mut contents).unwrap();
        contents
    }

    pub fn view<'a, T: Element>(&'a self, operand: &'a Operand<R, T>) -> View<'a, T> {
        self.runtime().view(&self.stream, &operand.memory).range(0..operand.len).unwrap()
    }

    pub fn view_mut<'a, T: Element>(&'a self, operand: &'a mut Operand<R, T>) -> ViewMut<'a, T> {
        self.runtime().view_mut(&self.stream, &mut operand.memory).range(0..operand.len).unwrap()
    }
}

impl Bench<Simt> {
    /// Returns the kernels on the SIMT emulator.
    pub fn emulator(options: SimtOptions) -> Self {
        let kernels = Kernels::new(Simt::new(options));
        let stream = kernels.runtime().stream();
        Bench { kernels, stream }
    }
}

//! The processors that the tests of the kernels run on: the SIMT emulator always, and a GPU if the machine has one.

use flexdraft::kernels::Kernels;
use flexdraft::runtime::simt::{Checking, Copies};
use flexdraft::runtime::{Element, Limits, RawCuda, RawStream, Runtime, Simt, SimtOptions};

use crate::any_runtime::{AnyMemory, AnyRuntime, AnyStream, Chosen};
use crate::support;
use crate::support::gpu::gpu;
use crate::support::simt_variant::checking;

/// The kernels on a chosen processor, with a stream.
pub type Bench = support::bench::Bench<AnyRuntime>;
/// An operand in the memory of a chosen processor.
pub type Operand<T> = support::bench::Operand<AnyRuntime, T>;

/// A processor that runs kernels, and the runtime that reaches it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Processor {
    Emulator,
    Gpu,
    /// The GPU, on a stream that is given by its address, as another framework's stream is.
    RawGpu,
}

/// Returns the processors that every test runs on: the emulator, and the GPU if there is one. Each is printed, so that
/// the output of a failed test ends with the processor that it failed on.
pub fn processors() -> impl Iterator<Item = Processor> {
    printed([Processor::Emulator].into_iter().chain(the_gpu()))
}

/// Returns the processors for a case with the shapes of a real model, which takes the emulator minutes: the GPU if there is
/// one, and the emulator in a rehearsal of a run on a GPU (`FLEXDRAFT_REHEARSE`, `benches/gpu/rehearse.sh`).
pub fn processors_of_large_cases() -> impl Iterator<Item = Processor> {
    let rehearsal = std::env::var_os("FLEXDRAFT_REHEARSE").map(|_| Processor::Emulator);
    printed(rehearsal.into_iter().chain(the_gpu()))
}

/// Returns the processors for a case that the emulator cannot run in a sensible time: the GPU, if there is one.
pub fn the_gpu() -> impl Iterator<Item = Processor> {
    // The iterator looks for a GPU only when it gets here, so the GPU is loaded after the emulator has run the test.
    std::iter::once_with(|| gpu().map(|_| Processor::Gpu)).flatten()
}

fn printed(processors: impl Iterator<Item = Processor>) -> impl Iterator<Item = Processor> {
    processors.inspect(|processor| println!("processor: {processor:?}"))
}

impl Bench {
    /// Returns the kernels on a processor. The options are the emulator's.
    pub fn on(processor: Processor, options: SimtOptions) -> Self {
        Self::limited(processor, options, |limits| limits)
    }

    /// Returns the kernels on a processor whose limits are changed, but never to more shared memory than the processor
    /// has.
    pub fn limited(
        processor: Processor,
        options: SimtOptions,
        change: impl FnOnce(Limits) -> Limits,
    ) -> Self {
        let (runtime, stream, limits) = match processor {
            Processor::Emulator => {
                let simt = Simt::new(options);
                let (stream, limits) = (simt.stream(), simt.limits());
                (Chosen::Emulator(simt), AnyStream::Emulator(stream), limits)
            }
            Processor::Gpu => {
                let gpu = gpu().unwrap();
                let stream = gpu.context.new_stream().unwrap();
                (Chosen::Gpu(gpu.cuda.clone()), AnyStream::Gpu(stream), gpu.cuda.limits())
            }
            Processor::RawGpu => {
                let gpu = gpu().unwrap();
                let context = &gpu.context;
                let (cuda, owner) = (RawCuda::new(context).unwrap(), context.new_stream().unwrap());
                // SAFETY: the stream belongs to this context. Its owner is kept beside it, and tests drop memory before
                // the bench.
                let stream = unsafe { RawStream::new(context, owner.cu_stream() as u64) };
                let limits = cuda.limits();
                (Chosen::RawGpu(cuda), AnyStream::RawGpu(stream, owner), limits)
            }
        };
        let changed = change(limits);
        let limits = Limits {
            shared_bytes_per_cta: changed.shared_bytes_per_cta.min(limits.shared_bytes_per_cta),
            ..changed
        };
        Bench { kernels: Kernels::new(AnyRuntime { runtime, limits }), stream }
    }

    /// Returns an operand of zeros for a test that touches few of its elements, or `None` if the processor lacks the
    /// memory. On the emulator, memory that no access touches takes no space.
    pub fn untouched<T: Element>(&self, len: usize) -> Option<Operand<T>> {
        let memory = match self.emulator() {
            Some(_) => AnyMemory::Emulator(bytemuck::allocation::try_zeroed_vec(len).ok()?),
            None => self.runtime().allocate(&self.stream, len).ok()?,
        };
        Some(Operand::new(memory, len))
    }

    /// Returns the emulator, or `None` if the kernels run on a GPU.
    pub fn emulator(&self) -> Option<&Simt> {
        match &self.runtime().runtime {
            Chosen::Emulator(simt) => Some(simt),
            Chosen::Gpu(_) | Chosen::RawGpu(_) => None,
        }
    }
}

/// Runs a computation on the emulator in two variants, and, if there is a GPU, on it over cudarc's streams and over streams
/// given by their addresses. `same` compares the results of two of them.
pub fn runtimes_agree<T>(run: impl Fn(&Bench) -> T, same: impl Fn(&T, &T)) {
    let usual = SimtOptions { checking: checking(Checking::Off), ..SimtOptions::default() };
    let expected = run(&Bench::on(Processor::Emulator, usual));
    let other = SimtOptions { copies: Copies::Late, schedule: 3, ..usual };
    same(&expected, &run(&Bench::on(Processor::Emulator, other)));
    for processor in the_gpu() {
        let found = run(&Bench::on(processor, usual));
        same(&expected, &found);
        same(&found, &run(&Bench::on(Processor::RawGpu, usual)));
    }
}

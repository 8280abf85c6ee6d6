//! Where the tests' kernels run.

use std::cell::RefCell;
use std::io::Write;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use cudarc::driver::CudaContext;
use flexdraft::backend::{Backend, BackendError, Cuda, Element, Foreign, ForeignStream, Simt, SimtOptions};
use flexdraft::kernels::Kernels;

pub use crate::support::noise::{halves, noise};

/// Kernels somewhere, and the memory of one test on it.
pub struct Bench<B: Backend> {
    pub kernels: Kernels<B>,
    pub stream: B::Stream,
}

impl<B: Backend> Bench<B> {
    pub fn memory<T: Element>(&self, host: &[T]) -> B::Memory<T> {
        let backend = self.kernels.backend();
        let mut memory = backend.allocate(&self.stream, host.len()).unwrap();
        backend.upload(&self.stream, host, &mut memory, 0).unwrap();
        memory
    }

    pub fn host<T: Element>(&self, memory: &B::Memory<T>, len: usize) -> Vec<T> {
        let mut host = vec![T::zeroed(); len];
        self.kernels.backend().download(&self.stream, memory, 0, &mut host).unwrap();
        host
    }
}

/// The SIMT host.
pub fn simt(options: SimtOptions) -> Bench<Simt> {
    let kernels = Kernels::new(Simt::new(options));
    let stream = kernels.backend().stream();
    Bench { kernels, stream }
}

/// Held by the test whose turn the GPU is: another test that waits for the whole context would break the capture of
/// one.
static TURN: Mutex<()> = Mutex::new(());

thread_local! {
    /// The turn of this thread's test, until the thread ends.
    static MINE: RefCell<Option<MutexGuard<'static, ()>>> = const { RefCell::new(None) };
}

/// A GPU, if there is one. It is this test's alone from here on.
pub fn cuda() -> Option<Bench<Cuda>> {
    /// Keeps the primary context from being made anew by each test.
    static KEPT: OnceLock<Option<Arc<CudaContext>>> = OnceLock::new();
    MINE.with_borrow_mut(|mine| {
        mine.get_or_insert_with(|| TURN.lock().unwrap_or_else(PoisonError::into_inner));
    });
    KEPT.get_or_init(|| Cuda::context(0).ok());
    let found = Cuda::context(0).and_then(|context| {
        let stream = context.new_stream().map_err(|error| BackendError::Driver(error.to_string()))?;
        Ok(Bench { kernels: Kernels::load(&context)?, stream })
    });
    match found {
        Ok(bench) => Some(bench),
        Err(error) => {
            assert!(std::env::var_os("FLEXDRAFT_REQUIRE_GPU").is_none(), "{error}");
            // Past the test harness, which shows the output of failed tests only.
            let _ = writeln!(std::io::stderr(), "\n*** SKIPPED on a GPU: {error} ***");
            None
        }
    }
}

/// The same GPU and stream, as another framework gives them.
pub fn foreign(gpu: &Bench<Cuda>) -> Bench<Foreign> {
    let context = gpu.stream.context();
    let kernels = Kernels::new(Foreign::new(context).unwrap());
    // SAFETY: a stream of this context, which the caller keeps for longer.
    let stream = unsafe { ForeignStream::new(context, gpu.stream.cu_stream() as u64) };
    Bench { kernels, stream }
}

//! The runtimes that the tests run kernels on.

use std::cell::RefCell;
use std::io::Write;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use cudarc::driver::CudaContext;
use flexdraft::kernels::Kernels;
use flexdraft::runtime::{Cuda, Element, RawCuda, RawStream, Runtime, RuntimeError, Simt, SimtOptions};

pub use crate::support::noise::{halves, noise};

/// The kernels of a runtime, with the stream and memory of one test.
pub struct Bench<B: Runtime> {
    pub kernels: Kernels<B>,
    pub stream: B::Stream,
}

impl<B: Runtime> Bench<B> {
    pub fn memory<T: Element>(&self, host: &[T]) -> B::Memory<T> {
        let runtime = self.kernels.runtime();
        let mut memory = runtime.allocate(&self.stream, host.len()).unwrap();
        runtime.upload(&self.stream, host, &mut memory, 0).unwrap();
        memory
    }

    pub fn host<T: Element>(&self, memory: &B::Memory<T>, len: usize) -> Vec<T> {
        let mut host = vec![T::zeroed(); len];
        self.kernels.runtime().download(&self.stream, memory, 0, &mut host).unwrap();
        host
    }
}

/// Returns the kernels on the SIMT emulator.
pub fn simt(options: SimtOptions) -> Bench<Simt> {
    let kernels = Kernels::new(Simt::new(options));
    let stream = kernels.runtime().stream();
    Bench { kernels, stream }
}

/// Lock for the GPU. If another test waited for the whole context, it would break this test's graph capture.
static TURN: Mutex<()> = Mutex::new(());

thread_local! {
    /// The lock held by this thread's test, until the thread ends.
    static MINE: RefCell<Option<MutexGuard<'static, ()>>> = const { RefCell::new(None) };
}

/// Returns the kernels on a GPU, if there is one, and locks the GPU for this test.
pub fn cuda() -> Option<Bench<Cuda>> {
    /// Keeps the primary context alive, so that each test does not create it anew.
    static KEPT: OnceLock<Option<Arc<CudaContext>>> = OnceLock::new();
    MINE.with_borrow_mut(|mine| {
        mine.get_or_insert_with(|| TURN.lock().unwrap_or_else(PoisonError::into_inner));
    });
    KEPT.get_or_init(|| Cuda::context(0).ok());
    let found = Cuda::context(0).and_then(|context| {
        let stream = context.new_stream().map_err(|error| RuntimeError::Driver(error.to_string()))?;
        Ok(Bench { kernels: Kernels::load(&context)?, stream })
    });
    match found {
        Ok(bench) => Some(bench),
        Err(error) => {
            assert!(std::env::var_os("FLEXDRAFT_REQUIRE_GPU").is_none(), "{error}");
            // Written to stderr directly, because the test harness shows the output of failed tests only.
            let _ = writeln!(std::io::stderr(), "\n*** SKIPPED on a GPU: {error} ***");
            None
        }
    }
}

/// Returns the kernels on the same GPU and stream, obtained as from another framework.
pub fn foreign(gpu: &Bench<Cuda>) -> Bench<RawCuda> {
    let context = gpu.stream.context();
    let kernels = Kernels::new(RawCuda::new(context).unwrap());
    // SAFETY: the stream belongs to this context, and the caller keeps it for longer.
    let stream = unsafe { RawStream::new(context, gpu.stream.cu_stream() as u64) };
    Bench { kernels, stream }
}

//! The GPU that tests run on, if the machine has one.

use std::cell::RefCell;
use std::io::Write;
use std::sync::{Arc, Mutex, OnceLock, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard, Weak};

use cudarc::driver::CudaContext;
use flexdraft::runtime::{Cuda, RuntimeError};

/// A GPU with the kernels of this build.
pub struct Gpu {
    pub context: Arc<CudaContext>,
    pub cuda: Arc<Cuda>,
}

impl Gpu {
    /// Returns the GPU that another test's thread holds, or loads the kernels if no thread holds it. The context stays
    /// until the process ends, so that each test does not create it anew.
    fn load() -> Result<Arc<Self>, RuntimeError> {
        static CONTEXT: OnceLock<Result<Arc<CudaContext>, RuntimeError>> = OnceLock::new();
        static LOADED: Mutex<Weak<Gpu>> = Mutex::new(Weak::new());
        let mut loaded = LOADED.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(gpu) = loaded.upgrade() {
            return Ok(gpu);
        }
        let context = CONTEXT.get_or_init(|| {
            let context = Cuda::context(0)?;
            // SAFETY: each test uses its memory on one stream, which orders all uses of the memory. The events that
            // cudarc would record for other streams cannot be waited for in a capture.
            unsafe { context.disable_event_tracking() };
            Ok(context)
        });
        let context = context.clone()?;
        let gpu = Arc::new(Gpu { cuda: Arc::new(Cuda::new(&context)?), context });
        *loaded = Arc::downgrade(&gpu);
        Ok(gpu)
    }
}

/// Returns the first GPU, which the test's thread then holds until it ends. Without a GPU, or if the build has no device
/// code, writes a message once and returns `None`; `FLEXDRAFT_REQUIRE_GPU=1` makes this a failure.
pub fn gpu() -> Option<Arc<Gpu>> {
    if let Some(gpu) = HELD.with_borrow(|held| held.as_ref().and_then(|held| held.gpu.clone())) {
        return Some(gpu);
    }
    static MISSING: OnceLock<RuntimeError> = OnceLock::new();
    let found = match MISSING.get() {
        Some(error) => Err(error.clone()),
        None => Gpu::load(),
    };
    match found {
        Ok(gpu) => {
            hold(|| Turn::Shared(CAPTURES.read().unwrap_or_else(PoisonError::into_inner)), Some(gpu.clone()));
            Some(gpu)
        }
        Err(error) => {
            assert!(std::env::var_os("FLEXDRAFT_REQUIRE_GPU").is_none(), "{error}");
            if MISSING.set(error.clone()).is_ok() {
                // The message goes to stderr directly, because the test harness shows the output of failed tests only.
                let _ = writeln!(std::io::stderr(), "\n*** SKIPPED on a GPU: {error} ***");
            }
            None
        }
    }
}

/// Returns the first GPU as [`gpu`] does, for a test that captures a graph: other tests use the GPU before or after this
/// test, because a test that waits for the whole context would end the capture. Call it before any other use of the GPU.
pub fn gpu_for_a_capture() -> Option<Arc<Gpu>> {
    hold(|| Turn::Exclusive(CAPTURES.write().unwrap_or_else(PoisonError::into_inner)), None);
    gpu()
}

/// The lock of the GPU: shared by all tests, and exclusive for a test that captures a graph.
static CAPTURES: RwLock<()> = RwLock::new(());

#[allow(dead_code)] // The guards are held, not read.
enum Turn {
    Shared(RwLockReadGuard<'static, ()>),
    Exclusive(RwLockWriteGuard<'static, ()>),
}

/// The GPU and the lock that a test's thread holds. The GPU is released before the lock, because unloading waits for
/// the whole context.
struct Held {
    gpu: Option<Arc<Gpu>>,
    #[allow(dead_code)]
    turn: Turn,
}

thread_local! {
    /// The GPU and the lock that this test's thread holds until the thread ends.
    static HELD: RefCell<Option<Held>> = const { RefCell::new(None) };
}

/// Makes the thread hold the GPU, and hold the lock unless the thread holds it already.
fn hold(turn: impl FnOnce() -> Turn, gpu: Option<Arc<Gpu>>) {
    HELD.with_borrow_mut(|held| {
        let held = held.get_or_insert_with(|| Held { gpu: None, turn: turn() });
        held.gpu = gpu.or(held.gpu.take());
    });
}

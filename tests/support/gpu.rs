//! The GPU that tests run on, if the machine has one.

use std::cell::RefCell;
use std::io::Write;
use std::sync::{Arc, OnceLock, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use cudarc::driver::CudaContext;
use flexdraft::runtime::{Cuda, RuntimeError};

/// A GPU with the kernels of this build.
pub struct Gpu {
    pub context: Arc<CudaContext>,
    pub cuda: Arc<Cuda>,
}

impl Gpu {
    fn load() -> Result<Self, RuntimeError> {
        let context = Cuda::context(0)?;
        // SAFETY: each test uses its memory on one stream, which orders all uses of the memory. The events that cudarc
        // would record for other streams cannot be waited for in a capture.
        unsafe { context.disable_event_tracking() };
        let cuda = Arc::new(Cuda::new(&context)?);
        Ok(Gpu { context, cuda })
    }
}

/// Returns the first GPU. Without a GPU, or if the build has no device code, writes a message once and returns `None`;
/// `FLEXDRAFT_REQUIRE_GPU=1` makes this a failure. The GPU stays loaded until the process ends.
pub fn gpu() -> Option<&'static Gpu> {
    static GPU: OnceLock<Result<Gpu, RuntimeError>> = OnceLock::new();
    let gpu = GPU.get_or_init(|| {
        let gpu = Gpu::load();
        if let Err(error) = &gpu {
            // Written to stderr directly, because the test harness shows the output of failed tests only.
            let _ = writeln!(std::io::stderr(), "\n*** SKIPPED on a GPU: {error} ***");
        }
        gpu
    });
    match gpu {
        Ok(gpu) => {
            TURN.with_borrow_mut(|turn| {
                turn.get_or_insert_with(|| {
                    Turn::Shared(CAPTURES.read().unwrap_or_else(PoisonError::into_inner))
                });
            });
            Some(gpu)
        }
        Err(error) => {
            assert!(std::env::var_os("FLEXDRAFT_REQUIRE_GPU").is_none(), "{error}");
            None
        }
    }
}

/// Returns the first GPU as [`gpu`] does, for a test that captures a graph: other tests use the GPU before or after this
/// test, because a test that waits for the whole context would end the capture. Call it before any other use of the GPU.
pub fn gpu_for_a_capture() -> Option<&'static Gpu> {
    TURN.with_borrow_mut(|turn| {
        turn.get_or_insert_with(|| Turn::Exclusive(CAPTURES.write().unwrap_or_else(PoisonError::into_inner)));
    });
    gpu()
}

/// The lock of the GPU: shared by all tests, and exclusive for a test that captures a graph.
static CAPTURES: RwLock<()> = RwLock::new(());

#[allow(dead_code)] // The guards are held, not read.
enum Turn {
    Shared(RwLockReadGuard<'static, ()>),
    Exclusive(RwLockWriteGuard<'static, ()>),
}

thread_local! {
    /// The lock held by the test of this thread, until the thread ends.
    static TURN: RefCell<Option<Turn>> = const { RefCell::new(None) };
}

//! The history of launches that may begin before earlier launches have ended (`cuda/simt/launch_order.h`).

use std::ptr::NonNull;

use super::ffi;

/// The writes and reads of launches since the last full barrier, for checks of their order.
#[derive(Debug)]
pub(super) struct LaunchOrder(NonNull<ffi::LaunchHistory>);

// SAFETY: the history belongs to this object, and C++ keeps nothing per thread between calls.
unsafe impl Send for LaunchOrder {}

impl LaunchOrder {
    /// Makes a history without launches. Returns `None` if there is no memory.
    pub(super) fn new() -> Option<Self> {
        // SAFETY: has no preconditions.
        NonNull::new(unsafe { ffi::flexdraft_simt_history_new() }).map(Self)
    }

    /// Returns the history, for a launch that ends before `self` is used again.
    pub(super) fn as_ptr(&mut self) -> *mut ffi::LaunchHistory {
        self.0.as_ptr()
    }

    /// Notes that all launches have ended.
    pub(super) fn barrier(&mut self) {
        // SAFETY: the history is alive, and nothing else uses it.
        unsafe { ffi::flexdraft_simt_history_barrier(self.0.as_ptr()) };
    }

    /// Adds a launch that the emulator does not run, which begins with a full barrier and uses these regions.
    pub(super) fn launch(&mut self, regions: &[ffi::CheckedRegion]) {
        // SAFETY: as in `barrier`; the regions live until the call returns, and their memory is not accessed.
        unsafe {
            ffi::flexdraft_simt_history_launch(self.0.as_ptr(), regions.as_ptr(), regions.len() as u64);
        }
    }
}

impl Drop for LaunchOrder {
    fn drop(&mut self) {
        // SAFETY: the history is freed once, and no launch uses it any more.
        unsafe { ffi::flexdraft_simt_history_free(self.0.as_ptr()) };
    }
}

//! Memory of the host through which a device's small copies go.

use super::cuda::PageLocked;

/// Host memory for [`upload_staged`](super::Runtime::upload_staged) and
/// [`download_staged`](super::Runtime::download_staged). It grows as needed. On CUDA it is page-locked, so the device
/// copies without a buffer of the driver in between.
#[derive(Debug, Default)]
pub struct Staging {
    pub(super) pageable: Vec<u64>,
    /// Two pieces of memory, because an upload may follow another one that has not run yet.
    pub(super) locked: [Option<PageLocked>; 2],
}

//! Measures the time of launches in a CUDA graph, which excludes the host's time per launch.

use std::sync::Arc;

use cudarc::driver::sys::{CUevent_flags, CUgraphInstantiate_flags, CUstreamCaptureMode};
use cudarc::driver::{CudaGraph, CudaStream};

use super::product::driver;
use crate::device::DeviceError;

/// Number of launches timed together.
pub(super) const LAUNCHES: usize = 20;

/// Returns the seconds of one of [`LAUNCHES`] launches on the stream; `launch` gets the index of each launch.
/// If the launches cannot be captured (the legacy default stream refuses a capture), they are timed as the
/// host makes them.
///
/// `launch` must not wait for the stream, allocate memory, or use events of cudarc's memory: a capture cannot
/// wait for an event recorded outside it, and an event recorded inside it cannot be used outside.
pub(super) fn seconds_each(
    stream: &Arc<CudaStream>,
    launch: &mut dyn FnMut(usize) -> Result<(), DeviceError>,
) -> Result<f32, DeviceError> {
    let graph = captured(stream, launch);
    let uploaded = graph.filter(|graph| graph.upload().is_ok());
    let start = stream.record_event(Some(CUevent_flags::CU_EVENT_DEFAULT)).map_err(driver)?;
    match &uploaded {
        Some(graph) => graph.launch().map_err(driver)?,
        None => (0..LAUNCHES).try_for_each(launch)?,
    }
    let end = stream.record_event(Some(CUevent_flags::CU_EVENT_DEFAULT)).map_err(driver)?;
    // `elapsed_ms` waits for both events, so that the graph is not destroyed while it runs.
    let milliseconds = start.elapsed_ms(&end).map_err(driver)?;
    Ok(milliseconds / 1e3 / LAUNCHES as f32)
}

/// Returns the launches as a graph, or `None` if they cannot be captured.
fn captured(
    stream: &Arc<CudaStream>,
    launch: &mut dyn FnMut(usize) -> Result<(), DeviceError>,
) -> Option<CudaGraph> {
    stream.begin_capture(CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL).ok()?;
    let launched = (0..LAUNCHES).try_for_each(launch);
    // The capture is ended even after an error; otherwise the stream would go on capturing.
    let graph = stream.end_capture(CUgraphInstantiate_flags(0));
    launched.ok()?;
    graph.ok()?
}

//! How long launches take: in a CUDA graph, so that the host's time for a launch is not counted.

use std::sync::Arc;

use cudarc::driver::sys::{CUevent_flags, CUgraphInstantiate_flags, CUstreamCaptureMode};
use cudarc::driver::{CudaGraph, CudaStream};

use super::product::driver;
use crate::device::DeviceError;

/// Launches that are timed together.
pub(super) const LAUNCHES: usize = 20;

/// Seconds of one of [`LAUNCHES`] launches on the stream; `launch` gets the index of each. Launches that cannot be
/// captured (the legacy default stream refuses a capture) are timed as the host makes them.
///
/// `launch` must not wait for the stream, allocate memory, or use events of cudarc's memory: in a capture, an event that
/// was recorded outside cannot be waited for, and one that is recorded inside cannot be used outside.
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
    // Waits for both events, so that the graph is not destroyed while it runs.
    let milliseconds = start.elapsed_ms(&end).map_err(driver)?;
    Ok(milliseconds / 1e3 / LAUNCHES as f32)
}

/// The launches as a graph, if they can be captured.
fn captured(
    stream: &Arc<CudaStream>,
    launch: &mut dyn FnMut(usize) -> Result<(), DeviceError>,
) -> Option<CudaGraph> {
    stream.begin_capture(CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL).ok()?;
    let launched = (0..LAUNCHES).try_for_each(launch);
    // Ends the capture in any case: the stream would stay in it.
    let graph = stream.end_capture(CUgraphInstantiate_flags(0));
    launched.ok()?;
    graph.ok()?
}

//! Stream captures: work that goes into a graph instead of a stream, and the calls that a capture refuses.

use std::collections::HashMap;
use std::sync::Arc;

use cudarc::driver::sys::{CUresult, CUstreamCaptureMode};

use crate::driver::Driver;
use crate::objects::{Capture, LEGACY, Stream};
use crate::refusal::{Outcome, refused};
use crate::work::Work;

const UNSUPPORTED: CUresult = CUresult::CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;

impl Driver {
    pub fn begin_capture(&mut self, handle: u64, mode: u32) -> Outcome {
        if self.stream(handle)?.capture.is_some() {
            return refused(CUresult::CUDA_ERROR_INVALID_VALUE, "the stream is captured already");
        }
        if handle == LEGACY {
            return refused(UNSUPPORTED, "the legacy stream cannot be captured");
        }
        if mode > CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_RELAXED as u32 {
            return refused(
                CUresult::CUDA_ERROR_INVALID_VALUE,
                format!("the capture mode is {mode}, expected 0, 1 or 2"),
            );
        }
        let id = self.next_handle();
        let capture = Capture {
            origin: handle,
            mode,
            thread: std::thread::current().id(),
            work: Vec::new(),
            streams: HashMap::from([(handle, [0; 2])]),
            invalid: false,
        };
        self.captures.insert(id, capture);
        self.streams.entry(handle).or_default().capture = Some(id);
        Ok(())
    }

    fn capture(&mut self, id: u64) -> Outcome<&mut Capture> {
        match self.captures.get_mut(&id) {
            Some(capture) if !capture.invalid => Ok(capture),
            _ => {
                refused(CUresult::CUDA_ERROR_STREAM_CAPTURE_INVALIDATED, "an earlier error ended the capture")
            }
        }
    }

    /// Appends work that was put on a captured stream to the capture's graph.
    pub fn record_work(&mut self, id: u64, stream: u64, work: Work) -> Outcome {
        let capture = self.capture(id)?;
        capture.work.push(work);
        capture.streams.entry(stream).or_default()[0] += 1;
        Ok(())
    }

    /// Returns the number of pieces of work that a stream has put into a capture.
    pub fn captured_work(&mut self, id: u64, stream: u64) -> Outcome<u64> {
        Ok(self.capture(id)?.streams.get(&stream).map_or(0, |[count, _]| *count))
    }

    /// Makes a stream wait for captured work of another stream, which takes the waiting stream into the capture.
    pub fn join(&mut self, id: u64, recorded_on: u64, count: u64, handle: u64) -> Outcome {
        if !self.captures.contains_key(&id) {
            let reason = "the event was recorded in a capture that has ended";
            return refused(CUresult::CUDA_ERROR_CAPTURED_EVENT, reason);
        }
        if handle == LEGACY {
            self.invalidate(id);
            return refused(
                CUresult::CUDA_ERROR_STREAM_CAPTURE_IMPLICIT,
                "the legacy stream cannot be captured",
            );
        }
        let capture = self.capture(id)?;
        capture.streams.entry(handle).or_default();
        if handle == capture.origin
            && let Some([_, joined]) = capture.streams.get_mut(&recorded_on)
        {
            *joined = count.max(*joined);
        }
        self.streams.entry(handle).or_default().capture = Some(id);
        Ok(())
    }

    /// Marks a capture as invalid after an error, so that it can only be ended.
    pub fn invalidate(&mut self, id: u64) {
        if let Some(capture) = self.captures.get_mut(&id) {
            capture.invalid = true;
        }
    }

    /// Ends the capture that began on a stream, and returns the captured work.
    pub fn end_capture(&mut self, handle: u64) -> Outcome<Arc<[Work]>> {
        let Some(id) = self.stream(handle)?.capture else {
            return refused(CUresult::CUDA_ERROR_INVALID_VALUE, "the stream is not captured");
        };
        let origin = self.captures.get(&id).map(|capture| capture.origin);
        if origin != Some(handle) {
            self.invalidate(id);
            let reason = "the capture began on another stream";
            return refused(CUresult::CUDA_ERROR_STREAM_CAPTURE_UNMATCHED, reason);
        }
        let relaxed = CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_RELAXED as u32;
        if let Some(capture) = self.captures.get(&id)
            && capture.mode != relaxed
            && capture.thread != std::thread::current().id()
        {
            self.invalidate(id);
            let reason = "the capture began in another thread";
            return refused(CUresult::CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD, reason);
        }
        self.streams
            .values_mut()
            .filter(|stream| stream.capture == Some(id))
            .for_each(|stream| stream.capture = None);
        let Some(capture) = self.captures.remove(&id) else { return Ok(Arc::new([])) };
        if capture.invalid {
            let reason = "an earlier error ended the capture";
            return refused(CUresult::CUDA_ERROR_STREAM_CAPTURE_INVALIDATED, reason);
        }
        let unjoined = |(&stream, [count, joined]): (&u64, &[u64; 2])| stream != handle && count != joined;
        if capture.streams.iter().any(unjoined) {
            let reason = "the stream that began the capture has not waited for another captured stream";
            return refused(CUresult::CUDA_ERROR_STREAM_CAPTURE_UNJOINED, reason);
        }
        Ok(capture.work.into())
    }

    /// Refuses a call that waits for a stream, or asks about it, while the stream is captured.
    pub fn refuse_captured(&mut self, handle: u64) -> Outcome {
        let Some(id) = self.stream(handle)?.capture else { return Ok(()) };
        self.invalidate(id);
        refused(UNSUPPORTED, "the stream is captured")
    }

    /// Refuses a call that a capture does not permit in its own thread, or in any thread, as the capture's mode says.
    pub fn refuse_in_capture(&mut self) -> Outcome {
        let thread = std::thread::current().id();
        let forbids = |capture: &&mut Capture| match capture.mode {
            0 => true,
            1 => capture.thread == thread,
            _ => false,
        };
        match self.captures.values_mut().find(forbids) {
            Some(capture) => {
                capture.invalid = true;
                refused(UNSUPPORTED, "a capture of this thread does not permit the call")
            }
            None => Ok(()),
        }
    }

    /// Refuses a call that waits for the whole context while any stream of the context is captured.
    pub fn refuse_in_any_capture(&mut self) -> Outcome {
        match self.captures.values_mut().next() {
            Some(capture) => {
                capture.invalid = true;
                refused(UNSUPPORTED, "a stream of the context is captured")
            }
            None => Ok(()),
        }
    }

    /// Refuses work on the legacy stream while a stream is captured that would wait for it.
    pub fn check_no_blocking_capture(&mut self, handle: u64) -> Outcome {
        let captured = |stream: &Stream| stream.capture.filter(|_| stream.blocking);
        let Some(id) = self.streams.values().find_map(captured).filter(|_| handle == LEGACY) else {
            return Ok(());
        };
        self.invalidate(id);
        refused(
            CUresult::CUDA_ERROR_STREAM_CAPTURE_IMPLICIT,
            "a captured stream would wait for the legacy stream",
        )
    }
}

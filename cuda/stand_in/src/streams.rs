//! Streams and events: the order in which work runs, as early or as late as a policy says.

use cudarc::driver::sys::CUresult;

use crate::driver::Driver;
use crate::objects::{LEGACY, Recorded};
use crate::policy::Streams;
use crate::refusal::{Outcome, refused};
use crate::work::Work;

impl Driver {
    /// Puts a piece of work on a stream, or into the stream's capture.
    pub fn enqueue(&mut self, handle: u64, work: Work) -> Outcome {
        let stream = self.stream(handle)?;
        if let Some(capture) = stream.capture {
            return self.record_work(capture, handle, work);
        }
        let blocking = stream.blocking;
        if handle == LEGACY || blocking {
            self.check_no_blocking_capture(handle)?;
            let others: Vec<(u64, u64)> = self
                .streams
                .iter()
                .filter(|&(&other, stream)| match handle {
                    LEGACY => other != LEGACY && stream.blocking,
                    _ => other == LEGACY,
                })
                .map(|(&other, stream)| (other, stream.issued))
                .collect();
            for (stream, count) in others {
                self.push(handle, Work::Wait { stream, count });
            }
        }
        self.push(handle, work);
        if self.policy.streams == Streams::Eager {
            self.finish_all_of(handle);
        }
        Ok(())
    }

    fn push(&mut self, handle: u64, work: Work) {
        if let Some(stream) = self.streams.get_mut(&handle) {
            stream.issued += 1;
            stream.waiting.push_back(work);
        }
    }

    /// Records an event on a stream.
    pub fn record(&mut self, event: u64, handle: u64) -> Outcome {
        self.event(event)?;
        if let Some(capture) = self.stream(handle)?.capture {
            let count = self.captured_work(capture, handle)?;
            self.event(event)?.recorded = Recorded::Captured { capture, stream: handle, count };
            return Ok(());
        }
        self.recordings += 1;
        let recording = self.recordings;
        // Until the event's work is enqueued, the event must not look reached.
        let found = self.event(event)?;
        found.time = None;
        found.recorded = Recorded::At { stream: handle, count: u64::MAX, recording };
        let before = self.stream(handle)?.issued;
        self.enqueue(handle, Work::Reached { event, recording })?;
        let issued = self.streams.get(&handle).map_or(before + 1, |stream| stream.issued);
        self.event(event)?.recorded = Recorded::At { stream: handle, count: issued, recording };
        Ok(())
    }

    /// Makes later work of a stream wait for an event.
    pub fn wait(&mut self, handle: u64, event: u64) -> Outcome {
        let recorded = self.event(event)?.recorded;
        let capture = self.stream(handle)?.capture;
        match (recorded, capture) {
            (Recorded::Never, _) => Ok(()),
            (Recorded::At { stream, count, .. }, None) => self.enqueue(handle, Work::Wait { stream, count }),
            (Recorded::Captured { capture, stream, count }, _) => self.join(capture, stream, count, handle),
            (Recorded::At { .. }, Some(capture)) => {
                self.invalidate(capture);
                let reason = "a captured stream cannot wait for an event recorded outside of the capture";
                refused(CUresult::CUDA_ERROR_STREAM_CAPTURE_ISOLATION, reason)
            }
        }
    }

    /// Returns whether the work before an event has run.
    pub fn is_reached(&mut self, event: u64) -> Outcome<bool> {
        match self.event(event)?.recorded {
            Recorded::Never => Ok(true),
            Recorded::At { stream, count, .. } => {
                Ok(self.streams.get(&stream).is_none_or(|stream| stream.finished >= count))
            }
            Recorded::Captured { .. } => {
                refused(CUresult::CUDA_ERROR_CAPTURED_EVENT, "the event was last recorded in a capture")
            }
        }
    }

    /// Runs the work before an event, as a call that waits for the event does.
    pub fn synchronize_event(&mut self, event: u64) -> Outcome {
        self.is_reached(event)?;
        if let Recorded::At { stream, count, .. } = self.event(event)?.recorded
            && let Err(refusal) = self.finish(stream, count)
        {
            self.sticky.get_or_insert(refusal.clone());
            return Err(refusal);
        }
        Ok(())
    }
}

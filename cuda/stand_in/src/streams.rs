//! Streams and events: the order in which work runs, as early or as late as a policy says.

use std::collections::VecDeque;

use cudarc::driver::sys::CUresult;

use crate::driver::Driver;
use crate::policy::Streams;
use crate::refusal::{Outcome, refused};
use crate::work::{self, Work};

/// The handle of the legacy default stream, null.
pub const LEGACY: u64 = 0;

#[derive(Debug, Default)]
pub struct Stream {
    /// Whether this stream and the legacy stream wait for each other.
    pub blocking: bool,
    /// Whether the stream was destroyed, so that its handle is invalid; the rest of its work still runs.
    pub destroyed: bool,
    pub waiting: VecDeque<Work>,
    /// The number of pieces of work that were put on the stream, and the number that have run.
    pub issued: u64,
    pub finished: u64,
    /// The capture that gets the stream's work, if the stream is captured.
    pub capture: Option<u64>,
}

/// The point of a stream at which an event was recorded.
#[derive(Clone, Copy, Debug)]
pub enum Recorded {
    Never,
    /// After the first `count` pieces of work of a stream.
    At {
        stream: u64,
        count: u64,
        recording: u64,
    },
    /// Inside a capture, after the first `count` pieces of a stream's captured work.
    Captured {
        capture: u64,
        stream: u64,
        count: u64,
    },
}

#[derive(Debug)]
pub struct Event {
    pub timed: bool,
    pub recorded: Recorded,
    /// The modelled time at which the stream reached the event, in microseconds.
    pub time: Option<f64>,
}

impl Driver {
    /// Returns a stream whose handle is valid.
    pub fn stream(&self, handle: u64) -> Outcome<&Stream> {
        match self.streams.get(&handle).filter(|stream| !stream.destroyed) {
            Some(stream) => Ok(stream),
            None => refused(
                CUresult::CUDA_ERROR_INVALID_HANDLE,
                format!("{handle:#x} is no stream, or was destroyed"),
            ),
        }
    }

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

    /// Runs all work that was put on a stream. An error of the work is an error of the context, and appears in later
    /// calls.
    pub fn finish_all_of(&mut self, handle: u64) {
        let issued = self.streams.get(&handle).map_or(0, |stream| stream.issued);
        if let Err(refusal) = self.finish(handle, issued)
            && self.sticky.is_none()
        {
            self.sticky = Some(refusal);
        }
    }

    /// Runs a stream's work until `count` pieces of it have run.
    pub fn finish(&mut self, handle: u64, count: u64) -> Outcome {
        loop {
            let Some(stream) = self.streams.get_mut(&handle).filter(|stream| stream.finished < count) else {
                return Ok(());
            };
            let Some(work) = stream.waiting.pop_front() else { return Ok(()) };
            let ran = work::run(self, &work);
            if let Some(stream) = self.streams.get_mut(&handle) {
                stream.finished += 1;
                if ran.is_err() {
                    // Nothing runs any more in a context with an error.
                    stream.finished = stream.issued;
                    stream.waiting.clear();
                }
            }
            ran?;
        }
    }

    /// Runs all work of all streams.
    pub fn finish_everything(&mut self) {
        let handles: Vec<u64> = self.streams.keys().copied().collect();
        handles.into_iter().for_each(|handle| self.finish_all_of(handle));
        self.streams.retain(|_, stream| !stream.destroyed || stream.finished < stream.issued);
    }

    pub fn event(&mut self, handle: u64) -> Outcome<&mut Event> {
        match self.events.get_mut(&handle) {
            Some(event) => Ok(event),
            None => refused(
                CUresult::CUDA_ERROR_INVALID_HANDLE,
                format!("{handle:#x} is no event, or was destroyed"),
            ),
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

    /// Notes that a stream reached an event.
    pub fn reached(&mut self, event: u64, now: u64) {
        let clock = self.clock;
        if let Some(event) = self.events.get_mut(&event)
            && matches!(event.recorded, Recorded::At { recording, .. } if recording == now)
        {
            event.time = Some(clock);
        }
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

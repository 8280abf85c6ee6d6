//! The state of streams, events and captures, which calls name by handles.

use std::collections::{HashMap, VecDeque};
use std::thread::ThreadId;

use crate::work::Work;

/// The handle of the legacy default stream, null.
pub const LEGACY: u64 = 0;

/// A stream, with the work that waits on it.
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

/// An event, with the point at which it was last recorded.
#[derive(Debug)]
pub struct Event {
    pub timed: bool,
    pub recorded: Recorded,
    /// The modelled time at which the stream reached the event, in microseconds.
    pub time: Option<f64>,
}

/// A capture of streams, with the work that will become a graph.
#[derive(Debug)]
pub struct Capture {
    pub origin: u64,
    pub mode: u32,
    pub thread: ThreadId,
    /// The captured work in the order of the calls, in which every replay runs it.
    pub work: Vec<Work>,
    /// For each captured stream, the number of its captured pieces of work, and how many of them the stream that began
    /// the capture has waited for.
    pub streams: HashMap<u64, [u64; 2]>,
    pub invalid: bool,
}

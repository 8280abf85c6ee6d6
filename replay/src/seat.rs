//! The sequences of a replay.

use crate::load::Kind;
use crate::recording::{Draft, Random, Recording};

/// The maximum number of cached positions with which a transcript of an endless sequence begins.
const LONGEST: usize = 4096;

/// A sequence of the replay.
#[derive(Clone, Debug)]
pub struct Seat<'a> {
    pub(crate) kind: Kind,
    pub(crate) number: u64,
    pub(crate) random: Random,
    pub(crate) transcript: &'a [Draft],
    /// Index of the transcript in the recording.
    pub(crate) place: usize,
    /// Index in the transcript of the draft that follows the newest token.
    pub(crate) at: usize,
    /// Whether the draft at `at` was made.
    pub(crate) drafted: bool,
    /// The draft whose tokens from the place on were not verified and may still be right, if no draft is pending.
    pub(crate) unverified: Option<(&'a Draft, usize)>,
    pub(crate) cached: usize,
    /// Tokens of the prompt that are still to be read.
    pub(crate) unread: usize,
    /// Tokens that the request still wants.
    pub(crate) wanted: usize,
    /// Steps until the next request takes the place, if no request has it.
    pub(crate) absent: usize,
}

impl<'a> Seat<'a> {
    /// Begins a transcript that is drawn at random. A sequence without end gets a drawn number of cached positions too.
    /// The number is the same for every policy, so that a fast policy does not pay for more positions.
    pub(crate) fn begin(&mut self, recording: &'a Recording, context: usize) {
        self.place = self.random.below(recording.transcripts.len());
        self.transcript = &recording.transcripts[self.place];
        (self.at, self.drafted, self.unverified) = (0, false, None);
        if self.wanted == usize::MAX {
            self.cached = context + self.random.below(LONGEST.saturating_sub(context).max(1));
        }
    }

    /// Returns the draft that is pending, if there is one.
    pub(crate) fn draft(&self) -> Option<&'a Draft> {
        self.transcript.get(self.at).filter(|_| self.drafted && self.unread == 0)
    }
}

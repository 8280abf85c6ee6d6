//! The slots that a frozen drafter drafts after fixed anchors of transcripts, computed once.

use std::sync::Arc;

use super::batch::{Batch, Pick};
use super::clean::Corpus;
use crate::chain::{ChainSlots, TRAINED_IDS};
use crate::drafter::Drafter;
use crate::error::{Result, TuneError};
use crate::shortlist::Shortlist;
use crate::target::FrozenTarget;
use crate::transcripts::Transcript;

/// Number of anchors in one pass of the frozen drafter.
const ANCHORS: usize = 64;

/// A drafter whose weights a run does not change.
pub(super) struct FrozenDrafter<'a> {
    pub target: &'a FrozenTarget,
    pub drafter: &'a Drafter,
    /// True if the chain's scores depend on the slots' hidden rows.
    pub keeps_hidden: bool,
}

/// Transcripts with fixed anchors, and the slots after these anchors as far as memory allows.
pub(super) struct KeptSlots {
    corpus: Corpus,
    anchors: Vec<Vec<usize>>,
    kept: Vec<Option<Arc<ChainSlots>>>,
    /// Number of 4-byte elements that may still be kept.
    room: usize,
}

impl KeptSlots {
    /// Creates the slots of transcripts after `anchors`, which are the anchors of each transcript; the slots that are kept
    /// take at most `gib` GiB.
    pub fn new(
        transcripts: Vec<Transcript>,
        anchors: Vec<Vec<usize>>,
        gib: f64,
        frozen: &FrozenDrafter<'_>,
    ) -> Self {
        let kept = vec![None; transcripts.len()];
        // All anchors of a transcript are computed at once, so its keys and values need not be kept.
        let corpus = Corpus::new(transcripts, frozen.drafter.tail_layers(), 0.0, frozen.target);
        let room = gib.max(0.0) * f64::from(1 << 30) / 4.0;
        Self { corpus, anchors, kept, room: room as usize }
    }

    /// Returns all transcripts, in the order in which they were given.
    pub fn transcripts(&self) -> &[Transcript] {
        self.corpus.transcripts()
    }

    /// Returns the anchors of a transcript; none for an index out of range.
    pub fn anchors(&self, transcript: usize) -> &[usize] {
        self.anchors.get(transcript).map_or(&[], Vec::as_slice)
    }

    /// Returns the slots after the anchors of a transcript.
    ///
    /// # Errors
    /// [`TuneError::Pick`] for an index out of range; candle's errors: out of memory.
    pub fn slots(&mut self, frozen: &FrozenDrafter<'_>, transcript: usize) -> Result<Arc<ChainSlots>> {
        if let Some(Some(kept)) = self.kept.get(transcript) {
            return Ok(kept.clone());
        }
        let FrozenDrafter { target, drafter, keeps_hidden } = *frozen;
        let shortlist = Shortlist::All(target.config().vocab_size);
        // The passes share the keys and values of the transcript's tokens.
        let prefixes = self.corpus.clean(target, transcript)?;
        let mut parts = Vec::new();
        for anchors in self.anchors(transcript).to_vec().chunks(ANCHORS) {
            let pick = Pick { transcript, anchors: anchors.to_vec() };
            let batch = Batch::of_clean(self.corpus.transcripts(), pick, prefixes.clone())?;
            let rows = batch.rows(drafter.block_size());
            let forward = drafter.forward(target, &rows)?;
            let (bonuses, count) = (&rows.bonuses, TRAINED_IDS);
            parts.push(ChainSlots::new(drafter, &forward, bonuses, &shortlist, count, keeps_hidden)?);
        }
        let no_anchor = || TuneError::Pick { transcript, reason: "it has no anchors".into() };
        let slots = Arc::new(ChainSlots::join(parts)?.ok_or_else(no_anchor)?);
        if let Some(place) = self.kept.get_mut(transcript).filter(|_| slots.elements() <= self.room) {
            self.room -= slots.elements();
            *place = Some(slots.clone());
        }
        Ok(slots)
    }
}

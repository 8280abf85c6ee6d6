//! Finds the acceptance length τ of a drafter without generating text, by walking along transcripts as greedy
//! decoding would. On a greedy transcript the target's tokens are known, so it is enough to draft at every
//! position and to walk from step to step as decoding would.

use std::ops::Range;

use flexdraft::decode::Confidence;
use serde::{Deserialize, Serialize};

use super::batch::{Batch, Pick};
use super::clean::Corpus;
use crate::calibration::Calibration;
use crate::chain::{ChainHeads, ChainSlots};
use crate::drafter::Drafter;
use crate::error::Result;
use crate::loss::{Prediction, predict};
use crate::shortlist::Shortlist;
use crate::target::FrozenTarget;
use crate::transcripts::Transcript;

/// Number of anchors (positions of a transcript at which a draft begins) in one pass.
const ANCHORS: usize = 64;

/// Counts of the decoding steps that a walk along transcripts takes.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Walk {
    /// Number of decoding steps.
    pub steps: usize,
    /// Number of tokens that the steps committed: accepted drafts, and the bonus tokens that are not beyond the end of
    /// their transcripts.
    pub tokens: usize,
    /// For slots 1, 2, …: how often the slot was verified with all slots before it accepted.
    pub reached: Vec<usize>,
    /// For slots 1, 2, …: how often the slot was accepted.
    pub accepted: Vec<usize>,
    /// The confidences of the drafts that were verified with all slots before them accepted.
    #[serde(skip)]
    pub calibration: Calibration,
}

impl Walk {
    /// Returns the acceptance length τ, the tokens per step, or `None` if there are no steps.
    pub fn tau(&self) -> Option<f64> {
        (self.steps > 0).then(|| self.tokens as f64 / self.steps as f64)
    }

    /// Adds the decoding steps along one transcript to the counts. `predictions` are the drafts of `slots` tokens after
    /// each of the [`drafted_positions`].
    pub fn take_transcript(
        &mut self,
        transcript: &Transcript,
        predictions: &[Prediction],
        slots: usize,
        confidence: &Confidence,
    ) {
        let first = drafted_positions(transcript).start;
        self.take(&transcript.tokens(), first, confidence, |anchor| {
            let first = (anchor - first) * slots;
            let block = predictions.get(first..first + slots)?;
            Some((block.iter().map(|p| p.token).collect(), block.iter().map(|p| p.confidence).collect()))
        });
    }

    /// Adds the decoding steps along one transcript to the counts. `draft` returns the tokens and confidences
    /// of slots 1..S after an anchor. The last step commits the tokens up to the end of the transcript.
    fn take(
        &mut self,
        tokens: &[u32],
        first_anchor: usize,
        confidence: &Confidence,
        draft: impl Fn(usize) -> Option<(Vec<u32>, Vec<f32>)>,
    ) {
        let mut anchor = first_anchor;
        // Decoding ends when the newest token, at n = anchor + 1, is the last one.
        while anchor + 2 < tokens.len()
            && let Some((draft, confidences)) = draft(anchor)
        {
            let n = anchor + 1;
            let left = tokens.len() - 1 - n;
            // The tokens after the end of the transcript are unknown.
            let verify_len = confidence.verify_len(&confidences).min(left);
            let matches = |&(j, &token): &(usize, &u32)| tokens.get(n + 1 + j) == Some(&token);
            let accepted = draft[..verify_len].iter().enumerate().take_while(matches).count();
            self.steps += 1;
            self.tokens += (accepted + 1).min(left);
            for slots in [&mut self.reached, &mut self.accepted] {
                slots.resize(slots.len().max(draft.len()), 0);
            }
            self.reached[..verify_len.min(accepted + 1)].iter_mut().for_each(|count| *count += 1);
            self.accepted[..accepted].iter_mut().for_each(|count| *count += 1);
            let reached = confidences.iter().take(verify_len.min(accepted + 1)).enumerate();
            reached.for_each(|(slot, &confidence)| self.calibration.add(confidence, slot < accepted));
            anchor = n + accepted;
        }
    }
}

/// A drafter, and what its drafts depend on.
#[derive(Clone, Copy, Debug)]
pub struct Drafting<'a> {
    /// The drafter's target.
    pub target: &'a FrozenTarget,
    /// The drafter.
    pub drafter: &'a Drafter,
    /// The chain of the drafter's slots; `None` if slots are drawn independently.
    pub chain: Option<&'a ChainHeads>,
    /// The ids that may be drafted.
    pub shortlist: &'a Shortlist,
}

impl Drafting<'_> {
    /// Returns the greedy drafts after each anchor of a batch, slot by slot. Their tokens are token ids.
    ///
    /// # Errors
    /// Candle's errors: out of memory.
    pub fn draft(&self, batch: &Batch) -> Result<Vec<Prediction>> {
        let Self { target, drafter, chain, shortlist } = *self;
        let rows = batch.rows(drafter.block_size());
        let slots = drafter.forward(target, &rows)?;
        if let Some(chain) = chain {
            let top_k = chain.config().top_k;
            let slots = ChainSlots::new(drafter, &slots, &rows.bonuses, shortlist, top_k, true)?;
            return Ok(chain.draft(target, &slots)?);
        }
        let (head, calibration) = drafter.factors(&slots);
        let factors: Vec<_> = std::iter::once(head).chain(calibration).collect();
        let mut predictions = predict(&factors)?;
        predictions.iter_mut().for_each(|prediction| prediction.token = shortlist.id(prediction.token));
        Ok(predictions)
    }
}

/// Returns the positions of a transcript after which decoding may draft: from the last token of the prompt to the token
/// before the last one, which is the last one's bonus token.
pub fn drafted_positions(transcript: &Transcript) -> Range<usize> {
    transcript.prompt.len().saturating_sub(1)..transcript.len().saturating_sub(1)
}

/// Counts the decoding steps along the first `count` transcripts, which must be greedy transcripts of the
/// target.
///
/// # Errors
/// Candle's errors: out of memory.
pub fn walk(
    drafting: Drafting<'_>,
    corpus: &mut Corpus,
    count: usize,
    confidence: &Confidence,
) -> Result<Walk> {
    let mut walk = Walk::default();
    let slots = drafting.drafter.block_size() - 1;
    for transcript in 0..count.min(corpus.transcripts().len()) {
        let positions = drafted_positions(&corpus.transcripts()[transcript]);
        let mut predictions: Vec<Prediction> = Vec::new();
        for start in positions.clone().step_by(ANCHORS) {
            let anchors = (start..(start + ANCHORS).min(positions.end)).collect();
            let batch = Batch::new(corpus, drafting.target, vec![Pick { transcript, anchors }])?;
            predictions.extend(drafting.draft(&batch)?);
        }
        walk.take_transcript(&corpus.transcripts()[transcript], &predictions, slots, confidence);
    }
    Ok(walk)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_walk_steps_as_decoding_does() {
        // The drafter drafts from every anchor; it is right about every token below 5 and wrong about the others.
        let tokens = [9, 1, 2, 3, 7, 4, 1, 1, 8];
        let draft = |anchor: usize| {
            let known = |j: usize| tokens.get(anchor + 2 + j).copied().filter(|&t| t < 5).unwrap_or(6);
            (anchor + 1 < tokens.len()).then(|| ((0..3).map(known).collect(), vec![1.0; 3]))
        };
        let mut walk = Walk::default();
        walk.take(&tokens, 0, &Confidence::default(), draft);
        // After bonus 1, the drafts 2 and 3 are accepted and 7 is the bonus; then 4, 1, 1 are accepted and 8 is the
        // bonus.
        assert_eq!((walk.steps, walk.tokens), (2, 3 + 4));
        assert_eq!(walk.tau(), Some(3.5));
        assert_eq!(walk.reached, [2, 2, 2]);
        assert_eq!(walk.accepted, [2, 2, 1]);
    }

    /// A drafter that is right about more tokens than the transcript has left still gets its last step counted.
    #[test]
    fn the_last_step_counts_the_tokens_up_to_the_end() {
        let tokens = [9, 1, 2, 3, 4];
        let right = |anchor: usize| {
            let token = |j: usize| tokens.get(anchor + 2 + j).copied().unwrap_or(7);
            Some(((0..7).map(token).collect(), vec![1.0; 7]))
        };
        let walked = |tokens: &[u32]| {
            let mut walk = Walk::default();
            walk.take(tokens, 0, &Confidence::default(), right);
            walk
        };
        // After bonus 1, the drafts 2, 3 and 4 are accepted and end the transcript.
        let walk = walked(&tokens);
        assert_eq!((walk.steps, walk.tokens, walk.tau()), (1, 3, Some(3.0)));
        assert_eq!((&walk.reached[..4], &walk.accepted[..4]), (&[1, 1, 1, 0][..], &[1, 1, 1, 0][..]));
        // The bonus token is the last token, so no step follows.
        assert_eq!(walked(&tokens[..2]).tau(), None);
    }
}

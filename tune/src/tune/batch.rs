//! Chooses the anchors (positions from which a block is drafted) that a training step learns from, and makes
//! their mask rows.
//!
//! An anchor is the last clean token that its group sees. The token after the anchor is the bonus token. Slot j of a
//! FlexDraft drafter has the token j positions after the bonus token as its label:
//!
//! ```text
//! position     p        p+1      p+2   …   p+S
//! clean        anchor   bonus    ·         ·
//! mask row              slot 0   slot 1    slot S−1
//! label                          x[p+2]    x[p+S]
//! ```
//!
//! Slots of an Orthrus drafter predict the next position, so slots 0 to S − 2 have these labels and the last slot has none.

use std::ops::Range;

use flexdraft::random::philox;

use super::clean::{Corpus, transcript};
use crate::attention::Groups;
use crate::drafter::MaskRows;
use crate::error::{Result, TuneError};
use crate::loss::Labels;
use crate::shortlist::Shortlist;
use crate::target::{CleanTokens, FrozenTarget};
use crate::transcripts::Transcript;

/// The chosen anchors of one transcript.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pick {
    /// Index of the transcript.
    pub transcript: usize,
    /// Positions of the anchors, ascending.
    pub anchors: Vec<usize>,
}

/// The anchors of a training step, with the target's keys and values of the transcript tokens that they see.
#[derive(Debug)]
pub struct Batch(Vec<Part>);

/// The anchors of one transcript, with the target's keys and values of its tokens.
#[derive(Debug)]
struct Part {
    anchors: Vec<usize>,
    /// For each anchor, the token after it: its bonus token.
    bonuses: Vec<u32>,
    clean: CleanTokens,
}

/// Returns the positions of a transcript that can be anchors: the target must have written the token after the
/// position, and the one after that, which is slot 1's label.
pub fn anchor_range(transcript: &Transcript) -> Range<usize> {
    transcript.prompt.len().saturating_sub(1)..transcript.len().saturating_sub(2)
}

/// Chooses the transcripts and anchors of a training step. Each epoch has its own order of transcripts, without
/// repetition.
///
/// # Errors
/// [`TuneError::Pick`] if an index of a usable transcript is out of range.
pub fn picks(
    transcripts: &[Transcript],
    usable: &[usize],
    step: usize,
    size: [usize; 2],
    seed: u64,
) -> Result<Vec<Pick>> {
    let [sequences, anchors] = size;
    let mut picks = Vec::with_capacity(sequences);
    for (picked, epoch) in in_order(usable, step, sequences, seed) {
        let anchors = choose_anchors(transcript(transcripts, picked)?, picked, epoch, anchors, seed);
        picks.push(Pick { transcript: picked, anchors });
    }
    Ok(picks)
}

/// Returns the transcripts of a training step, each with its epoch. Each epoch has its own order of transcripts, without
/// repetition.
pub(super) fn in_order(usable: &[usize], step: usize, sequences: usize, seed: u64) -> Vec<(usize, usize)> {
    let key = [seed as u32, (seed >> 32) as u32];
    let mut order = (usize::MAX, Vec::new());
    let mut found = Vec::with_capacity(sequences);
    for index in step * sequences..(step + 1) * sequences {
        let epoch = index / usable.len().max(1);
        if order.0 != epoch {
            let mut shuffled = usable.to_vec();
            shuffled.sort_by_key(|&i| philox([i as u32, epoch as u32, 0, 1], key));
            order = (epoch, shuffled);
        }
        found.extend(order.1.get(index % usable.len().max(1)).map(|&picked| (picked, epoch)));
    }
    found
}

/// Returns `count` anchors of a transcript, ascending, or all if there are fewer; each draw gives others.
pub(super) fn choose_anchors(
    transcript: &Transcript,
    index: usize,
    draw: usize,
    count: usize,
    seed: u64,
) -> Vec<usize> {
    let key = [seed as u32, (seed >> 32) as u32];
    let mut chosen: Vec<usize> = anchor_range(transcript).collect();
    chosen.sort_by_key(|&p| philox([p as u32, index as u32, draw as u32, 2], key));
    chosen.truncate(count);
    chosen.sort_unstable();
    chosen
}

impl Part {
    fn new(transcripts: &[Transcript], pick: Pick, clean: CleanTokens) -> Result<Self> {
        let Pick { transcript: index, anchors } = pick;
        let tokens = transcript(transcripts, index)?.tokens();
        let bonus = |&anchor: &usize| {
            let last = tokens.len().saturating_sub(1);
            let reason = || format!("anchor {anchor} must be below {last}, the position of the last token");
            let bonus = anchor.checked_add(1).and_then(|next| tokens.get(next)).copied();
            bonus.ok_or_else(|| TuneError::Pick { transcript: index, reason: reason() })
        };
        let bonuses = anchors.iter().map(bonus).collect::<Result<_>>()?;
        Ok(Self { anchors, bonuses, clean })
    }
}

impl Batch {
    /// Collects anchors and the keys and values of the tokens that they see, and computes keys and values that
    /// are not in memory.
    ///
    /// # Errors
    /// [`TuneError::Pick`] for a transcript that `corpus` does not have, or an anchor without a bonus token; candle's
    /// errors: out of memory.
    pub fn new(corpus: &mut Corpus, target: &FrozenTarget, picks: Vec<Pick>) -> Result<Self> {
        let part = |pick: Pick| {
            let clean = corpus.clean(target, pick.transcript)?;
            Part::new(corpus.transcripts(), pick, clean)
        };
        picks.into_iter().map(part).collect::<Result<_>>().map(Self)
    }

    /// Collects anchors of one transcript, with the keys and values of its tokens.
    ///
    /// # Errors
    /// [`TuneError::Pick`] for a transcript that does not exist, or an anchor without a bonus token.
    pub fn of_clean(transcripts: &[Transcript], pick: Pick, clean: CleanTokens) -> Result<Self> {
        Ok(Self(vec![Part::new(transcripts, pick, clean)?]))
    }

    /// Returns the mask rows of the batch.
    pub fn rows(&self, block_size: usize) -> MaskRows<'_> {
        let mut rows = MaskRows { sequences: Vec::new(), positions: Vec::new(), bonuses: Vec::new() };
        for Part { anchors, bonuses, clean } in &self.0 {
            let groups =
                Groups { len: block_size, prefix: anchors.iter().map(|&p| p + 1).collect(), causal: false };
            rows.sequences.push((groups, &clean.prefixes));
            rows.positions.extend(anchors.iter().flat_map(|&p| p + 1..p + 1 + block_size));
            rows.bonuses.extend(bonuses);
        }
        rows
    }
}

/// The labels of a batch: the token that each slot after slot 0 should predict.
#[derive(Clone, Debug, Default)]
pub struct SlotLabels {
    /// Label and weight of each mask row. The weight is 0 for rows after the transcript's end and rows whose
    /// label is not in the shortlist.
    pub labels: Labels,
    /// For each mask row, the number of the draft within its block, from 1.
    pub slots: Vec<usize>,
    /// The transcript's token before the label of each mask row; 0 after the transcript's end.
    pub before: Vec<u32>,
}

impl SlotLabels {
    /// Returns the labels of the picked anchors; slot j has the weight exp(−(j − 1) / `gamma`).
    ///
    /// # Errors
    /// [`TuneError::Pick`] if a transcript does not exist.
    pub fn new(
        picks: &[Pick],
        transcripts: &[Transcript],
        block_size: usize,
        gamma: f64,
        shortlist: &Shortlist,
    ) -> Result<Self> {
        let mut found = Self::default();
        for pick in picks {
            let tokens = transcript(transcripts, pick.transcript)?.tokens();
            for (&p, slot) in pick.anchors.iter().flat_map(|p| (1..block_size).map(move |slot| (p, slot))) {
                let position = p.saturating_add(1 + slot);
                let label = tokens.get(position).and_then(|&token| shortlist.place(token));
                found.labels.ids.push(label.unwrap_or(0));
                let weight = (-(slot as f64 - 1.0) / gamma).exp();
                found.labels.weights.push(if label.is_some() { weight as f32 } else { 0.0 });
                found.slots.push(slot);
                found.before.push(tokens.get(position.saturating_sub(1)).copied().unwrap_or(0));
            }
        }
        Ok(found)
    }

    /// Returns the labels of `len` rows from row `first` on, or fewer if the labels end before.
    pub fn rows(self, first: usize, len: usize) -> Self {
        fn part<T>(of: Vec<T>, first: usize, len: usize) -> Vec<T> {
            of.into_iter().skip(first).take(len).collect()
        }
        let Self { labels: Labels { ids, weights }, slots, before } = self;
        let labels = Labels { ids: part(ids, first, len), weights: part(weights, first, len) };
        Self { labels, slots: part(slots, first, len), before: part(before, first, len) }
    }

    /// Returns the sum of the labels' weights.
    pub fn weight(&self) -> f32 {
        self.labels.weights.iter().sum()
    }

    /// Divides the weights by `total`, unless `total` is 0.
    pub fn divide(&mut self, total: f32) {
        if total > 0.0 {
            self.labels.weights.iter_mut().for_each(|weight| *weight /= total);
        }
    }
}

/// Returns the indices of rows that have a label, for means over these rows.
pub fn labelled_rows(labels: &Labels) -> impl Iterator<Item = usize> {
    labels.weights.iter().enumerate().filter(|(_, weight)| **weight > 0.0).map(|(row, _)| row)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn transcripts_out_of_range_are_named() {
        let transcripts = [Transcript { prompt: vec![1], response: vec![2, 3] }];
        let foreign =
            "cannot make mask rows for transcript 1: the index must be below 1, the number of transcripts";
        let error = picks(&transcripts, &[0, 1], 0, [2, 4], 0).unwrap_err();
        assert_eq!(error.to_string(), foreign);
        let pick = |transcript| [Pick { transcript, anchors: vec![0, usize::MAX] }];
        let labels = |picks: &[Pick]| SlotLabels::new(picks, &transcripts, 3, 4.0, &Shortlist::All(9));
        assert_eq!(labels(&pick(1)).unwrap_err().to_string(), foreign);
        // A position with no next token has no label.
        assert_eq!(labels(&pick(0)).unwrap().labels.ids, [3, 0, 0, 0]);
        assert_eq!(labels(&pick(0)).unwrap().labels.weights, [1.0, 0.0, 0.0, 0.0]);
        assert_eq!(labels(&pick(0)).unwrap().before, [2, 3, 0, 0]);
    }
}

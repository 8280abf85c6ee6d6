//! Padding of a step to one of a few numbers of rows, so that a device can repeat the step's launches as a graph.
//!
//! Verify lengths change from step to step, and with them the numbers of rows. A device that keeps a graph for each
//! list of launches would need a graph for every number of rows. Padded steps have only a few numbers of rows: an
//! additional sequence without a request fills the step up to the next number. The sequence decodes a fixed token from
//! an empty prefix, in its own cache pages, and its verdict is never read. The rows of the other sequences have the
//! same bits with and without padding, because results are row-invariant.

use std::ops::Range;

use crate::acceptance::Rule;
use crate::device::VerifyRows;
use crate::layout::{Pass, SequenceRows};
use crate::sampling::SamplingParams;

/// The maximum number of rows of a step without padding. Up to this number, the lists of launches are few even without
/// padding.
const FEW_ROWS: usize = 32;

/// The maximum numbers of candidates and of mask groups that the padding adds.
const MOST_ADDED: usize = 64;

/// The candidates that the padding adds: a token that every vocabulary has.
const TOKENS: [u32; MOST_ADDED] = [0; MOST_ADDED];

/// The cache pages that the padding of steps uses. No request gets them.
#[derive(Debug, Default)]
pub(in crate::decode) struct PaddingPages(Vec<u32>);

impl PaddingPages {
    /// Returns the number of pages of `page_size` tokens that the padding needs.
    pub(in crate::decode) fn count(page_size: usize) -> usize {
        MOST_ADDED.div_ceil(page_size.max(1))
    }

    /// Takes the pages from `first` on.
    pub(in crate::decode) fn from(first: usize, page_size: usize) -> Self {
        Self((0..Self::count(page_size)).map_while(|index| u32::try_from(first + index).ok()).collect())
    }

    /// Adds the padding to `pass`, a pass of a step that only decodes, and its candidates to `tokens`. Returns the padding,
    /// or `None` if the pass needs none or if steps are not padded.
    pub(super) fn add_to<'a>(&'a self, pass: &mut Pass<'a>, tokens: &mut Vec<u32>) -> Option<PaddingRows> {
        let (rows, slots) = (pass.candidate_rows(), pass.sequences.first()?.slots);
        if self.0.is_empty() || rows <= FEW_ROWS {
            return None;
        }
        let groups = pass.sequences.iter().map(|rows| rows.groups.len()).sum();
        let [candidates, groups] = added(rows, groups)?;
        tokens.extend_from_slice(&TOKENS[..candidates]);
        let padding =
            PaddingRows { sequence: pass.sequences.len(), first_candidate: rows, candidates, groups };
        let groups = (0..groups).collect();
        pass.sequences.push(SequenceRows { pages: &self.0, start: 0, candidates, groups, slots });
        Some(padding)
    }
}

/// The sequence that pads a step.
#[derive(Clone, Copy, Debug)]
pub(super) struct PaddingRows {
    /// Index of the sequence in the pass.
    sequence: usize,
    /// The row of its first candidate.
    first_candidate: usize,
    candidates: usize,
    /// Number of mask groups.
    pub(super) groups: usize,
}

impl PaddingRows {
    /// Returns the rows of its candidates.
    pub(super) fn candidate_rows(self) -> Range<usize> {
        self.first_candidate..self.first_candidate + self.candidates
    }

    /// Iterates over the rows of the slots that draft, in all mask groups of the padding in `pass`.
    pub(super) fn drafting_rows(self, pass: &Pass<'_>) -> impl Iterator<Item = usize> {
        (0..self.groups).filter_map(move |k| pass.group_rows(self.sequence, k)).flat_map(|rows| rows.skip(1))
    }

    /// Returns the verification of its candidates, which the device computes and the host never reads. `first_row` is
    /// the row of the first candidate's logits.
    pub(super) fn verify_rows<'a, B>(self, first_row: usize) -> VerifyRows<'a, B> {
        VerifyRows {
            first_row,
            draft: TOKENS.get(1..self.candidates).unwrap_or(&[]),
            draft_logits: None,
            edits: None,
            sampling: &SamplingParams::GREEDY,
            rule: Rule::Match,
            seed: 0,
            start: 0,
        }
    }
}

/// Returns how many candidates and mask groups the padding of a step adds to `rows` candidates and `groups` mask groups;
/// `None` if the step would need more than a padding has.
fn added(rows: usize, groups: usize) -> Option<[usize; 2]> {
    let groups = padded(groups) - groups;
    // The padding has a candidate to verify. Each of its groups is for another accepted length, below the number of its
    // candidates.
    let mut to = padded(rows + 1);
    while to - rows < groups {
        to = padded(to + 1);
    }
    (to - rows <= MOST_ADDED).then_some([to - rows, groups])
}

/// Returns the smallest number, at least `count`, of rows or groups that padded steps have: a multiple of a sixteenth
/// of the next power of two, or of the maximum that the padding adds. There are eight such numbers between two powers
/// of two.
fn padded(count: usize) -> usize {
    let step = (count.next_power_of_two() / 16).clamp(1, MOST_ADDED);
    count.next_multiple_of(step)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn padded_steps_have_few_numbers_of_rows() {
        let (mut reached, mut padded_steps) = (BTreeSet::new(), 0);
        for rows in FEW_ROWS + 1..=1024 {
            for groups in [0, rows / 3, rows] {
                // A few steps would need more padding than the maximum, and are not padded.
                let Some([candidates, added_groups]) = added(rows, groups) else { continue };
                padded_steps += 1;
                assert!(
                    (1..=MOST_ADDED).contains(&candidates) && added_groups <= candidates,
                    "{rows} {groups}"
                );
                assert!(candidates <= rows / 6 + 1, "{rows} {groups}: {candidates}");
                assert!(groups > 0 || added_groups == 0);
                reached.insert((rows + candidates, groups + added_groups));
            }
        }
        assert!(padded_steps > 2800, "{padded_steps}");
        // Without padding there are almost 3,000 pairs.
        assert!(reached.len() < 250, "{}", reached.len());
    }

    #[test]
    fn the_padding_is_the_last_sequence_of_the_pass() {
        let own = [7];
        let rows =
            |candidates| SequenceRows { pages: &own, start: 0, candidates, groups: vec![0, 1], slots: 4 };
        let pages = PaddingPages::from(100, 16);
        let few = Pass { sequences: vec![rows(32)] };
        let (mut pass, mut tokens) = (few.clone(), vec![5; 32]);
        assert!(pages.add_to(&mut pass, &mut tokens).is_none());
        assert_eq!((pass, tokens.len()), (few, 32));

        let (mut pass, mut tokens) = (Pass { sequences: vec![rows(20), rows(17)] }, vec![5; 37]);
        let none = PaddingPages::default();
        assert!(none.add_to(&mut pass, &mut tokens).is_none());
        let padding = pages.add_to(&mut pass, &mut tokens).unwrap();
        assert_eq!((pass.candidate_rows(), tokens.len(), tokens[37]), (40, 40, 0));
        assert_eq!(padding.candidate_rows(), 37..40);
        assert_eq!(pass.sequences[2].pages, [100, 101, 102, 103]);
        assert_eq!(padding.verify_rows::<()>(37).draft, [0, 0]);
        // If the other sequences have four groups, the padding adds no group.
        assert_eq!((padding.groups, padding.drafting_rows(&pass).count()), (0, 0));
        let (mut pass, mut tokens) = (Pass { sequences: (0..17).map(|_| rows(2)).collect() }, vec![5; 34]);
        let padding = pages.add_to(&mut pass, &mut tokens).unwrap();
        assert_eq!((pass.candidate_rows(), padding.groups), (36, 2));
        let slots: Vec<usize> = padding.drafting_rows(&pass).collect();
        let first = 36 + 34 * 4;
        assert_eq!((slots.len(), &slots[..4]), (6, &[first + 1, first + 2, first + 3, first + 5][..]));
    }
}

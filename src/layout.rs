//! The rows of a forward pass: their order, their positions, and the cached positions that each row sees.
//!
//! A pass runs *candidate rows* (the newest token and the draft tokens under verification) and *mask groups* (S mask
//! rows each; a group prepares the next block for one particular accepted length). The attention mask is computed and
//! never stored: every row has a **limit**, the last cached position that the row sees, and a mask row also sees the S
//! slots of its own group.
//!
//! | query row | position | limit | also sees |
//! |---|---|---|---|
//! | candidate i | n + i | n + i | |
//! | slot j of group k | n + k + 1 + j | n + k | slots 0..S of group k |
//!
//! (FlexDraft, arXiv 2605.20022, the joint draft-and-verify mask.)

use std::ops::Range;

/// The largest block size: the number of slots in a mask group. It lets a [`GroupSet`] fit into a machine word.
pub const MAX_BLOCK_SIZE: usize = 64;

/// The token that the slots of a mask group predict.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Prediction {
    /// A slot predicts the token at its own position. Slots 1..S give the draft, and the output of slot 0 is not used.
    OwnPosition,
    /// A slot predicts the token at the next position. Slots 0..S − 1 give the draft, and the output of the last slot is
    /// not used.
    NextPosition,
}

impl Prediction {
    /// Returns the slot that predicts the first draft token.
    pub fn first_slot(self) -> usize {
        match self {
            Self::OwnPosition => 1,
            Self::NextPosition => 0,
        }
    }
}

/// A set of accepted lengths for which a pass builds mask groups.
///
/// K = {0..=v} is parallel drafting, K = ∅ is sequential drafting; any other set is allowed too.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct GroupSet(u64);

impl GroupSet {
    /// The empty set of accepted lengths: the draft is made after the verification, in a separate pass.
    pub const NONE: Self = Self(0);

    /// Returns the set with the accepted lengths 0 to `verify_len`.
    ///
    /// Lengths above [`MAX_BLOCK_SIZE`] − 1 cannot occur and are ignored.
    pub fn all(verify_len: usize) -> Self {
        if verify_len >= MAX_BLOCK_SIZE - 1 { Self(u64::MAX) } else { Self((1 << (verify_len + 1)) - 1) }
    }

    /// Returns the set of accepted lengths whose bits are set in `bits`: bit k stands for accepted length k.
    pub fn from_bits(bits: u64) -> Self {
        Self(bits)
    }

    /// Returns the set of accepted lengths as bits: bit k stands for accepted length k.
    pub fn bits(self) -> u64 {
        self.0
    }

    /// Returns the set with accepted length `k` added; `k` ≥ [`MAX_BLOCK_SIZE`] is ignored.
    #[must_use]
    pub fn with(self, k: usize) -> Self {
        if k < MAX_BLOCK_SIZE { Self(self.0 | 1 << k) } else { self }
    }

    /// Returns whether the set contains accepted length `k`.
    pub fn contains(self, k: usize) -> bool {
        k < MAX_BLOCK_SIZE && self.0 >> k & 1 == 1
    }

    /// Returns whether the set has no accepted length.
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Returns the set of those accepted lengths that are at most `verify_len`.
    #[must_use]
    pub fn up_to(self, verify_len: usize) -> Self {
        Self(self.0 & Self::all(verify_len).0)
    }

    /// Iterates over the accepted lengths of the set in ascending order.
    pub fn iter(self) -> impl Iterator<Item = usize> {
        (0..MAX_BLOCK_SIZE).filter(move |&k| self.contains(k))
    }
}

impl FromIterator<usize> for GroupSet {
    fn from_iter<I: IntoIterator<Item = usize>>(members: I) -> Self {
        members.into_iter().fold(Self::NONE, Self::with)
    }
}

impl std::fmt::Debug for GroupSet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_set().entries(self.iter()).finish()
    }
}

/// The rows of one sequence in a pass.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SequenceRows<'a> {
    /// Page ids of the paged KV cache; position p lives in page `pages[p / page_size]`. The pages must cover
    /// every limit of this sequence's rows.
    pub pages: &'a [u32],
    /// The position n of candidate 0, the bonus token. Positions 0..n are cached.
    pub start: usize,
    /// The number of candidate rows, which have the positions n to n + candidates − 1. It is 0 in a drafting pass.
    pub candidates: usize,
    /// The accepted lengths k that have a mask group, ascending. Each limit n + k is either cached or the
    /// position of a candidate of this pass.
    pub groups: Vec<usize>,
    /// The block size S: the number of slots in each of this sequence's mask groups.
    pub slots: usize,
}

/// All rows of one forward pass: every sequence's candidate rows first, then every sequence's mask rows.
/// Groups are in ascending order, and slots in order within a group.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pass<'a> {
    /// The sequences of the pass, in batch order.
    pub sequences: Vec<SequenceRows<'a>>,
}

/// The head counts and head size of an attention layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AttentionShape {
    /// Number of query heads of the layer.
    pub q_heads: usize,
    /// Number of KV heads; divides `q_heads`.
    pub kv_heads: usize,
    /// The size of a head, in elements.
    pub head_dim: usize,
}

impl AttentionShape {
    /// Returns the number of columns of the fused q, k and v projection: query heads, then key heads, then value heads.
    pub fn qkv_cols(&self) -> usize {
        let heads = self.kv_heads.saturating_mul(2).saturating_add(self.q_heads);
        heads.saturating_mul(self.head_dim)
    }

    /// Returns the number of columns of attention's output.
    pub fn out_cols(&self) -> usize {
        self.q_heads.saturating_mul(self.head_dim)
    }
}

/// The kind of rows of a [`Pass`] that an operation works on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RowKind {
    /// The candidate rows, which come first in the pass.
    Candidates,
    /// The mask rows, which come after the candidate rows.
    Masks,
}

/// One row of a [`Pass`]: its position, and the positions and rows that it sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Row {
    /// Index of the row's sequence in [`Pass::sequences`].
    pub sequence: usize,
    /// Position of the row, for the rotary embedding.
    pub position: usize,
    /// The last cached position that the row sees.
    pub limit: usize,
    /// For a mask row, the rows of its mask group, as row indices in the whole pass.
    pub group: Option<(usize, usize)>,
}

/// Returns the saturating sum of numbers that callers choose freely. After an overflow, the result is larger than any
/// buffer, so later checks fail.
fn total(numbers: impl Iterator<Item = usize>) -> usize {
    numbers.fold(0, usize::saturating_add)
}

impl SequenceRows<'_> {
    /// Returns the number of the sequence's mask rows.
    fn mask_rows(&self) -> usize {
        self.groups.len().saturating_mul(self.slots)
    }
}

impl Pass<'_> {
    /// Returns the number of candidate rows over all sequences; these are rows 0..`candidate_rows()`.
    pub fn candidate_rows(&self) -> usize {
        total(self.sequences.iter().map(|s| s.candidates))
    }

    /// Returns the number of mask rows over all sequences; they follow the candidate rows.
    pub fn mask_rows(&self) -> usize {
        total(self.sequences.iter().map(SequenceRows::mask_rows))
    }

    /// Returns the number of candidate rows and mask rows together.
    pub fn total_rows(&self) -> usize {
        self.candidate_rows().saturating_add(self.mask_rows())
    }

    /// Returns the index of the first candidate row of sequence `sequence`.
    pub fn first_candidate(&self, sequence: usize) -> usize {
        total(self.sequences.iter().take(sequence).map(|s| s.candidates))
    }

    /// Returns the rows of sequence `sequence`'s mask group for accepted length `k`, or `None` if the pass has no such
    /// group.
    pub fn group_rows(&self, sequence: usize, k: usize) -> Option<Range<usize>> {
        let before = total(self.sequences.iter().take(sequence).map(SequenceRows::mask_rows));
        let rows = self.sequences.get(sequence)?;
        let index = rows.groups.iter().position(|&group| group == k)?;
        let first = total([self.candidate_rows(), before, index.saturating_mul(rows.slots)].into_iter());
        Some(first..first.saturating_add(rows.slots))
    }

    /// Returns every row of the pass, in row order.
    pub fn rows(&self) -> Vec<Row> {
        let mut rows = Vec::with_capacity(self.total_rows());
        for (sequence, s) in self.sequences.iter().enumerate() {
            rows.extend((s.start..s.start + s.candidates).map(|position| Row {
                sequence,
                position,
                limit: position,
                group: None,
            }));
        }
        for (sequence, s) in self.sequences.iter().enumerate() {
            for &k in &s.groups {
                let group = Some((rows.len(), rows.len() + s.slots));
                let limit = s.start + k;
                rows.extend((0..s.slots).map(|j| Row { sequence, position: limit + 1 + j, limit, group }));
            }
        }
        rows
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_that_nothing_holds_are_no_panic() {
        let huge = SequenceRows {
            pages: &[],
            start: 0,
            candidates: usize::MAX,
            groups: vec![0, 1],
            slots: usize::MAX,
        };
        let pass = Pass { sequences: vec![huge.clone(), huge] };
        assert_eq!(
            (pass.candidate_rows(), pass.mask_rows(), pass.total_rows()),
            (usize::MAX, usize::MAX, usize::MAX)
        );
        assert_eq!(pass.group_rows(1, 1), Some(usize::MAX..usize::MAX));
        let shape = AttentionShape { q_heads: usize::MAX, kv_heads: usize::MAX, head_dim: 2 };
        assert_eq!((shape.qkv_cols(), shape.out_cols()), (usize::MAX, usize::MAX));
        assert_eq!(GroupSet::all(usize::MAX), GroupSet::from_bits(u64::MAX));
    }

    #[test]
    fn rows_follow_the_table_of_the_module() {
        let pages = [0, 1];
        let pass = Pass {
            sequences: vec![
                SequenceRows { pages: &pages, start: 5, candidates: 3, groups: vec![0, 2], slots: 2 },
                SequenceRows { pages: &pages, start: 9, candidates: 1, groups: vec![], slots: 4 },
                SequenceRows { pages: &pages, start: 2, candidates: 0, groups: vec![1], slots: 3 },
            ],
        };
        let rows = pass.rows();
        assert_eq!(rows.len(), pass.total_rows());
        let seen: Vec<_> = rows.iter().map(|r| (r.sequence, r.position, r.limit, r.group)).collect();
        assert_eq!(
            seen,
            [
                (0, 5, 5, None),
                (0, 6, 6, None),
                (0, 7, 7, None),
                (1, 9, 9, None),
                (0, 6, 5, Some((4, 6))),
                (0, 7, 5, Some((4, 6))),
                (0, 8, 7, Some((6, 8))),
                (0, 9, 7, Some((6, 8))),
                (2, 4, 3, Some((8, 11))),
                (2, 5, 3, Some((8, 11))),
                (2, 6, 3, Some((8, 11))),
            ]
        );
        assert_eq!(pass.group_rows(0, 2), Some(6..8));
        assert_eq!(pass.group_rows(0, 1), None);
        assert_eq!(pass.group_rows(2, 1), Some(8..11));
        assert_eq!(pass.first_candidate(1), 3);
    }

    #[test]
    fn group_sets() {
        assert_eq!(GroupSet::all(2).iter().collect::<Vec<_>>(), [0, 1, 2]);
        assert_eq!(GroupSet::all(200).iter().count(), MAX_BLOCK_SIZE);
        assert!(GroupSet::NONE.is_empty());
        let set: GroupSet = [7, 1, 63, 64].into_iter().collect();
        assert_eq!(set.iter().collect::<Vec<_>>(), [1, 7, 63]);
        assert_eq!(set.up_to(7).iter().collect::<Vec<_>>(), [1, 7]);
        assert!(!set.contains(64));
    }
}

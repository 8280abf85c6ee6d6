//! The layout of the paged KV cache: the place of the keys and values of a token's KV head, and checks that a
//! pass stays within its pages.

use super::check;
use crate::device::DeviceError;
use crate::layout::{MAX_BLOCK_SIZE, Pass};

/// The shape of one layer of the cache.
#[derive(Clone, Copy, Debug)]
pub(super) struct PageLayout {
    pub(super) pages: usize,
    pub(super) page_size: usize,
    pub(super) kv_heads: usize,
    pub(super) head_dim: usize,
}

impl PageLayout {
    /// Returns the number of elements in a layer's keys, which equals the number in its values.
    pub(super) fn layer_len(self) -> usize {
        self.pages * self.page_size * self.kv_heads * self.head_dim
    }

    /// Returns the index of the first element of a KV head at `position` of the sequence with pages `pages`,
    /// which must [`cover`](Self::cover) the position.
    #[inline(always)]
    pub(super) fn head(self, pages: &[u32], position: usize, kv_head: usize) -> usize {
        let page = pages[position / self.page_size] as usize;
        let token = (page * self.kv_heads + kv_head) * self.page_size + position % self.page_size;
        token * self.head_dim
    }

    /// Checks that `pages` cover positions 0..`len`, and that the pages exist.
    pub(super) fn cover(self, operation: &'static str, pages: &[u32], len: usize) -> Result<(), DeviceError> {
        if len == 0 {
            return Ok(());
        }
        let last = len - 1;
        // The bound `isize::MAX` leaves room below the largest integer for the positions of mask rows after
        // the cached positions.
        let end = pages.len().saturating_mul(self.page_size).min(isize::MAX as usize);
        check::index(operation, "position", last, end)?;
        for &page in &pages[..=last / self.page_size] {
            check::index(operation, "page id", page as usize, self.pages)?;
        }
        Ok(())
    }

    /// Checks that every position that a row of `pass` sees, or that a candidate row has, lies in a page, and
    /// that the numbers of rows are valid. Returns the numbers of candidate rows and of mask rows.
    pub(super) fn check_pass(
        self,
        operation: &'static str,
        pass: &Pass<'_>,
    ) -> Result<(usize, usize), DeviceError> {
        let (mut candidates, mut masks) = (0usize, 0usize);
        for sequence in &pass.sequences {
            check::index(operation, "number of slots", sequence.slots, MAX_BLOCK_SIZE + 1)?;
            // Number of positions after the sequence's start that its rows see.
            let groups = sequence.groups.iter().map(|&k| k.saturating_add(1)).max().unwrap_or(0);
            let seen = sequence.candidates.max(groups);
            if seen > 0 {
                self.cover(operation, sequence.pages, sequence.start.saturating_add(seen))?;
            }
            // If the sequence has no candidates in this pass, an earlier pass wrote the positions that its
            // mask groups see.
            let beyond = |&&k: &&usize| sequence.candidates > 0 && k >= sequence.candidates;
            if let Some(group) = sequence.groups.iter().find(beyond) {
                return Err(DeviceError::Contract {
                    operation,
                    operand: "mask group",
                    expected: "an accepted length below the number of candidates",
                    found: format!("{group} with {} candidates", sequence.candidates),
                });
            }
            candidates = candidates.saturating_add(sequence.candidates);
            masks = masks.saturating_add(sequence.groups.len().saturating_mul(sequence.slots));
        }
        check::index(operation, "row", candidates.saturating_add(masks), usize::MAX)?;
        Ok((candidates, masks))
    }
}

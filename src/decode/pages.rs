//! The allocator of KV-cache pages.

/// An allocator of page ids 0..pages. It reuses the most recently freed pages first.
#[derive(Debug)]
pub(super) struct PageAllocator {
    freed: Vec<u32>,
    /// The lowest page id that was never handed out.
    fresh: usize,
    pages: usize,
    page_size: usize,
}

impl PageAllocator {
    pub(super) fn new(pages: usize, page_size: usize) -> Self {
        Self { freed: Vec::new(), fresh: 0, pages, page_size }
    }

    /// Returns the number of pages that `tokens` tokens need.
    pub(super) fn pages_for(&self, tokens: usize) -> usize {
        tokens.div_ceil(self.page_size)
    }

    /// Adds free pages to `owned` until it has room for `tokens` tokens. If too few pages are free, changes nothing and
    /// returns `false`.
    pub(super) fn grow(&mut self, owned: &mut Vec<u32>, tokens: usize) -> bool {
        let missing = self.pages_for(tokens).saturating_sub(owned.len());
        if missing > self.available() {
            return false;
        }
        for _ in 0..missing {
            owned.push(self.freed.pop().unwrap_or_else(|| {
                self.fresh += 1;
                self.fresh as u32 - 1
            }));
        }
        true
    }

    /// Keeps the pages of the first `tokens` tokens in `owned` and frees its other pages.
    pub(super) fn shrink(&mut self, owned: &mut Vec<u32>, tokens: usize) {
        let kept = self.pages_for(tokens).min(owned.len());
        self.freed.extend(owned.drain(kept..).rev());
    }

    pub(super) fn available(&self) -> usize {
        self.pages - self.fresh + self.freed.len()
    }

    pub(super) fn pages(&self) -> usize {
        self.pages
    }

    pub(super) fn page_size(&self) -> usize {
        self.page_size
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_are_never_lost_nor_shared() {
        let mut allocator = PageAllocator::new(5, 16);
        let (mut a, mut b) = (Vec::new(), Vec::new());
        assert!(allocator.grow(&mut a, 33));
        assert_eq!(a, [0, 1, 2]);
        assert!(!allocator.grow(&mut b, 33));
        assert!(b.is_empty());
        assert!(allocator.grow(&mut b, 32));
        allocator.shrink(&mut a, 16);
        assert_eq!((a.len(), allocator.available()), (1, 2));
        assert!(allocator.grow(&mut b, 49));
        allocator.shrink(&mut a, 0);
        allocator.shrink(&mut b, 0);
        allocator.freed.sort_unstable();
        assert_eq!((allocator.available(), &allocator.freed[..]), (5, &[0, 1, 2, 3, 4][..]));
    }
}

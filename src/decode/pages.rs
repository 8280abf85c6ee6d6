//! Which pages of the KV cache are free.

/// Hands out page ids 0..pages, lowest free first come, last freed first served.
#[derive(Debug)]
pub(super) struct PageAllocator {
    free: Vec<u32>,
    pages: usize,
    page_size: usize,
}

impl PageAllocator {
    pub(super) fn new(pages: usize, page_size: usize) -> Self {
        Self { free: (0..pages as u32).rev().collect(), pages, page_size }
    }

    /// Pages that `tokens` tokens take.
    pub(super) fn pages_for(&self, tokens: usize) -> usize {
        tokens.div_ceil(self.page_size)
    }

    /// Extends `owned` to hold `tokens` tokens, or changes nothing and returns `false`.
    pub(super) fn grow(&mut self, owned: &mut Vec<u32>, tokens: usize) -> bool {
        let missing = self.pages_for(tokens).saturating_sub(owned.len());
        if missing > self.free.len() {
            return false;
        }
        owned.extend(self.free.drain(self.free.len() - missing..).rev());
        true
    }

    /// Keeps the pages of the first `tokens` tokens and takes the others back.
    pub(super) fn shrink(&mut self, owned: &mut Vec<u32>, tokens: usize) {
        let kept = self.pages_for(tokens).min(owned.len());
        self.free.extend(owned.drain(kept..).rev());
    }

    pub(super) fn available(&self) -> usize {
        self.free.len()
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
        allocator.free.sort_unstable();
        assert_eq!(allocator.free, [0, 1, 2, 3, 4]);
    }
}

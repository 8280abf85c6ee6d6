//! The allocator of KV-cache pages, which sequences may share.

use std::collections::BTreeMap;

use super::prefix_index::{PrefixId, PrefixIndex};

/// An allocator of page ids 0..pages, with a prefix cache.
///
/// A sequence owns a page for each `page_size` of its tokens. Sequences that begin with the same tokens share the pages
/// of these tokens. Only full pages of committed tokens are shared, and a sequence writes only after its cached tokens.
/// A shared page is therefore never written, and needs no copy.
///
/// A page whose last sequence leaves it keeps its contents until its memory is needed. Pages without known contents are
/// taken first, then the page whose last owner left it the longest time ago. A sequence leaves its last page first, so
/// the end of a prefix is evicted before its beginning.
#[derive(Debug)]
pub(super) struct PageAllocator {
    pages: usize,
    page_size: usize,
    /// The number of sequences that own each page, for all pages that were handed out at least once.
    owners: Vec<u32>,
    /// Pages without an owner and without known contents.
    freed: Vec<u32>,
    /// Pages without an owner whose contents are known, by the time at which their last owner left them.
    unowned: BTreeMap<u64, u32>,
    /// The key in `unowned` of each page, from the last time that its last owner left it.
    left_at: Vec<u64>,
    clock: u64,
    /// The pages whose contents are known; `None` without a prefix cache.
    prefixes: Option<PrefixIndex>,
    evicted: u64,
}

impl PageAllocator {
    /// Makes an allocator of `pages` pages of `page_size` tokens, with or without a prefix cache.
    pub(super) fn new(pages: usize, page_size: usize, prefix_cache: bool) -> Self {
        Self {
            pages,
            page_size,
            owners: Vec::new(),
            freed: Vec::new(),
            unowned: BTreeMap::new(),
            left_at: Vec::new(),
            clock: 0,
            prefixes: prefix_cache.then(PrefixIndex::new),
            evicted: 0,
        }
    }

    /// Returns the number of pages that `tokens` tokens need.
    pub(super) fn pages_for(&self, tokens: usize) -> usize {
        tokens.div_ceil(self.page_size)
    }

    /// Adds pages to `owned` until it has room for `tokens` tokens. If too few pages are available, changes nothing and
    /// returns `false`.
    pub(super) fn grow(&mut self, owned: &mut Vec<u32>, tokens: usize) -> bool {
        let missing = self.pages_for(tokens).saturating_sub(owned.len());
        if missing > self.available() {
            return false;
        }
        owned.extend((0..missing).map_while(|_| self.take()));
        true
    }

    /// Takes a page without an owner: the contents of the page are lost.
    fn take(&mut self) -> Option<u32> {
        let page = match self.freed.pop() {
            Some(page) => page,
            None if self.owners.len() < self.pages => {
                self.owners.push(0);
                self.left_at.push(0);
                self.owners.len() as u32 - 1
            }
            None => {
                let (_, page) = self.unowned.pop_first()?;
                self.evicted += 1;
                if let Some(prefixes) = &mut self.prefixes {
                    prefixes.remove(page);
                }
                page
            }
        };
        self.owners[page as usize] = 1;
        Some(page)
    }

    /// Keeps the pages of the first `tokens` tokens in `owned` and leaves its other pages.
    pub(super) fn shrink(&mut self, owned: &mut Vec<u32>, tokens: usize) {
        let kept = self.pages_for(tokens).min(owned.len());
        for page in owned.drain(kept..).rev() {
            self.leave(page);
        }
    }

    /// Removes one owner of a page.
    fn leave(&mut self, page: u32) {
        let owners = &mut self.owners[page as usize];
        *owners -= 1;
        if *owners > 0 {
            return;
        }
        if self.prefixes.as_ref().is_some_and(|prefixes| prefixes.prefix(page).is_some()) {
            self.clock += 1;
            self.left_at[page as usize] = self.clock;
            self.unowned.insert(self.clock, page);
        } else {
            self.freed.push(page);
        }
    }

    /// Adds an owner to a page with known contents.
    fn join(&mut self, page: u32) {
        let owners = &mut self.owners[page as usize];
        if *owners == 0 {
            self.unowned.remove(&self.left_at[page as usize]);
        }
        *owners += 1;
    }

    /// Returns the prefix of `owned`, the pages of a sequence up to some page. `None` if the contents of the last page
    /// are not known.
    fn prefix_of(&self, owned: &[u32]) -> Option<PrefixId> {
        let prefixes = self.prefixes.as_ref()?;
        owned.last().map_or(Some(PrefixId::EMPTY), |&page| prefixes.prefix(page))
    }

    /// Iterates over the pages that hold the tokens of `tokens` after the tokens of `owned`, the first pages of the
    /// sequence, as far as there are such pages.
    fn continuation(&self, owned: &[u32], tokens: &[u32]) -> impl Iterator<Item = u32> {
        let mut before = self.prefix_of(owned);
        let rest = tokens.get(owned.len() * self.page_size..).unwrap_or(&[]);
        rest.chunks_exact(self.page_size).map_while(move |tokens| {
            let prefixes = self.prefixes.as_ref()?;
            let page = prefixes.find(before?, tokens)?;
            before = prefixes.prefix(page);
            Some(page)
        })
    }

    /// Returns whether pages of other sequences may follow `owned`, the pages of a sequence with `cached` tokens in the
    /// cache: all its pages are full, and their contents are known.
    pub(super) fn can_reuse(&self, owned: &[u32], cached: usize) -> bool {
        owned.len() * self.page_size == cached && self.prefix_of(owned).is_some()
    }

    /// Adds pages to `owned`, the first pages of a sequence, that hold the sequence's next tokens already. `tokens` are
    /// all tokens for which pages are looked for. Returns the number of tokens in the added pages.
    pub(super) fn reuse(&mut self, owned: &mut Vec<u32>, tokens: &[u32]) -> usize {
        let found: Vec<u32> = self.continuation(owned, tokens).collect();
        found.iter().for_each(|&page| self.join(page));
        owned.extend_from_slice(&found);
        found.len() * self.page_size
    }

    /// Returns how many of the pages that a new sequence with these tokens would [reuse](Self::reuse) have an owner
    /// already, so that they take no page from the available pages.
    pub(super) fn reusable_and_owned(&self, tokens: &[u32]) -> usize {
        self.continuation(&[], tokens).filter(|&page| self.owners[page as usize] > 0).count()
    }

    /// Makes the full pages of a sequence available to other sequences. `owned` are the sequence's pages, and `tokens`
    /// the tokens whose keys and values these pages hold. If another page has the contents of one of them, the sequence
    /// shares the other page from now on.
    pub(super) fn publish(&mut self, owned: &mut [u32], tokens: &[u32]) {
        let full = (tokens.len() / self.page_size).min(owned.len());
        let known =
            |page: &u32| self.prefixes.as_ref().is_some_and(|prefixes| prefixes.prefix(*page).is_some());
        let first = owned[..full].iter().rposition(known).map_or(0, |last| last + 1);
        for index in first..full {
            let Some(before) = self.prefix_of(&owned[..index]) else { return };
            let Some(prefixes) = &mut self.prefixes else { return };
            let tokens = &tokens[index * self.page_size..][..self.page_size];
            match prefixes.find(before, tokens) {
                None => prefixes.insert(owned[index], before, tokens),
                Some(page) => {
                    self.join(page);
                    self.leave(std::mem::replace(&mut owned[index], page));
                }
            }
        }
    }

    /// Returns the number of pages that sequences do not own.
    pub(super) fn available(&self) -> usize {
        self.pages - self.owners.len() + self.freed.len() + self.unowned.len()
    }

    /// Returns the number of pages without an owner whose contents are known.
    pub(super) fn cached(&self) -> usize {
        self.unowned.len()
    }

    /// Returns how many pages with known contents were taken for other tokens so far.
    pub(super) fn evicted(&self) -> u64 {
        self.evicted
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
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn pages_are_never_lost_nor_shared() {
        let mut allocator = PageAllocator::new(5, 16, false);
        let (mut a, mut b) = (Vec::new(), Vec::new());
        assert!(allocator.grow(&mut a, 33));
        assert_eq!(a, [0, 1, 2]);
        assert!(!allocator.grow(&mut b, 33));
        assert!(b.is_empty());
        assert!(allocator.grow(&mut b, 32));
        allocator.publish(&mut b, &[7; 32]);
        assert_eq!(
            (allocator.reuse(&mut Vec::new(), &[7; 32]), allocator.reusable_and_owned(&[7; 32])),
            (0, 0)
        );
        allocator.shrink(&mut a, 16);
        assert_eq!((a.len(), allocator.available()), (1, 2));
        assert!(allocator.grow(&mut b, 49));
        allocator.shrink(&mut a, 0);
        allocator.shrink(&mut b, 0);
        allocator.freed.sort_unstable();
        assert_eq!((allocator.available(), &allocator.freed[..]), (5, &[0, 1, 2, 3, 4][..]));
    }

    /// Returns the pages of a new sequence with these tokens, all of them published.
    fn sequence(allocator: &mut PageAllocator, tokens: &[u32]) -> Vec<u32> {
        let mut owned = Vec::new();
        allocator.reuse(&mut owned, tokens);
        assert!(allocator.grow(&mut owned, tokens.len()));
        allocator.publish(&mut owned, tokens);
        owned
    }

    #[test]
    fn the_page_left_first_goes_first_and_a_prefix_from_its_end() {
        let mut allocator = PageAllocator::new(5, 2, true);
        let mut a = sequence(&mut allocator, &[1, 1, 2, 2, 3, 3]);
        let mut b = sequence(&mut allocator, &[1, 1, 2, 2, 4]);
        assert_eq!((&a[..], &b[..]), (&[0, 1, 2][..], &[0, 1, 3][..]));
        assert_eq!(allocator.reusable_and_owned(&[1, 1, 2, 2, 3, 3, 9, 9]), 3);
        allocator.shrink(&mut a, 0);
        assert_eq!((allocator.available(), allocator.cached()), (2, 1));
        assert_eq!(allocator.reusable_and_owned(&[1, 1, 2, 2, 3, 3, 9, 9]), 2);
        allocator.shrink(&mut b, 0);
        assert_eq!((allocator.available(), allocator.cached()), (5, 3));
        // Page 3 has no known contents, and page 4 was never used. Then a's last page goes, then the pages of both.
        let mut c = Vec::new();
        for (tokens, evicted, left) in [(2, 0, 3), (4, 0, 3), (6, 1, 2), (8, 2, 1), (10, 3, 0)] {
            assert!(allocator.grow(&mut c, tokens));
            let reusable = allocator.continuation(&[], &[1, 1, 2, 2, 3, 3]).count();
            assert_eq!((allocator.evicted(), reusable), (evicted, left));
        }
        assert_eq!(c, [3, 4, 2, 1, 0]);
    }

    #[test]
    fn sequences_that_computed_the_same_pages_share_them_afterwards() {
        let mut allocator = PageAllocator::new(6, 2, true);
        let (mut a, mut b) = (Vec::new(), Vec::new());
        assert!(allocator.grow(&mut a, 5) && allocator.grow(&mut b, 5));
        allocator.publish(&mut a, &[1, 2, 3, 4]);
        allocator.publish(&mut b, &[1, 2, 3, 5]);
        assert_eq!((&a[..], &b[..]), (&[0, 1, 2][..], &[0, 4, 5][..]));
        assert_eq!(allocator.available(), 1);
        // The contents of a page that is not full are not known, so nothing can follow them.
        assert_eq!(allocator.reuse(&mut a, &[1, 2, 3, 4, 5, 6, 7, 8]), 0);
    }

    proptest! {
        /// Sequences come, grow and go at random. Each of their full pages holds the tokens that were written to it
        /// last, no sequence writes to a page that another sequence owns, and every page is accounted for.
        #[test]
        fn a_page_that_is_shared_is_never_written(
            pages in 1usize..12,
            page_size in 1usize..4,
            actions in prop::collection::vec((0usize..4, 0usize..4, prop::collection::vec(0u32..2, 1..9)), 1..80),
        ) {
            let mut allocator = PageAllocator::new(pages, page_size, true);
            // What was written to each page, and the tokens and pages of each sequence.
            let mut memory = vec![Vec::new(); pages];
            let mut sequences: Vec<(Vec<u32>, Vec<u32>)> = vec![Default::default(); 4];
            for (index, action, more) in actions {
                let (tokens, owned) = &mut sequences[index];
                if action == 0 {
                    tokens.clear();
                    allocator.shrink(owned, 0);
                } else {
                    let before = tokens.len();
                    tokens.extend_from_slice(&more);
                    let reused = if before == 0 { allocator.reuse(owned, &tokens[..tokens.len() - 1]) } else { before };
                    if allocator.grow(owned, tokens.len()) {
                        for position in reused..tokens.len() {
                            let page = owned[position / page_size];
                            prop_assert_eq!(allocator.owners[page as usize], 1);
                            prop_assert!(allocator.prefixes.as_ref().unwrap().prefix(page).is_none());
                            memory[page as usize].resize(position % page_size, 9);
                            memory[page as usize].push(tokens[position]);
                        }
                        if action > 1 {
                            allocator.publish(owned, tokens);
                        }
                    } else {
                        tokens.truncate(reused);
                        allocator.shrink(owned, reused);
                    }
                }
                let mut counts = vec![0; pages];
                for (tokens, owned) in &sequences {
                    prop_assert_eq!(owned.len(), tokens.len().div_ceil(page_size));
                    for (&page, tokens) in owned.iter().zip(tokens.chunks(page_size)) {
                        counts[page as usize] += 1;
                        prop_assert_eq!(&memory[page as usize][..], tokens);
                    }
                }
                let in_use = counts.iter().filter(|&&count| count > 0).count();
                prop_assert_eq!(allocator.available(), pages - in_use);
                prop_assert_eq!(&allocator.owners[..], &counts[..allocator.owners.len()]);
            }
        }
    }
}

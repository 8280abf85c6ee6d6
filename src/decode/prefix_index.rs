//! The index of the prefix cache: finds the cache page with the keys and values of given tokens after a given prefix.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};

/// A prefix of whole pages. Two prefixes have the same id only if all their tokens are the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct PrefixId(u64);

impl PrefixId {
    /// The prefix without tokens.
    pub(super) const EMPTY: Self = Self(0);
}

/// An index of the pages whose contents are known, by the hash of their tokens and of the prefix before them.
///
/// Keys and values depend on all tokens before them. An entry is therefore found by its own tokens and by the id of the
/// prefix before its page, which identifies all earlier tokens. Because hashes can collide, the index also compares the
/// tokens and the id.
#[derive(Debug)]
pub(super) struct PrefixIndex<S = RandomState> {
    hasher: S,
    /// The pages with each hash.
    by_hash: HashMap<u64, Vec<u32>>,
    /// The entry of each page, if the index has the page.
    entries: Vec<Option<KnownPage>>,
    /// The number of ids that were given out.
    ids: u64,
}

#[derive(Debug)]
struct KnownPage {
    /// The prefix that ends with the page.
    id: PrefixId,
    /// The prefix before the page.
    before: PrefixId,
    /// The tokens of the page.
    tokens: Box<[u32]>,
    hash: u64,
}

impl PrefixIndex {
    /// Makes an empty index.
    pub(super) fn new() -> Self {
        Self::with_hasher(RandomState::new())
    }
}

impl<S: BuildHasher> PrefixIndex<S> {
    /// Makes an empty index that hashes with `hasher`.
    pub(super) fn with_hasher(hasher: S) -> Self {
        Self { hasher, by_hash: HashMap::new(), entries: Vec::new(), ids: 0 }
    }

    fn entry(&self, page: u32) -> Option<&KnownPage> {
        self.entries.get(page as usize)?.as_ref()
    }

    /// Returns the id of the prefix that ends with `page`, if the index has the page.
    pub(super) fn prefix(&self, page: u32) -> Option<PrefixId> {
        Some(self.entry(page)?.id)
    }

    /// Returns the page that holds `tokens` after the prefix `before`, if the index has one.
    pub(super) fn find(&self, before: PrefixId, tokens: &[u32]) -> Option<u32> {
        let same = |entry: &KnownPage| entry.before == before && *entry.tokens == *tokens;
        let pages = self.by_hash.get(&self.hasher.hash_one((before, tokens)))?;
        pages.iter().copied().find(|&page| self.entry(page).is_some_and(same))
    }

    /// Adds `page`, which holds `tokens` after the prefix `before`. The index must have neither the page nor another
    /// page with these tokens.
    pub(super) fn insert(&mut self, page: u32, before: PrefixId, tokens: &[u32]) {
        let hash = self.hasher.hash_one((before, tokens));
        self.ids += 1;
        let entry = KnownPage { id: PrefixId(self.ids), before, tokens: tokens.into(), hash };
        let index = page as usize;
        if self.entries.len() <= index {
            self.entries.resize_with(index + 1, || None);
        }
        self.entries[index] = Some(entry);
        self.by_hash.entry(hash).or_default().push(page);
    }

    /// Removes `page`, if the index has it.
    pub(super) fn remove(&mut self, page: u32) {
        let Some(entry) = self.entries.get_mut(page as usize).and_then(Option::take) else { return };
        if let Some(pages) = self.by_hash.get_mut(&entry.hash) {
            pages.retain(|&other| other != page);
            if pages.is_empty() {
                self.by_hash.remove(&entry.hash);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::hash::{BuildHasherDefault, Hasher};

    use super::*;

    /// A hasher whose hashes all collide.
    #[derive(Default)]
    struct Colliding;

    impl Hasher for Colliding {
        fn finish(&self) -> u64 {
            7
        }

        fn write(&mut self, _: &[u8]) {}
    }

    #[test]
    fn a_page_is_found_by_all_tokens_up_to_its_end_even_if_all_hashes_collide() {
        check(PrefixIndex::new());
        check(PrefixIndex::with_hasher(BuildHasherDefault::<Colliding>::default()));
    }

    fn check<S: BuildHasher>(mut index: PrefixIndex<S>) {
        index.insert(4, PrefixId::EMPTY, &[1, 2]);
        index.insert(0, PrefixId::EMPTY, &[3, 4]);
        let [first, second] = [4, 0].map(|page| index.prefix(page).unwrap());
        assert_ne!(first, second);
        index.insert(2, first, &[5, 6]);
        index.insert(1, second, &[5, 6]);
        assert_eq!(index.find(PrefixId::EMPTY, &[1, 2]), Some(4));
        assert_eq!(index.find(PrefixId::EMPTY, &[3, 4]), Some(0));
        assert_eq!(index.find(PrefixId::EMPTY, &[5, 6]), None);
        assert_eq!(index.find(PrefixId::EMPTY, &[1, 3]), None);
        assert_eq!((index.find(first, &[5, 6]), index.find(second, &[5, 6])), (Some(2), Some(1)));
        assert_eq!(index.prefix(3), None);

        // The tokens of a page that was removed and added again are another prefix to the pages after it.
        index.remove(4);
        index.remove(4);
        assert_eq!((index.prefix(4), index.find(PrefixId::EMPTY, &[1, 2])), (None, None));
        index.insert(4, PrefixId::EMPTY, &[1, 2]);
        assert_eq!(index.find(index.prefix(4).unwrap(), &[5, 6]), None);
        assert_eq!(index.find(first, &[5, 6]), Some(2));
        for page in 0..5 {
            index.remove(page);
        }
        assert!(index.by_hash.is_empty());
    }
}

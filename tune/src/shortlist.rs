//! The part of the vocabulary that a drafter is tuned on.
//!
//! The product with the vocabulary is half of a tuning step, and on-policy text uses a small part of it. A
//! drafter tuned on the ids that the text uses most has exact probabilities over these; every other id gets a
//! bias so low that it is never drafted. Losslessness does not depend on it: the target verifies every token.

use std::collections::HashMap;

/// b2 of ids that a drafter was not tuned on.
pub const UNLISTED_BIAS: f32 = -1e4;

/// Ids that are drafted, or all of them.
#[derive(Clone, Debug, PartialEq)]
pub enum Shortlist {
    /// The whole vocabulary of that size.
    All(usize),
    /// Some ids, ascending.
    Some {
        /// The ids.
        ids: Vec<u32>,
        /// Where each of them stands in `ids`.
        places: HashMap<u32, u32>,
    },
}

impl Shortlist {
    /// The `size` ids that occur most often (ties to the lowest), or all if `size` is 0 or the vocabulary's.
    pub fn most_frequent(size: usize, vocab_size: usize, tokens: impl IntoIterator<Item = u32>) -> Self {
        if size == 0 || size >= vocab_size {
            return Self::All(vocab_size);
        }
        let mut counts = vec![0u64; vocab_size];
        for token in tokens {
            if let Some(count) = counts.get_mut(token as usize) {
                *count += 1;
            }
        }
        let mut ids: Vec<u32> = (0..vocab_size as u32).collect();
        ids.sort_by_key(|&id| (std::cmp::Reverse(counts[id as usize]), id));
        ids.truncate(size);
        Self::of(ids)
    }

    /// These ids.
    pub fn of(mut ids: Vec<u32>) -> Self {
        ids.sort_unstable();
        let places = ids.iter().enumerate().map(|(place, &id)| (id, place as u32)).collect();
        Self::Some { ids, places }
    }

    /// How many ids there are.
    pub fn len(&self) -> usize {
        match self {
            Self::All(size) => *size,
            Self::Some { ids, .. } => ids.len(),
        }
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Where an id stands, if it is listed.
    pub fn place(&self, id: u32) -> Option<u32> {
        match self {
            Self::All(_) => Some(id),
            Self::Some { places, .. } => places.get(&id).copied(),
        }
    }

    /// The id at a place; the place itself where there is no such id.
    pub fn id(&self, place: u32) -> u32 {
        match self {
            Self::All(_) => place,
            Self::Some { ids, .. } => ids.get(place as usize).copied().unwrap_or(place),
        }
    }
}

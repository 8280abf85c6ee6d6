//! The shortlist: the part of the vocabulary that a drafter is tuned on.
//!
//! The vocabulary product is half of a tuning step, and on-policy text uses a small part of the vocabulary. A drafter
//! tuned on the most frequent ids of the text has exact probabilities over these ids; every other id gets a bias so
//! low that it is never drafted. The output stays lossless: the target verifies every token.

use std::collections::HashMap;

use candle_core::{Device, Result, Tensor};
use half::bf16;

/// The bias b2 of ids that a drafter was not tuned on, so low that they are never drafted.
pub const UNLISTED_BIAS: f32 = -1e4;

/// The token ids that are drafted: the whole vocabulary, or a list.
#[derive(Clone, Debug, PartialEq)]
pub enum Shortlist {
    /// The whole vocabulary of the given size.
    All(usize),
    /// A list of token ids, ascending.
    Some {
        /// The token ids of the shortlist.
        ids: Vec<u32>,
        /// Index in `ids` of each token id in the shortlist.
        places: HashMap<u32, u32>,
    },
}

impl Shortlist {
    /// Returns the `size` most frequent ids (ties go to the lowest id), or all ids if `size` is 0 or the vocabulary's
    /// size.
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

    /// Returns the shortlist of an exported drafter whose calibrator has the biases `b2`, one per id of the vocabulary.
    pub fn of_biases(b2: &[f32]) -> Self {
        // Drafters are exported in bf16.
        let unlisted = bf16::from_f32(UNLISTED_BIAS).to_f32();
        let listed = b2.iter().zip(0u32..).filter(|&(&bias, _)| bias > unlisted);
        let ids: Vec<u32> = listed.map(|(_, id)| id).collect();
        if ids.len() == b2.len() { Self::All(b2.len()) } else { Self::of(ids) }
    }

    /// Returns a shortlist of the given ids.
    pub fn of(mut ids: Vec<u32>) -> Self {
        ids.sort_unstable();
        let places = ids.iter().enumerate().map(|(place, &id)| (id, place as u32)).collect();
        Self::Some { ids, places }
    }

    /// Returns the number of token ids that may be drafted.
    pub fn len(&self) -> usize {
        match self {
            Self::All(size) => *size,
            Self::Some { ids, .. } => ids.len(),
        }
    }

    /// Returns whether the shortlist is empty.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns the rows of the shortlist's ids in `table`, which has a row for each id of the vocabulary.
    ///
    /// # Errors
    /// Candle's errors: an id outside the vocabulary, out of memory.
    pub fn rows(&self, table: &Tensor) -> Result<Tensor> {
        match self {
            Self::All(_) => Ok(table.clone()),
            Self::Some { ids, .. } => {
                let ids = Tensor::from_slice(ids, ids.len(), &Device::Cpu)?.to_device(table.device())?;
                table.index_select(&ids, 0)
            }
        }
    }

    /// Returns the index of an id in the shortlist, if it is listed.
    pub fn place(&self, id: u32) -> Option<u32> {
        match self {
            Self::All(_) => Some(id),
            Self::Some { places, .. } => places.get(&id).copied(),
        }
    }

    /// Returns the token id at index `place` of the shortlist, or `place` itself if the index is out of range.
    pub fn id(&self, place: u32) -> u32 {
        match self {
            Self::All(_) => place,
            Self::Some { ids, .. } => ids.get(place as usize).copied().unwrap_or(place),
        }
    }
}

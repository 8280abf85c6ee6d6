//! Random logit processors for property tests.

use std::sync::Arc;

use flexdraft::processors::LogitProcessors;
use proptest::prelude::*;

prop_compose! {
    /// Generates logit processors for a vocabulary of `vocab` ids; each kind of processor is often off. They never
    /// forbid every id: the mask allows all ids but one, and bad words have two ids or more.
    pub fn processors(vocab: usize)(
        repetition_penalty in prop_oneof![2 => Just(1.0f32), 1 => 0.3f32..3.0],
        frequency_penalty in prop_oneof![2 => Just(0.0f32), 1 => -2.0f32..2.0],
        presence_penalty in prop_oneof![2 => Just(0.0f32), 1 => -2.0f32..2.0],
        logit_bias in prop::collection::btree_map(0..vocab as u32, -3.0f32..3.0, 0..3),
        min_tokens in prop_oneof![1 => Just(0usize), 1 => 0usize..20],
        bad_words in prop::collection::vec(prop::collection::vec(0..vocab as u32, 2..4), 0..3),
        forbidden in prop::option::weighted(0.3, 0..vocab as u32),
    ) -> LogitProcessors {
        LogitProcessors {
            repetition_penalty,
            frequency_penalty,
            presence_penalty,
            logit_bias,
            min_tokens,
            bad_words,
            allowed: forbidden.map(|id| all_but(id, vocab)),
        }
    }
}

/// Returns a mask that allows every id but one.
pub fn all_but(id: u32, vocab: usize) -> Arc<[u32]> {
    (0..vocab.div_ceil(32) as u32)
        .map(|word| if word == id / 32 { !(1 << (id % 32)) } else { u32::MAX })
        .collect()
}

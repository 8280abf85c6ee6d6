//! The random-number contract: Philox 4x32-10, with the request's seed as key and the position as counter.
//!
//! Every random number is a pure function of the request's seed, the number's purpose, and the place in the
//! sequence where it is used. Nothing depends on the batch, the schedule or the order of execution.
//!
//! | word of the key | word of the counter |
//! |---|---|
//! | seed, low 32 bits | index: vocabulary id / 4, or 0 |
//! | seed, high 32 bits | purpose · 2¹⁶ + slot |
//! | | position, low 32 bits |
//! | | position, high 32 bits |
//!
//! Generator: Salmon et al., *Parallel random numbers: as easy as 1, 2, 3* (SC 2011).

/// The purpose for which a random number is drawn; it also decides which position the counter holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Purpose {
    /// A token drawn from the target: autoregressive steps, the first bonus token of every rule, and every
    /// draw of rule `match`, including drafts. Position: the token's own. Slot 0.
    TargetDraw = 1,
    /// A draft token of the rules `rejection` and `block`. Position: the position of c_0 of the step that verifies the
    /// draft. Slot: the draft token's own.
    DraftDraw = 2,
    /// The uniform number that decides whether draft token d_i is accepted. Position: the position of c_0. Slot i.
    AcceptanceUniform = 3,
    /// The bonus token of the rules `rejection` and `block`. Position: the position of c_0. Slot: the accepted length.
    ResidualDraw = 4,
}

/// The source of the random numbers of one draw.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stream {
    key: [u32; 2],
    counter: [u32; 3],
}

impl Stream {
    /// Returns the random numbers that the request with this seed uses for `purpose` at `position` and `slot` (below
    /// 2¹⁶).
    pub fn new(seed: u64, purpose: Purpose, slot: usize, position: usize) -> Self {
        let position = position as u64;
        Self {
            key: [seed as u32, (seed >> 32) as u32],
            counter: [
                (purpose as u32) << 16 | (slot as u32 & 0xffff),
                position as u32,
                (position >> 32) as u32,
            ],
        }
    }

    /// Returns the random numbers with which the request with this seed draws the token at `position` from the target.
    pub fn target_draw(seed: u64, position: usize) -> Self {
        Self::new(seed, Purpose::TargetDraw, 0, position)
    }

    /// Returns the seed, counter word 1 (purpose and slot) and the position, in the form of a kernel's parameters.
    pub(crate) fn parts(&self) -> (u64, u32, u64) {
        let join = |low: u32, high: u32| u64::from(high) << 32 | u64::from(low);
        let [purpose_and_slot, low, high] = self.counter;
        (join(self.key[0], self.key[1]), purpose_and_slot, join(low, high))
    }

    /// Returns a uniform number on [0, 1), a multiple of 2⁻³².
    pub fn uniform(&self) -> f64 {
        f64::from(self.words(0)[0]) / 4_294_967_296.0
    }

    /// Iterates over the standard Gumbel numbers of the vocabulary ids 0, 1, 2, …
    pub fn gumbels(self) -> impl Iterator<Item = f32> {
        (0u32..).flat_map(move |index| self.words(index).map(gumbel))
    }

    /// Returns the standard Gumbel number of vocabulary id `id`.
    pub fn gumbel(&self, id: u32) -> f32 {
        gumbel(self.words(id / 4)[id as usize % 4])
    }

    /// Returns the index with the largest sum of a score and the index's Gumbel number, ties to the lowest
    /// index. A NaN sum counts as −∞. Returns 0 if all sums are −∞.
    pub fn gumbel_argmax(&self, scores: impl IntoIterator<Item = f32>) -> u32 {
        let words = (0u32..).flat_map(|index| self.words(index));
        let mut best = (f32::NEG_INFINITY, 0);
        for (id, (score, word)) in scores.into_iter().zip(words).enumerate() {
            // The upper bound of a Gumbel number rules out nearly all ids, so these ids need no logarithm.
            if score + gumbel_bound(word) > best.0 {
                let sum = score + gumbel(word);
                if sum > best.0 {
                    best = (sum, id as u32);
                }
            }
        }
        best.1
    }

    fn words(&self, index: u32) -> [u32; 4] {
        let [purpose_and_slot, low, high] = self.counter;
        philox([index, purpose_and_slot, low, high], self.key)
    }
}

/// Returns the standard Gumbel number −ln(−ln u) for u = (word + ½) · 2⁻³². If u is near 1, −ln u is computed from 1 −
/// u.
fn gumbel(word: u32) -> f32 {
    const ULP: f32 = 1.0 / 4_294_967_296.0;
    let exponential = if word < 1 << 31 {
        -((word as f32 + 0.5) * ULP).ln()
    } else {
        -(-((u32::MAX - word) as f32 + 0.5) * ULP).ln_1p()
    };
    -exponential.ln()
}

/// Returns an upper bound of the Gumbel number of a random word: −ln u ≥ 1 − u = (2³² − word − ½) · 2⁻³² ≥ 2⁻¹⁻ᶻ, where
/// 2³² − 1 − word has z leading zeros, so −ln(−ln u) ≤ (z + 1) · ln 2. The factor is rounded up.
fn gumbel_bound(word: u32) -> f32 {
    (1 + (!word).leading_zeros()) as f32 * 0.693_2
}

/// Applies ten rounds of the random-number generator Philox 4x32.
pub fn philox(mut counter: [u32; 4], mut key: [u32; 2]) -> [u32; 4] {
    const MULTIPLIERS: [u64; 2] = [0xD251_1F53, 0xCD9E_8D57];
    const WEYL: [u32; 2] = [0x9E37_79B9, 0xBB67_AE85];
    for round in 0..10 {
        if round > 0 {
            key = [key[0].wrapping_add(WEYL[0]), key[1].wrapping_add(WEYL[1])];
        }
        let [a, b, c, d] = counter;
        let (first, second) = (MULTIPLIERS[0] * u64::from(a), MULTIPLIERS[1] * u64::from(c));
        counter = [
            (second >> 32) as u32 ^ b ^ key[0],
            second as u32,
            (first >> 32) as u32 ^ d ^ key[1],
            first as u32,
        ];
    }
    counter
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Compares Philox with known results from the Random123 distribution.
    #[test]
    fn philox_known_answers() {
        assert_eq!(philox([0; 4], [0; 2]), [0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8]);
        assert_eq!(philox([!0; 4], [!0; 2]), [0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd]);
        assert_eq!(
            philox([0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344], [0xa4093822, 0x299f31d0]),
            [0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1]
        );
    }

    #[test]
    fn gumbel_is_accurate_at_both_ends() {
        for word in [0, 1, 2, 1 << 20, (1 << 31) - 1, 1 << 31, u32::MAX - 1, u32::MAX] {
            let u = (f64::from(word) + 0.5) / 4_294_967_296.0;
            let expected = -(-u.ln()).ln();
            let found = f64::from(gumbel(word));
            assert!(
                (found - expected).abs() <= 1e-6 * expected.abs().max(1.0),
                "{word}: {found} vs {expected}"
            );
        }
    }

    #[test]
    fn numbers_of_an_id_do_not_depend_on_how_they_are_read() {
        let stream = Stream::new(0x0123_4567_89ab_cdef, Purpose::DraftDraw, 3, 1 << 40);
        for (id, g) in stream.gumbels().take(11).enumerate() {
            assert_eq!(g.to_bits(), stream.gumbel(id as u32).to_bits());
        }
        let others = [
            Stream::new(0x0123_4567_89ab_cdee, Purpose::DraftDraw, 3, 1 << 40),
            Stream::new(0x0123_4567_89ab_cdef, Purpose::ResidualDraw, 3, 1 << 40),
            Stream::new(0x0123_4567_89ab_cdef, Purpose::DraftDraw, 2, 1 << 40),
            Stream::new(0x0123_4567_89ab_cdef, Purpose::DraftDraw, 3, 0),
        ];
        assert!(others.iter().all(|other| other.uniform() != stream.uniform()));
    }

    #[test]
    fn the_bound_is_never_below_the_number() {
        let near = (0..32).flat_map(|bit| [1u32 << bit, (1 << bit) - 1, !(1 << bit), !((1 << bit) - 1)]);
        let spread = (0..100_000u32).map(|i| i.wrapping_mul(0x9E37_79B9));
        for word in near.chain(spread) {
            assert!(gumbel_bound(word) >= gumbel(word), "{word:#x}");
        }
    }

    #[test]
    fn the_argmax_is_that_of_the_sums() {
        for position in 0..200 {
            let stream = Stream::target_draw(9, position);
            let spread = position as f32 * 0.1;
            let mut scores: Vec<f32> =
                (0..501u32).map(|id| (id.wrapping_mul(2_654_435_761) >> 8) as f32 / 8e6 * spread).collect();
            scores[position] = f32::NAN;
            scores[position + 1] = f32::NEG_INFINITY;
            let sums = scores.iter().zip(stream.gumbels()).map(|(score, gumbel)| score + gumbel);
            assert_eq!(stream.gumbel_argmax(scores.iter().copied()), crate::sampling::argmax(sums));
        }
        let stream = Stream::target_draw(9, 0);
        assert_eq!(stream.gumbel_argmax([f32::NEG_INFINITY, f32::NAN, f32::NEG_INFINITY]), 0);
    }
}

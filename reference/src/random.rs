//! The random-number contract: which random number is used for which purpose.
//!
//! Every random number of a request is a function of its 64-bit seed and of *where* the number is used, never of how
//! many numbers were drawn before. A token therefore does not depend on the mode, the batch or the schedule that
//! produced it.
//!
//! The key and counter of one Philox block of four words:
//!
//! | | low word | high word |
//! |---|---|---|
//! | key | seed, low 32 bits | seed, high 32 bits |
//! | counter 0, 1 | index | `purpose << 16 \| slot` |
//! | counter 2, 3 | position, low 32 bits | position, high 32 bits |
//!
//! The purposes:
//!
//! | purpose | used by | position | slot |
//! |---|---|---|---|
//! | 1 target draw | autoregressive decoding, `match` (target and drafts), the first bonus token | the token's own | 0 |
//! | 2 draft draw | `rejection`, `block` | c_0 of the step that verifies the draft | j, of draft token d_j; 64 + j in a proposal |
//! | 3 acceptance uniform | `rejection`, `block` | c_0 of the step | i, of draft token d_i under test |
//! | 4 residual or final draw | `rejection`, `block` | c_0 of the step | a, the accepted length |
//!
//! A vocabulary draw takes one number per id: word id mod 4 of the block at index ⌊id / 4⌋. A uniform number is word
//! 0 of index 0.
//!
//! Purposes 2 to 4 use the step's position and not the token's because `block` looks past the point where it stops.
//! If the numbers were keyed by token position alone, the next step would use them again and the output would be
//! biased.

use crate::float::Float;
use crate::philox::philox;

/// The purpose of a random number; different purposes use different numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Purpose {
    /// A token drawn from the target's distribution at the token's own position.
    TargetDraw = 1,
    /// A draft token of the rules `rejection` and `block`.
    DraftDraw = 2,
    /// The uniform number against which a draft token is tested.
    Acceptance = 3,
    /// The bonus token of a step with `rejection` or `block`.
    FinalDraw = 4,
}

/// The random numbers of one draw: a seed and the whole counter except the index.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Numbers {
    /// Seed of the request that draws.
    pub seed: u64,
    /// Purpose of the random numbers.
    pub purpose: Purpose,
    /// Slot in the counter, as in the table of the [module](self).
    pub slot: u16,
    /// Position in the counter, as in the table of the [module](self).
    pub position: u64,
}

impl Numbers {
    /// Returns the random numbers with which the target draws the token at `position`.
    pub fn target_draw(seed: u64, position: usize) -> Self {
        Self { seed, purpose: Purpose::TargetDraw, slot: 0, position: position as u64 }
    }

    /// Returns the random numbers of `purpose` for slot `slot` of the step whose candidate c_0 is at position `start`.
    pub fn of_step(seed: u64, purpose: Purpose, slot: usize, start: usize) -> Self {
        Self { seed, purpose, slot: slot as u16, position: start as u64 }
    }

    /// Returns the four random 32-bit words of this draw for the counter's `index`.
    pub fn words(&self, index: u32) -> [u32; 4] {
        let counter = [
            index,
            (self.purpose as u32) << 16 | u32::from(self.slot),
            self.position as u32,
            (self.position >> 32) as u32,
        ];
        philox(counter, [self.seed as u32, (self.seed >> 32) as u32])
    }

    /// Returns the standard Gumbel number of vocabulary id `id`.
    pub fn gumbel<F: Float>(&self, id: u32) -> F {
        gumbel(self.words(id / 4)[id as usize % 4])
    }

    /// Returns the uniform number of this draw, in [0, 1).
    pub fn uniform<F: Float>(&self) -> F {
        uniform(self.words(0)[0])
    }
}

/// Converts a random word to `word` · 2⁻³² in [0, 1), rounded towards zero: otherwise the largest words would give 1 in
/// f32.
pub fn uniform<F: Float>(word: u32) -> F {
    F::from_u32_towards_zero(word) * F::from_f64(TWO_POW_MINUS_32)
}

/// Returns the standard Gumbel number G = −ln(−ln u) for u = (`word` + ½) · 2⁻³².
///
/// For u above ½, −ln u is computed as −ln(1 − (1 − u)): 1 − u is exact, while u itself would round to 1.
pub fn gumbel<F: Float>(word: u32) -> F {
    let u = (f64::from(word) + 0.5) * TWO_POW_MINUS_32;
    let exponential = if u > 0.5 { -(F::from_f64(-(1.0 - u)).ln_1p()) } else { -(F::from_f64(u).ln()) };
    -(exponential.ln())
}

const TWO_POW_MINUS_32: f64 = 1.0 / 4_294_967_296.0;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counter_words_follow_the_table() {
        let numbers = Numbers {
            seed: 0x0123_4567_89ab_cdef,
            purpose: Purpose::Acceptance,
            slot: 7,
            position: 0x0000_0005_0000_0009,
        };
        let words = philox([11, 0x0003_0007, 9, 5], [0x89ab_cdef, 0x0123_4567]);
        assert_eq!(numbers.words(11), words);
        assert_eq!(numbers.gumbel::<f64>(46), gumbel(words[2]));
        let first = philox([0, 0x0003_0007, 9, 5], [0x89ab_cdef, 0x0123_4567])[0];
        assert_eq!(numbers.uniform::<f64>(), f64::from(first) / 2f64.powi(32));
    }

    #[test]
    fn gumbel_keeps_its_precision_at_both_ends() {
        // The extreme uniforms are u = 2⁻³³ and 1 − 2⁻³³: ln(33 ln 2) and, as −ln(1 − x) = x + x²/2 + …, 33 ln 2.
        let ln2 = std::f64::consts::LN_2;
        assert!((gumbel::<f64>(0) + (33.0 * ln2).ln()).abs() < 1e-14);
        assert!((gumbel::<f64>(u32::MAX) - 33.0 * ln2).abs() < 1e-9);
        assert!((gumbel::<f32>(u32::MAX) - (33.0 * ln2) as f32).abs() < 1e-5);
        for word in [0, 1, 1 << 20, 0x7fff_ffff, 0x8000_0000, 0xffff_ff00, u32::MAX - 1] {
            assert!((gumbel::<f64>(word) - f64::from(gumbel::<f32>(word))).abs() < 4e-6, "{word:#x}");
        }
    }

    #[test]
    fn uniforms_stay_below_one() {
        assert!(uniform::<f32>(u32::MAX) < 1.0);
        assert!(uniform::<f64>(u32::MAX) < 1.0);
        assert_eq!(uniform::<f32>(0), 0.0);
        assert_eq!(uniform::<f32>(0x4000_0000), 0.25);
    }
}

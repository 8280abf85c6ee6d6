//! The random-number contract: which random number is used for what.
//!
//! Every random number of a request is a function of its 64-bit seed and of *where* the number is
//! used, never of how many numbers were drawn before. So a token does not depend on the mode, the
//! batch or the schedule that produced it.
//!
//! One Philox block of four words belongs to
//!
//! | | low word | high word |
//! |---|---|---|
//! | key | seed, low 32 bits | seed, high 32 bits |
//! | counter 0, 1 | index | `purpose << 16 \| slot` |
//! | counter 2, 3 | position, low 32 bits | position, high 32 bits |
//!
//! with the purposes
//!
//! | purpose | used by | position | slot |
//! |---|---|---|---|
//! | 1 target draw | autoregressive decoding, `match` (target and drafts), the first bonus token | the token's own | 0 |
//! | 2 draft draw | `rejection`, `block` | c_0 of the step that verifies the draft | j, of draft token d_j |
//! | 3 acceptance uniform | `rejection`, `block` | c_0 of the step | i, of draft token d_i under test |
//! | 4 residual or final draw | `rejection`, `block` | c_0 of the step | a, the accepted length |
//!
//! A vocabulary draw takes one number an id: word id mod 4 of index ⌊id / 4⌋. A uniform is word 0 of
//! index 0.
//!
//! Why purposes 2 to 4 carry the step's position and not the token's: `block` looks past the point
//! where it stops. Keyed by token position alone, the next step would use those numbers again and
//! the output would be biased.

use crate::float::Float;
use crate::philox::philox;

/// What random numbers are for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Purpose {
    /// A token drawn from the target's distribution at the token's own position.
    TargetDraw = 1,
    /// A draft token, `rejection` and `block`.
    DraftDraw = 2,
    /// The uniform against which a draft token is tested.
    Acceptance = 3,
    /// The bonus token of a step, `rejection` and `block`.
    FinalDraw = 4,
}

/// The random numbers of one draw: a seed and all of the counter but the index.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Numbers {
    /// The request's seed.
    pub seed: u64,
    /// What the numbers are for.
    pub purpose: Purpose,
    /// The slot, by the table of the [module](self).
    pub slot: u16,
    /// The position, by the table of the [module](self).
    pub position: u64,
}

impl Numbers {
    /// The numbers with which the target draws the token at `position`.
    pub fn target_draw(seed: u64, position: usize) -> Self {
        Self { seed, purpose: Purpose::TargetDraw, slot: 0, position: position as u64 }
    }

    /// The numbers of `purpose` for slot `slot` of the step whose c_0 stands at `start`.
    pub fn of_step(seed: u64, purpose: Purpose, slot: usize, start: usize) -> Self {
        Self { seed, purpose, slot: slot as u16, position: start as u64 }
    }

    /// The four words at `index`.
    pub fn words(&self, index: u32) -> [u32; 4] {
        let counter = [
            index,
            (self.purpose as u32) << 16 | u32::from(self.slot),
            self.position as u32,
            (self.position >> 32) as u32,
        ];
        philox(counter, [self.seed as u32, (self.seed >> 32) as u32])
    }

    /// The standard Gumbel number of vocabulary id `id`.
    pub fn gumbel<F: Float>(&self, id: u32) -> F {
        gumbel(self.words(id / 4)[id as usize % 4])
    }

    /// The uniform number of this draw, in [0, 1).
    pub fn uniform<F: Float>(&self) -> F {
        uniform(self.words(0)[0])
    }
}

/// `word` · 2⁻³², in [0, 1): rounded towards zero, or the largest words would give 1 in f32.
pub fn uniform<F: Float>(word: u32) -> F {
    F::from_u32_towards_zero(word) * F::from_f64(TWO_POW_MINUS_32)
}

/// G = −ln(−ln u) for u = (`word` + ½) · 2⁻³²: a standard Gumbel number.
///
/// −ln u is taken as −ln(1 − (1 − u)) above ½: 1 − u is exact, and u itself would round to 1.
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
        // u = 2⁻³³ and 1 − 2⁻³³: ln(33 ln 2) and, as −ln(1 − x) = x + x²/2 + …, 33 ln 2.
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

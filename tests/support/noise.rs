//! Pseudo-random numbers that are the same on every machine and with every version of every crate.

use half::bf16;

/// The xorshift generator with 64 bits of state.
pub struct Xorshift(u64);

impl Xorshift {
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// Returns the next number, uniform in [0, 1).
    pub fn uniform(&mut self) -> f32 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 40) as f32 / (1u32 << 24) as f32
    }
}

/// Returns `len` numbers, uniform in [-2, 2).
pub fn noise(seed: u64, len: usize) -> Vec<f32> {
    let mut random = Xorshift::new(seed);
    (0..len).map(|_| random.uniform() * 4.0 - 2.0).collect()
}

/// Returns the numbers of [`noise`], rounded to bf16.
pub fn halves(seed: u64, len: usize) -> Vec<bf16> {
    noise(seed, len).into_iter().map(bf16::from_f32).collect()
}

/// The SplitMix64 generator, which takes any seed as it is: seeds that are near each other give unrelated numbers.
pub struct SplitMix(pub u64);

impl SplitMix {
    /// Returns the next 64 bits.
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    /// Returns the next number, uniform in [-1, 1).
    pub fn signed(&mut self) -> f32 {
        (self.bits() >> 40) as f32 / (1u32 << 23) as f32 - 1.0
    }
}

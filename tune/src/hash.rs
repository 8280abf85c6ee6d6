//! Hashes that identify contents, and random bits that depend only on contents.

use flexdraft::model::TargetWeights;
use flexdraft::random::philox;
use flexdraft::tensor::{Elements, Tensor};

/// A 64-bit FNV-1a hash. It tells files and prompts apart, but does not resist deliberate collisions.
#[derive(Clone, Copy, Debug)]
pub struct Fnv(u64);

impl Default for Fnv {
    fn default() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }
}

impl Fnv {
    /// Returns the hash of the bytes so far, followed by `bytes`.
    pub fn with(mut self, bytes: &[u8]) -> Self {
        for &byte in bytes {
            self.0 = (self.0 ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3);
        }
        self
    }

    /// Returns the hash as a number of 64 bits.
    pub fn value(self) -> u64 {
        self.0
    }

    /// Returns the hash as hexadecimal digits.
    pub fn hex(self) -> String {
        format!("{:016x}", self.0)
    }
}

/// Returns the hash of token ids.
pub fn of_ids(ids: &[u32]) -> Fnv {
    ids.iter().fold(Fnv::default(), |hash, id| hash.with(&id.to_le_bytes()))
}

/// Returns the hash of a target's shapes, final norm and part of its embedding: enough to notice that a run is
/// continued with another target, without reading all weights.
pub fn of_target(target: &TargetWeights) -> Fnv {
    /// Maximum number of elements of the embedding that are hashed.
    const ELEMENTS: usize = 1 << 16;
    let config = &target.config;
    let shapes = [config.layers, config.hidden_size, config.intermediate_size, config.vocab_size];
    let hash = shapes.iter().fold(Fnv::default(), |hash, &n| hash.with(&(n as u64).to_le_bytes()));
    let add = |hash, tensor: &Tensor| leading(&tensor.elements(), ELEMENTS, hash);
    add(add(hash, &target.norm), &target.embed)
}

fn leading(elements: &Elements<'_>, count: usize, hash: Fnv) -> Fnv {
    let mut values = vec![0.0; elements.len().min(count)];
    elements.read_f32(0..values.len(), &mut values);
    values.iter().fold(hash, |hash, value| hash.with(&value.to_le_bytes()))
}

/// Returns random bits as a function of `seed`, a purpose and an index; computed with Philox, as in the runner.
pub fn random_bits(seed: u64, purpose: u32, index: u64) -> u64 {
    let [low, high, ..] =
        philox([index as u32, (index >> 32) as u32, purpose, 0], [seed as u32, (seed >> 32) as u32]);
    u64::from(high) << 32 | u64::from(low)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fnv_is_the_published_one() {
        assert_eq!(Fnv::default().with(b"a").hex(), "af63dc4c8601ec8c");
        assert_eq!(Fnv::default().with(b"foo").with(b"bar").hex(), "85944171f73967e8");
    }

    #[test]
    fn bits_depend_on_everything() {
        let bits = random_bits(1, 2, 3);
        assert_eq!(bits, random_bits(1, 2, 3));
        for other in
            [random_bits(2, 2, 3), random_bits(1, 3, 3), random_bits(1, 2, 4), random_bits(1, 2, 3 << 32)]
        {
            assert_ne!(bits, other);
        }
    }
}

//! Generators of random rows and parameters for the sampling tests.

use flexdraft::random::Purpose;
use flexdraft::sampling::SamplingParams;
use proptest::prelude::*;

use super::way::Way;
use crate::support::noise::Xorshift;

const INF: f32 = f32::INFINITY;
const NAN: f32 = f32::NAN;

pub fn noise(seed: u64, len: usize, scale: f32) -> Vec<f32> {
    let mut random = Xorshift::new(seed);
    let mut next = || random.uniform();
    // The sum of three uniform numbers, which is roughly bell-shaped, is the test's noise.
    (0..len).map(|_| (next() + next() + next() - 1.5) * 2.0 * scale).collect()
}

#[derive(Clone, Copy, Debug)]
pub enum Shape {
    Bell(f32),
    /// Logits with few distinct values, so that ties are everywhere.
    Steps(f32),
    /// Logits so close together that many share a bin of truncation's histogram.
    Crowd,
    /// Logits like the logits of `Bell`, with some NaN and infinities.
    Odd,
}

pub fn logits(seed: u64, vocab: usize, shape: Shape) -> Vec<f32> {
    let mut row = match shape {
        Shape::Bell(scale) => noise(seed, vocab, scale),
        Shape::Steps(step) => {
            noise(seed, vocab, 3.0).into_iter().map(|x| (x * step).round() / step).collect()
        }
        Shape::Crowd => noise(seed, vocab, 1e-3),
        Shape::Odd => noise(seed, vocab, 2.0),
    };
    if let Shape::Odd = shape {
        let odd = [NAN, -INF, INF, -0.0, 3e38, -3e38, 1e-40];
        for i in 0..1 + vocab / 50 {
            let at = (seed as usize).wrapping_add(i * 7919) % vocab;
            row[at] = odd[(seed as usize / 8 + i) % odd.len()];
        }
    }
    row
}

pub fn shape() -> impl Strategy<Value = Shape> {
    prop_oneof![
        4 => (0.1f32..8.0).prop_map(Shape::Bell),
        2 => prop::sample::select(vec![0.5f32, 1.0, 4.0]).prop_map(Shape::Steps),
        1 => Just(Shape::Crowd),
        1 => Just(Shape::Odd),
    ]
}

pub fn params() -> impl Strategy<Value = SamplingParams> {
    let extremes = vec![1e-38, 1e-3, 1e4, SamplingParams::MAX_TEMPERATURE];
    let temperature = prop_oneof![
        2 => Just(0.0f32), 3 => Just(1.0), 4 => 0.05f32..3.0, 1 => prop::sample::select(extremes)
    ];
    let top_k = prop_oneof![3 => Just(0usize), 2 => 1usize..60, 1 => 60usize..3000, 1 => Just(usize::MAX)];
    let top_p = prop_oneof![3 => Just(1.0f32), 3 => 0.05f32..1.0, 1 => prop::sample::select(vec![0.5f32, 1e-9, 0.999])];
    let min_p = prop_oneof![3 => Just(0.0f32), 2 => 0.001f32..0.9, 1 => Just(1e-12f32)];
    (temperature, top_k, top_p, min_p).prop_map(|(temperature, top_k, top_p, min_p)| SamplingParams {
        temperature,
        top_k,
        top_p,
        min_p,
    })
}

pub fn numbers() -> impl Strategy<Value = Option<(u64, Purpose, usize, usize)>> {
    let purpose = prop::sample::select(vec![Purpose::TargetDraw, Purpose::DraftDraw, Purpose::ResidualDraw]);
    let position = prop_oneof![0usize..10_000, (1usize << 40)..(1 << 50)];
    prop::option::weighted(0.8, (any::<u64>(), purpose, 0usize..20, position))
}

pub fn way(vocab: usize) -> impl Strategy<Value = Way> {
    let draft = prop_oneof![Just(-1), 0..vocab as i32];
    (params(), numbers(), draft).prop_map(|(params, numbers, draft)| Way { params, numbers, draft })
}

pub fn vocab() -> impl Strategy<Value = usize> {
    prop_oneof![4 => 1usize..300, 3 => 1000usize..1100, 3 => 1100usize..5000]
}

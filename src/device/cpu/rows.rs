//! Reductions over a whole row of logits: arg-max and confidence.

use super::simd::{Kernel, LANES, Simd, exp};
use crate::sampling;

/// Cost of a row of logits in multiply-adds per id: only small vocabularies stay on one thread.
pub(super) const WORK: usize = 8;

/// Number of values summed in f32 before the sum continues in f64.
const BLOCK: usize = 1024;

/// Finds the id of the largest value, as defined by [`sampling::argmax`].
pub(super) struct ArgMax<'a>(pub(super) &'a [f32]);

impl Kernel for ArgMax<'_> {
    type Output = u32;

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) -> u32 {
        let largest = largest(simd, self.0);
        // NaN and −∞ never exceed the largest value, so the first match is the lowest id.
        self.0.iter().position(|&value| value == largest).filter(|_| largest > f32::NEG_INFINITY).unwrap_or(0)
            as u32
    }
}

/// Computes the largest probability of softmax at temperature 1, as defined by [`sampling::confidence`].
pub(super) struct ConfidenceKernel<'a>(pub(super) &'a [f32]);

impl Kernel for ConfidenceKernel<'_> {
    type Output = f32;

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) -> f32 {
        let largest = largest(simd, self.0);
        if largest.is_infinite() {
            return sampling::confidence(self.0);
        }
        let (shift, zero_weight) = (simd.splat(largest), simd.splat(f32::NEG_INFINITY));
        let mut total = 0.0;
        for block in self.0.chunks(BLOCK) {
            let mut sum = simd.splat(0.0);
            let (chunks, rest) = block.as_chunks::<LANES>();
            let last = filled(rest);
            for chunk in chunks.iter().chain([&last]) {
                // A NaN among the logits counts as −∞.
                let score = simd.max(simd.sub(simd.load(chunk), shift), zero_weight);
                sum = simd.add(sum, exp(simd, score));
            }
            total += f64::from(simd.sum(sum));
        }
        (1.0 / total) as f32
    }
}

/// Returns the largest value that is not NaN; −∞ if there is none.
#[inline(always)]
fn largest<S: Simd>(simd: S, values: &[f32]) -> f32 {
    let (blocks, rest) = values.as_chunks::<{ 4 * LANES }>();
    let mut best = [simd.splat(f32::NEG_INFINITY); 4];
    for block in blocks {
        let chunks = block.as_chunks::<LANES>().0;
        for i in 0..4 {
            // For a NaN and a number, `max` returns the number.
            best[i] = simd.max(simd.load(&chunks[i]), best[i]);
        }
    }
    let (chunks, rest) = rest.as_chunks::<LANES>();
    for chunk in chunks.iter().chain([&filled(rest)]) {
        best[0] = simd.max(simd.load(chunk), best[0]);
    }
    let best = simd.max(simd.max(best[0], best[1]), simd.max(best[2], best[3]));
    let mut lanes = [0.0; LANES];
    simd.store(best, &mut lanes);
    lanes.into_iter().fold(f32::NEG_INFINITY, f32::max)
}

/// Returns the values of `rest`, fewer than sixteen, padded with −∞ to sixteen.
#[inline(always)]
fn filled(rest: &[f32]) -> [f32; LANES] {
    let mut lanes = [f32::NEG_INFINITY; LANES];
    for (lane, &value) in lanes.iter_mut().zip(rest) {
        *lane = value;
    }
    lanes
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::simd::{InstructionSet, Vectors};
    use super::*;

    fn value() -> impl Strategy<Value = f32> {
        prop_oneof![
            12 => -30f32..30.0,
            4 => (-3i8..4).prop_map(f32::from),
            1 => prop::sample::select(vec![f32::NAN, f32::NEG_INFINITY, 0.0, -0.0, -3e38, 3e38]),
        ]
    }

    fn agree(values: &[f32]) -> Result<(), TestCaseError> {
        for set in InstructionSet::available() {
            let vectors = Vectors::new(set).unwrap();
            let expected = sampling::argmax(values.iter().copied());
            prop_assert_eq!(vectors.run(ArgMax(values)), expected, "{:?}", set);
            let (found, expected) = (vectors.run(ConfidenceKernel(values)), sampling::confidence(values));
            prop_assert!((found - expected).abs() <= 1e-6 * expected, "{:?}: {} {}", set, found, expected);
        }
        Ok(())
    }

    proptest! {
        #[test]
        fn agree_with_their_definitions(values in prop::collection::vec(value(), 1..3000)) {
            agree(&values)?;
        }

        #[test]
        fn agree_on_few_values(values in prop::collection::vec(value(), 1..40), infinity in 0usize..80) {
            let mut values = values;
            if let Some(value) = values.get_mut(infinity) {
                *value = f32::INFINITY;
            }
            agree(&values)?;
        }
    }

    #[test]
    fn without_a_number_the_first_id_has_all() {
        for values in [vec![f32::NAN; 21], vec![f32::NEG_INFINITY; 3], vec![f32::INFINITY]] {
            agree(&values).unwrap();
        }
    }
}

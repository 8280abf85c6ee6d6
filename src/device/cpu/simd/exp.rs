//! The exponential function on vectors.

use super::Simd;

/// ln 2 as a sum of two parts: the first part ends in zero bits, so that its products with the integer n are
/// exact.
const LN_2: [f32; 2] = [0.693_359_4, -2.121_944_4e-4];

/// Coefficients of the polynomial in parentheses in exp(r) = 1 + r + r² · (…), |r| ≤ ln 2 / 2, highest power
/// first (Cephes, `expf`).
const COEFFICIENTS: [f32; 6] =
    [1.987_569_1e-4, 1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5];

/// Returns exp(x), within 2 units in the last place; 0 below −104, ∞ above 89, NaN for NaN.
///
/// exp(x) = 2ⁿ · exp(r) with n = round(x / ln 2) and r = x − n · ln 2.
#[inline(always)]
pub(in super::super) fn exp<S: Simd>(simd: S, x: S::Lanes) -> S::Lanes {
    // Adding 1.5 · 2²³ rounds a number to an integer, because no bits are left for a fraction.
    const ROUND: f32 = 12_582_912.0;
    // The constants are the first arguments of `max` and `min`, so that a NaN in x stays a NaN.
    let x = simd.max(simd.splat(-104.0), simd.min(simd.splat(89.0), x));
    let shifted = simd.mul_add(x, simd.splat(std::f32::consts::LOG2_E), simd.splat(ROUND));
    let n = simd.sub(shifted, simd.splat(ROUND));
    let r = simd.mul_add(n, simd.splat(-LN_2[0]), x);
    let r = simd.mul_add(n, simd.splat(-LN_2[1]), r);
    let mut sum = simd.splat(COEFFICIENTS[0]);
    for &coefficient in &COEFFICIENTS[1..] {
        sum = simd.mul_add(sum, r, simd.splat(coefficient));
    }
    let fraction = simd.add(simd.mul_add(sum, simd.mul(r, r), r), simd.splat(1.0));
    simd.scale(fraction, n)
}

#[cfg(test)]
mod tests {
    use super::super::{InstructionSet, Kernel, LANES, Vectors};
    use super::*;

    struct Exp([f32; LANES]);

    impl Kernel for Exp {
        type Output = [f32; LANES];

        #[inline(always)]
        fn run<S: Simd>(self, simd: S) -> [f32; LANES] {
            let mut out = [0.0; LANES];
            simd.store(exp(simd, simd.load(&self.0)), &mut out);
            out
        }
    }

    #[test]
    fn within_two_units_in_the_last_place() {
        for set in InstructionSet::available() {
            let vectors = Vectors::new(set).unwrap();
            for block in 0..50_000 {
                // The test covers x from −104 to 88.7, where exp(x) is finite in f32.
                let x: [f32; LANES] =
                    std::array::from_fn(|i| -104.0 + 192.7 * ((block * LANES + i) as f32 / 800_000.0));
                for (x, found) in x.into_iter().zip(vectors.run(Exp(x))) {
                    let exact = f64::from(x).exp();
                    let ulp = f64::from((exact as f32).next_up() - exact as f32);
                    assert!((f64::from(found) - exact).abs() <= 2.0 * ulp, "{set:?}: exp({x}) = {found}");
                }
            }
        }
    }

    #[test]
    fn fused_instruction_sets_agree_in_bits() {
        let sets: Vec<_> = InstructionSet::available().into_iter().skip(1).filter_map(Vectors::new).collect();
        for block in 0..20_000 {
            let x = std::array::from_fn(|i| -110.0 + 200.0 * ((block * LANES + i) as f32 / 320_000.0));
            let results: Vec<_> = sets.iter().map(|vectors| vectors.run(Exp(x)).map(f32::to_bits)).collect();
            assert!(results.windows(2).all(|pair| pair[0] == pair[1]), "{x:?}");
        }
    }

    #[test]
    fn the_ends_of_the_line() {
        const INF: f32 = f32::INFINITY;
        let mut x = [0.0; LANES];
        x[..6].copy_from_slice(&[-INF, -1e30, INF, 1e30, f32::NAN, -0.0]);
        for set in InstructionSet::available() {
            let found = Vectors::new(set).unwrap().run(Exp(x));
            assert_eq!(found[..4], [0.0, 0.0, INF, INF], "{set:?}");
            assert!(found[4].is_nan(), "{set:?}");
            assert_eq!(found[5..], [1.0; 11], "{set:?}");
        }
    }
}

//! The lanes of x86-64 with AVX2, FMA and F16C.
//!
//! Intel's guide describes each instruction: <https://www.intel.com/content/www/us/en/docs/intrinsics-guide>.

use std::arch::x86_64::*;

use half::{bf16, f16};

use super::lanes::{BYTES, Kernel, LANES, PAIRS, Simd};

/// Proof that the machine has AVX2, FMA and F16C.
#[derive(Clone, Copy, Debug)]
pub(in super::super) struct Avx2(());

impl Avx2 {
    pub(super) fn detect() -> Option<Self> {
        let found = is_x86_feature_detected!("avx2")
            && is_x86_feature_detected!("fma")
            && is_x86_feature_detected!("f16c");
        found.then_some(Self(()))
    }

    pub(super) fn run<K: Kernel>(self, kernel: K) -> K::Output {
        #[target_feature(enable = "avx2,fma,f16c")]
        fn enabled<K: Kernel>(simd: Avx2, kernel: K) -> K::Output {
            kernel.run(simd)
        }
        // SAFETY: `self` exists, so the machine has the three features.
        unsafe { enabled(self, kernel) }
    }
}

impl Simd for Avx2 {
    /// Two AVX registers: lanes 0..8 and lanes 8..16.
    type Lanes = [__m256; 2];

    const REGISTERS: usize = 8;

    #[inline(always)]
    fn splat(self, value: f32) -> Self::Lanes {
        // SAFETY: `self` exists, so the machine has AVX2.
        unsafe { [_mm256_set1_ps(value); 2] }
    }

    #[inline(always)]
    fn load(self, from: &[f32; LANES]) -> Self::Lanes {
        let from = from.as_ptr();
        // SAFETY: `self` exists, so the machine has AVX2; both loads are within the 16 elements.
        unsafe { [_mm256_loadu_ps(from), _mm256_loadu_ps(from.add(8))] }
    }

    #[inline(always)]
    fn load_f16(self, from: &[f16; LANES]) -> Self::Lanes {
        let from = from.as_ptr().cast::<__m128i>();
        // SAFETY: `self` exists, so the machine has AVX2 and F16C; both loads of 8 elements are
        // within the 16, and need no alignment.
        unsafe { [_mm256_cvtph_ps(_mm_loadu_si128(from)), _mm256_cvtph_ps(_mm_loadu_si128(from.add(1)))] }
    }

    #[inline(always)]
    fn load_bf16(self, from: &[bf16; LANES]) -> Self::Lanes {
        let from = from.as_ptr().cast::<__m128i>();
        // SAFETY: `self` exists, so the machine has AVX2; both loads of 8 elements are within the
        // 16, and need no alignment.
        unsafe {
            let low = _mm256_cvtepu16_epi32(_mm_loadu_si128(from));
            let high = _mm256_cvtepu16_epi32(_mm_loadu_si128(from.add(1)));
            [
                _mm256_castsi256_ps(_mm256_slli_epi32::<16>(low)),
                _mm256_castsi256_ps(_mm256_slli_epi32::<16>(high)),
            ]
        }
    }

    #[inline(always)]
    fn store(self, lanes: Self::Lanes, to: &mut [f32; LANES]) {
        let to = to.as_mut_ptr();
        // SAFETY: `self` exists, so the machine has AVX2; both stores are within the 16 elements.
        unsafe {
            _mm256_storeu_ps(to, lanes[0]);
            _mm256_storeu_ps(to.add(8), lanes[1]);
        }
    }

    #[inline(always)]
    fn add(self, a: Self::Lanes, b: Self::Lanes) -> Self::Lanes {
        // SAFETY: `self` exists, so the machine has AVX2.
        unsafe { [_mm256_add_ps(a[0], b[0]), _mm256_add_ps(a[1], b[1])] }
    }

    #[inline(always)]
    fn sub(self, a: Self::Lanes, b: Self::Lanes) -> Self::Lanes {
        // SAFETY: `self` exists, so the machine has AVX2.
        unsafe { [_mm256_sub_ps(a[0], b[0]), _mm256_sub_ps(a[1], b[1])] }
    }

    #[inline(always)]
    fn mul(self, a: Self::Lanes, b: Self::Lanes) -> Self::Lanes {
        // SAFETY: `self` exists, so the machine has AVX2.
        unsafe { [_mm256_mul_ps(a[0], b[0]), _mm256_mul_ps(a[1], b[1])] }
    }

    #[inline(always)]
    fn div(self, a: Self::Lanes, b: Self::Lanes) -> Self::Lanes {
        // SAFETY: `self` exists, so the machine has AVX2.
        unsafe { [_mm256_div_ps(a[0], b[0]), _mm256_div_ps(a[1], b[1])] }
    }

    #[inline(always)]
    fn max(self, a: Self::Lanes, b: Self::Lanes) -> Self::Lanes {
        // SAFETY: `self` exists, so the machine has AVX2.
        unsafe { [_mm256_max_ps(a[0], b[0]), _mm256_max_ps(a[1], b[1])] }
    }

    #[inline(always)]
    fn min(self, a: Self::Lanes, b: Self::Lanes) -> Self::Lanes {
        // SAFETY: `self` exists, so the machine has AVX2.
        unsafe { [_mm256_min_ps(a[0], b[0]), _mm256_min_ps(a[1], b[1])] }
    }

    #[inline(always)]
    fn scale(self, x: Self::Lanes, n: Self::Lanes) -> Self::Lanes {
        // SAFETY: `self` exists, so the machine has AVX2.
        unsafe { [scale8(x[0], n[0]), scale8(x[1], n[1])] }
    }

    #[inline(always)]
    fn mul_add(self, a: Self::Lanes, b: Self::Lanes, c: Self::Lanes) -> Self::Lanes {
        // SAFETY: `self` exists, so the machine has FMA.
        unsafe { [_mm256_fmadd_ps(a[0], b[0], c[0]), _mm256_fmadd_ps(a[1], b[1], c[1])] }
    }

    /// Two AVX registers of 16 bf16 elements each.
    type Pairs = [__m256i; 2];

    #[inline(always)]
    fn load_pairs(self, from: &[bf16; PAIRS]) -> Self::Pairs {
        let from = from.as_ptr().cast::<__m256i>();
        // SAFETY: `self` exists, so the machine has AVX2; both loads of 16 elements are within the 32,
        // and need no alignment.
        unsafe { [_mm256_loadu_si256(from), _mm256_loadu_si256(from.add(1))] }
    }

    #[inline(always)]
    fn dot_pairs(self, a: Self::Pairs, b: Self::Pairs, c: Self::Lanes) -> Self::Lanes {
        // SAFETY: `self` exists, so the machine has AVX2 and FMA.
        unsafe {
            [
                _mm256_fmadd_ps(even8(a[0]), even8(b[0]), _mm256_fmadd_ps(odd8(a[0]), odd8(b[0]), c[0])),
                _mm256_fmadd_ps(even8(a[1]), even8(b[1]), _mm256_fmadd_ps(odd8(a[1]), odd8(b[1]), c[1])),
            ]
        }
    }

    /// Two AVX registers of eight integers each.
    type Ints = [__m256i; 2];

    #[inline(always)]
    fn load_u8(self, from: &[u8; LANES]) -> Self::Ints {
        let from = from.as_ptr();
        // SAFETY: `self` exists, so the machine has AVX2; both loads of 8 bytes are within the 16, and need no
        // alignment.
        unsafe {
            [
                _mm256_cvtepu8_epi32(_mm_loadl_epi64(from.cast())),
                _mm256_cvtepu8_epi32(_mm_loadl_epi64(from.add(8).cast())),
            ]
        }
    }

    #[inline(always)]
    fn load_i8(self, from: &[u8; LANES]) -> Self::Ints {
        let from = from.as_ptr();
        // SAFETY: as for `load_u8`.
        unsafe {
            [
                _mm256_cvtepi8_epi32(_mm_loadl_epi64(from.cast())),
                _mm256_cvtepi8_epi32(_mm_loadl_epi64(from.add(8).cast())),
            ]
        }
    }

    #[inline(always)]
    fn shift_right(self, x: Self::Ints, count: u32) -> Self::Ints {
        // SAFETY: `self` exists, so the machine has AVX2.
        unsafe {
            let count = _mm_cvtsi32_si128(count.cast_signed());
            [_mm256_srl_epi32(x[0], count), _mm256_srl_epi32(x[1], count)]
        }
    }

    #[inline(always)]
    fn shift_left(self, x: Self::Ints, count: u32) -> Self::Ints {
        // SAFETY: `self` exists, so the machine has AVX2.
        unsafe {
            let count = _mm_cvtsi32_si128(count.cast_signed());
            [_mm256_sll_epi32(x[0], count), _mm256_sll_epi32(x[1], count)]
        }
    }

    #[inline(always)]
    fn and(self, x: Self::Ints, mask: i32) -> Self::Ints {
        // SAFETY: `self` exists, so the machine has AVX2.
        unsafe {
            let mask = _mm256_set1_epi32(mask);
            [_mm256_and_si256(x[0], mask), _mm256_and_si256(x[1], mask)]
        }
    }

    #[inline(always)]
    fn or(self, a: Self::Ints, b: Self::Ints) -> Self::Ints {
        // SAFETY: `self` exists, so the machine has AVX2.
        unsafe { [_mm256_or_si256(a[0], b[0]), _mm256_or_si256(a[1], b[1])] }
    }

    #[inline(always)]
    fn to_lanes(self, x: Self::Ints) -> Self::Lanes {
        // SAFETY: `self` exists, so the machine has AVX2.
        unsafe { [_mm256_cvtepi32_ps(x[0]), _mm256_cvtepi32_ps(x[1])] }
    }

    #[inline(always)]
    fn splat_f16(self, bytes: [u8; 2]) -> Self::Lanes {
        // SAFETY: `self` exists, so the machine has AVX2 and F16C.
        unsafe { [_mm256_cvtph_ps(_mm_set1_epi16(i16::from_le_bytes(bytes))); 2] }
    }

    /// All lanes hold the scale in the first register, and the offset in the second.
    type Affine = [__m256; 2];

    #[inline(always)]
    fn affine(self, scale: Self::Lanes, offset: Self::Lanes) -> Self::Affine {
        [scale[0], offset[0]]
    }

    #[inline(always)]
    fn apply(self, [scale, offset]: Self::Affine, q: Self::Ints) -> Self::Lanes {
        self.mul_add(self.to_lanes(self.and(q, 0xf)), [scale; 2], [offset; 2])
    }

    #[inline(always)]
    fn halves(self, low: Self::Lanes, high: Self::Lanes) -> Self::Lanes {
        [low[0], high[1]]
    }

    /// Two AVX registers of 32 bytes each.
    type Bytes = [__m256i; 2];

    #[inline(always)]
    fn load_bytes(self, from: &[u8; BYTES]) -> Self::Bytes {
        let from = from.as_ptr().cast::<__m256i>();
        // SAFETY: `self` exists, so the machine has AVX2; both loads of 32 bytes are within the 64, and need no alignment.
        unsafe { [_mm256_loadu_si256(from), _mm256_loadu_si256(from.add(1))] }
    }

    #[inline(always)]
    fn join(self, low: &[u8; BYTES / 2], high: &[u8; BYTES / 2]) -> Self::Bytes {
        // SAFETY: `self` exists, so the machine has AVX2; both loads are of 32 bytes, and need no alignment.
        unsafe { [_mm256_loadu_si256(low.as_ptr().cast()), _mm256_loadu_si256(high.as_ptr().cast())] }
    }

    #[inline(always)]
    fn nibbles(self, first: &[u8; LANES], second: &[u8; LANES]) -> Self::Bytes {
        // SAFETY: `self` exists, so the machine has AVX2; both loads are of 16 bytes, and need no alignment.
        unsafe {
            [
                nibbles32(_mm_loadu_si128(first.as_ptr().cast())),
                nibbles32(_mm_loadu_si128(second.as_ptr().cast())),
            ]
        }
    }

    #[inline(always)]
    fn dot_bytes(self, a: Self::Bytes, b: Self::Bytes) -> Self::Ints {
        // SAFETY: `self` exists, so the machine has AVX2.
        unsafe { [dot32(a[0], b[0]), dot32(a[1], b[1])] }
    }

    /// The magnitudes of the bytes, and the bytes themselves, whose signs are moved to the other factor.
    type Signed = [Self::Bytes; 2];

    #[inline(always)]
    fn signed(self, x: Self::Bytes) -> Self::Signed {
        // SAFETY: `self` exists, so the machine has AVX2.
        unsafe { [[_mm256_abs_epi8(x[0]), _mm256_abs_epi8(x[1])], x] }
    }

    #[inline(always)]
    fn dot_signed(self, [a, signs]: Self::Signed, b: &[u8; BYTES], _: &[u8; BYTES]) -> Self::Ints {
        let b = self.load_bytes(b);
        // SAFETY: `self` exists, so the machine has AVX2.
        unsafe { self.dot_bytes(a, [_mm256_sign_epi8(b[0], signs[0]), _mm256_sign_epi8(b[1], signs[1])]) }
    }

    #[inline(always)]
    fn prefetch<T>(self, at: *const T) {
        // SAFETY: every x86-64 machine has SSE, and a prefetch of an address that cannot be read does
        // nothing.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(at.cast()) }
    }

    #[inline(always)]
    fn sum(self, lanes: Self::Lanes) -> f32 {
        // SAFETY: `self` exists, so the machine has AVX2.
        unsafe { lanes_of_8(_mm256_add_ps(lanes[0], lanes[1])) }
    }
}

/// Returns the low 4 bits of sixteen bytes, then their high 4 bits.
#[target_feature(enable = "avx2")]
#[inline]
fn nibbles32(bytes: __m128i) -> __m256i {
    _mm256_and_si256(_mm256_set_m128i(_mm_srli_epi16::<4>(bytes), bytes), _mm256_set1_epi8(0xf))
}

/// Returns in lane l the sum of a[4l + i] · b[4l + i] over i = 0 to 3, for unsigned bytes a up to 128 and signed bytes b
/// from −127 to 127: no sum of two products exceeds an i16.
#[target_feature(enable = "avx2")]
#[inline]
fn dot32(a: __m256i, b: __m256i) -> __m256i {
    _mm256_madd_epi16(_mm256_maddubs_epi16(a, b), _mm256_set1_epi16(1))
}

/// Returns x · 2ⁿ, computed with two factors because 2ⁿ may be subnormal or infinite when x · 2ⁿ is not. The
/// product with the first factor is exact.
#[target_feature(enable = "avx2")]
#[inline]
fn scale8(x: __m256, n: __m256) -> __m256 {
    let power = |n| _mm256_castsi256_ps(_mm256_slli_epi32::<23>(_mm256_add_epi32(n, _mm256_set1_epi32(127))));
    let n = _mm256_cvtps_epi32(n);
    let half = _mm256_srai_epi32::<1>(n);
    _mm256_mul_ps(_mm256_mul_ps(x, power(half)), power(_mm256_sub_epi32(n, half)))
}

/// Returns elements 0, 2, … of sixteen bf16 elements.
#[target_feature(enable = "avx2")]
#[inline]
fn even8(pairs: __m256i) -> __m256 {
    _mm256_castsi256_ps(_mm256_slli_epi32::<16>(pairs))
}

/// Returns elements 1, 3, … of sixteen bf16 elements.
#[target_feature(enable = "avx2")]
#[inline]
fn odd8(pairs: __m256i) -> __m256 {
    _mm256_castsi256_ps(_mm256_and_si256(pairs, _mm256_set1_epi32(0xffff_0000_u32 as i32)))
}

/// Computes the last three levels of the tree of [`Simd::sum`].
#[target_feature(enable = "avx2")]
#[inline]
pub(super) fn lanes_of_8(lanes: __m256) -> f32 {
    let four = _mm_add_ps(_mm256_castps256_ps128(lanes), _mm256_extractf128_ps::<1>(lanes));
    let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)))
}

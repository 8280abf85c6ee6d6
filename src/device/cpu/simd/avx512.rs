//! The lanes of x86-64 with AVX-512: with F, VL and BW, or also with the dot products of BF16 and VNNI.
//!
//! Intel's guide describes each instruction: <https://www.intel.com/content/www/us/en/docs/intrinsics-guide>.

use std::arch::x86_64::*;

use half::{bf16, f16};

use super::avx2::lanes_of_8;
use super::lanes::{BYTES, Kernel, LANES, PAIRS, Simd};

/// Proof that the machine has AVX-512 with F, VL and BW, and with `DOTS` also with BF16 and VNNI, which multiply and add
/// pairs of bf16 numbers and fours of bytes.
///
/// With VL, the 256-bit steps of [`Simd::sum`] can use all 32 registers. Without it, the compiler keeps
/// accumulators in the lower 16 registers, and spills.
#[derive(Clone, Copy, Debug)]
pub(in super::super) struct Avx512<const DOTS: bool>(());

impl<const DOTS: bool> Avx512<DOTS> {
    pub(super) fn detect() -> Option<Self> {
        let found = is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512vl")
            && is_x86_feature_detected!("avx512bw");
        let dots = is_x86_feature_detected!("avx512bf16") && is_x86_feature_detected!("avx512vnni");
        (found && (!DOTS || dots)).then_some(Self(()))
    }

    pub(super) fn run<K: Kernel>(self, kernel: K) -> K::Output {
        #[target_feature(enable = "avx512f,avx512vl,avx512bw")]
        fn enabled<K: Kernel>(simd: impl Simd, kernel: K) -> K::Output {
            kernel.run(simd)
        }
        #[target_feature(enable = "avx512f,avx512vl,avx512bw,avx512bf16,avx512vnni")]
        fn enabled_dots<K: Kernel>(simd: impl Simd, kernel: K) -> K::Output {
            kernel.run(simd)
        }
        // SAFETY: `self` exists, so the machine has AVX-512F, AVX-512VL and AVX-512BW, and with `DOTS` also
        // AVX-512_BF16 and AVX-512_VNNI.
        unsafe { if DOTS { enabled_dots(self, kernel) } else { enabled(self, kernel) } }
    }
}

impl Avx512<true> {
    /// Returns the proof of AVX-512 without dot products, for code on the same machine that uses none.
    pub(super) fn without_dots(self) -> Avx512<false> {
        Avx512(())
    }
}

impl<const DOTS: bool> Simd for Avx512<DOTS> {
    type Lanes = __m512;

    const REGISTERS: usize = 32;

    #[inline(always)]
    fn splat(self, value: f32) -> Self::Lanes {
        // SAFETY: `self` exists, so the machine has AVX-512F.
        unsafe { _mm512_set1_ps(value) }
    }

    #[inline(always)]
    fn load(self, from: &[f32; LANES]) -> Self::Lanes {
        // SAFETY: `self` exists, so the machine has AVX-512F; the load is of the 16 elements.
        unsafe { _mm512_loadu_ps(from.as_ptr()) }
    }

    #[inline(always)]
    fn load_f16(self, from: &[f16; LANES]) -> Self::Lanes {
        // SAFETY: `self` exists, so the machine has AVX-512F; the load is of the 16 elements and
        // needs no alignment.
        unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(from.as_ptr().cast())) }
    }

    #[inline(always)]
    fn load_bf16(self, from: &[bf16; LANES]) -> Self::Lanes {
        // SAFETY: `self` exists, so the machine has AVX-512F; the load is of the 16 elements and
        // needs no alignment.
        unsafe {
            let bits = _mm512_cvtepu16_epi32(_mm256_loadu_si256(from.as_ptr().cast()));
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(bits))
        }
    }

    #[inline(always)]
    fn store(self, lanes: Self::Lanes, to: &mut [f32; LANES]) {
        // SAFETY: `self` exists, so the machine has AVX-512F; the store is of the 16 elements.
        unsafe { _mm512_storeu_ps(to.as_mut_ptr(), lanes) }
    }

    #[inline(always)]
    fn add(self, a: Self::Lanes, b: Self::Lanes) -> Self::Lanes {
        // SAFETY: `self` exists, so the machine has AVX-512F.
        unsafe { _mm512_add_ps(a, b) }
    }

    #[inline(always)]
    fn sub(self, a: Self::Lanes, b: Self::Lanes) -> Self::Lanes {
        // SAFETY: `self` exists, so the machine has AVX-512F.
        unsafe { _mm512_sub_ps(a, b) }
    }

    #[inline(always)]
    fn mul(self, a: Self::Lanes, b: Self::Lanes) -> Self::Lanes {
        // SAFETY: `self` exists, so the machine has AVX-512F.
        unsafe { _mm512_mul_ps(a, b) }
    }

    #[inline(always)]
    fn div(self, a: Self::Lanes, b: Self::Lanes) -> Self::Lanes {
        // SAFETY: `self` exists, so the machine has AVX-512F.
        unsafe { _mm512_div_ps(a, b) }
    }

    #[inline(always)]
    fn max(self, a: Self::Lanes, b: Self::Lanes) -> Self::Lanes {
        // SAFETY: `self` exists, so the machine has AVX-512F.
        unsafe { _mm512_max_ps(a, b) }
    }

    #[inline(always)]
    fn min(self, a: Self::Lanes, b: Self::Lanes) -> Self::Lanes {
        // SAFETY: `self` exists, so the machine has AVX-512F.
        unsafe { _mm512_min_ps(a, b) }
    }

    #[inline(always)]
    fn scale(self, x: Self::Lanes, n: Self::Lanes) -> Self::Lanes {
        // SAFETY: `self` exists, so the machine has AVX-512F.
        unsafe { _mm512_scalef_ps(x, n) }
    }

    #[inline(always)]
    fn mul_add(self, a: Self::Lanes, b: Self::Lanes, c: Self::Lanes) -> Self::Lanes {
        // SAFETY: `self` exists, so the machine has AVX-512F.
        unsafe { _mm512_fmadd_ps(a, b, c) }
    }

    type Pairs = __m512i;

    #[inline(always)]
    fn load_pairs(self, from: &[bf16; PAIRS]) -> Self::Pairs {
        // SAFETY: `self` exists, so the machine has AVX-512F; the load is of the 32 elements and needs no
        // alignment.
        unsafe { _mm512_loadu_si512(from.as_ptr().cast()) }
    }

    #[inline(always)]
    fn dot_pairs(self, a: Self::Pairs, b: Self::Pairs, c: Self::Lanes) -> Self::Lanes {
        if DOTS {
            // SAFETY: both types are vectors of 64 bytes; `self` exists, so the machine has AVX-512_BF16.
            unsafe {
                _mm512_dpbf16_ps(
                    c,
                    std::mem::transmute::<__m512i, __m512bh>(a),
                    std::mem::transmute::<__m512i, __m512bh>(b),
                )
            }
        } else {
            // SAFETY: `self` exists, so the machine has AVX-512F.
            unsafe { _mm512_fmadd_ps(even16(a), even16(b), _mm512_fmadd_ps(odd16(a), odd16(b), c)) }
        }
    }

    type Ints = __m512i;

    #[inline(always)]
    fn load_u8(self, from: &[u8; LANES]) -> Self::Ints {
        // SAFETY: `self` exists, so the machine has AVX-512F; the load is of the 16 bytes and needs no alignment.
        unsafe { _mm512_cvtepu8_epi32(_mm_loadu_si128(from.as_ptr().cast())) }
    }

    #[inline(always)]
    fn load_i8(self, from: &[u8; LANES]) -> Self::Ints {
        // SAFETY: as for `load_u8`.
        unsafe { _mm512_cvtepi8_epi32(_mm_loadu_si128(from.as_ptr().cast())) }
    }

    #[inline(always)]
    fn shift_right(self, x: Self::Ints, count: u32) -> Self::Ints {
        // SAFETY: `self` exists, so the machine has AVX-512F.
        unsafe { _mm512_srl_epi32(x, _mm_cvtsi32_si128(count.cast_signed())) }
    }

    #[inline(always)]
    fn shift_left(self, x: Self::Ints, count: u32) -> Self::Ints {
        // SAFETY: `self` exists, so the machine has AVX-512F.
        unsafe { _mm512_sll_epi32(x, _mm_cvtsi32_si128(count.cast_signed())) }
    }

    #[inline(always)]
    fn and(self, x: Self::Ints, mask: i32) -> Self::Ints {
        // SAFETY: `self` exists, so the machine has AVX-512F.
        unsafe { _mm512_and_si512(x, _mm512_set1_epi32(mask)) }
    }

    #[inline(always)]
    fn or(self, a: Self::Ints, b: Self::Ints) -> Self::Ints {
        // SAFETY: `self` exists, so the machine has AVX-512F.
        unsafe { _mm512_or_si512(a, b) }
    }

    #[inline(always)]
    fn to_lanes(self, x: Self::Ints) -> Self::Lanes {
        // SAFETY: `self` exists, so the machine has AVX-512F.
        unsafe { _mm512_cvtepi32_ps(x) }
    }

    #[inline(always)]
    fn splat_f16(self, bytes: [u8; 2]) -> Self::Lanes {
        // SAFETY: `self` exists, so the machine has AVX-512F, which includes AVX.
        unsafe { _mm512_cvtph_ps(_mm256_set1_epi16(i16::from_le_bytes(bytes))) }
    }

    /// The sixteen values of the function.
    type Affine = __m512;

    #[inline(always)]
    fn affine(self, scale: Self::Lanes, offset: Self::Lanes) -> Self::Affine {
        const Q: [f32; LANES] =
            [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0, 10.0, 11.0, 12.0, 13.0, 14.0, 15.0];
        self.mul_add(self.load(&Q), scale, offset)
    }

    #[inline(always)]
    fn apply(self, function: Self::Affine, q: Self::Ints) -> Self::Lanes {
        // The permutation ignores all bits of an index but the low 4.
        // SAFETY: `self` exists, so the machine has AVX-512F.
        unsafe { _mm512_permutexvar_ps(q, function) }
    }

    #[inline(always)]
    fn halves(self, low: Self::Lanes, high: Self::Lanes) -> Self::Lanes {
        // SAFETY: `self` exists, so the machine has AVX-512F.
        unsafe { _mm512_mask_blend_ps(0xff00, low, high) }
    }

    type Bytes = __m512i;

    #[inline(always)]
    fn load_bytes(self, from: &[u8; BYTES]) -> Self::Bytes {
        // SAFETY: `self` exists, so the machine has AVX-512F; the load is of the 64 bytes and needs no alignment.
        unsafe { _mm512_loadu_si512(from.as_ptr().cast()) }
    }

    #[inline(always)]
    fn join(self, low: &[u8; BYTES / 2], high: &[u8; BYTES / 2]) -> Self::Bytes {
        // SAFETY: `self` exists, so the machine has AVX-512F, which includes AVX2; both loads are of 32 bytes, and need no
        // alignment.
        unsafe {
            let low = _mm512_castsi256_si512(_mm256_loadu_si256(low.as_ptr().cast()));
            _mm512_inserti64x4::<1>(low, _mm256_loadu_si256(high.as_ptr().cast()))
        }
    }

    #[inline(always)]
    fn nibbles(self, first: &[u8; LANES], second: &[u8; LANES]) -> Self::Bytes {
        // SAFETY: `self` exists, so the machine has AVX-512F, which includes AVX2; both loads are of 16 bytes, and need no
        // alignment.
        unsafe {
            let first =
                _mm512_castsi256_si512(_mm256_broadcastsi128_si256(_mm_loadu_si128(first.as_ptr().cast())));
            let second = _mm256_broadcastsi128_si256(_mm_loadu_si128(second.as_ptr().cast()));
            let bytes = _mm512_inserti64x4::<1>(first, second);
            // The second and the fourth 16 bytes take the high bits.
            let bytes = _mm512_mask_srli_epi32::<4>(bytes, 0xf0f0, bytes);
            _mm512_and_si512(bytes, _mm512_set1_epi8(0xf))
        }
    }

    #[inline(always)]
    fn dot_bytes(self, a: Self::Bytes, b: Self::Bytes) -> Self::Ints {
        if DOTS {
            // SAFETY: `self` exists, so the machine has AVX-512_VNNI.
            unsafe { _mm512_dpbusd_epi32(_mm512_setzero_si512(), a, b) }
        } else {
            // SAFETY: `self` exists, so the machine has AVX-512BW. No sum of two products exceeds 2 · 128 · 127, which
            // is an i16.
            unsafe { _mm512_madd_epi16(_mm512_maddubs_epi16(a, b), _mm512_set1_epi16(1)) }
        }
    }

    /// With dot products of bytes, whose second factor is signed: the bytes, and for each lane −128 times the sum of its
    /// four bytes, to which Σ a · (b + 128) is added. Otherwise the magnitudes of the bytes, and the bytes, whose signs
    /// are moved to the other factor.
    type Signed = [__m512i; 2];

    #[inline(always)]
    fn signed(self, x: Self::Bytes) -> Self::Signed {
        // SAFETY: `self` exists, so the machine has AVX-512BW, and with `DOTS` AVX-512_VNNI.
        unsafe {
            if DOTS {
                let zero = _mm512_setzero_si512();
                let sums = _mm512_dpbusd_epi32(zero, _mm512_set1_epi8(-128), x);
                [x, _mm512_sub_epi32(zero, sums)]
            } else {
                [_mm512_abs_epi8(x), x]
            }
        }
    }

    #[inline(always)]
    fn dot_signed(
        self,
        [a, start_or_signs]: Self::Signed,
        b: &[u8; BYTES],
        b_plus_128: &[u8; BYTES],
    ) -> Self::Ints {
        if DOTS {
            // SAFETY: `self` exists, so the machine has AVX-512_VNNI. The instruction does not saturate.
            unsafe { _mm512_dpbusd_epi32(start_or_signs, self.load_bytes(b_plus_128), a) }
        } else {
            let b = self.load_bytes(b);
            // SAFETY: `self` exists, so the machine has AVX-512BW.
            self.dot_bytes(a, unsafe {
                let negative = _mm512_movepi8_mask(start_or_signs);
                _mm512_mask_sub_epi8(b, negative, _mm512_setzero_si512(), b)
            })
        }
    }

    #[inline(always)]
    fn prefetch<T>(self, at: *const T) {
        // SAFETY: every x86-64 machine has SSE, and prefetching an unreadable address does nothing.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(at.cast()) }
    }

    #[inline(always)]
    fn sum(self, lanes: Self::Lanes) -> f32 {
        // SAFETY: `self` exists, so the machine has AVX-512F, which includes AVX2.
        unsafe {
            let high = _mm256_castpd_ps(_mm512_extractf64x4_pd::<1>(_mm512_castps_pd(lanes)));
            lanes_of_8(_mm256_add_ps(_mm512_castps512_ps256(lanes), high))
        }
    }

    #[inline(always)]
    fn sum8(self, lanes: [Self::Lanes; 8]) -> [f32; 8] {
        // SAFETY: `self` exists, so the machine has AVX-512F.
        unsafe { sums_of_16(lanes) }
    }
}

/// Returns elements 0, 2, … of 32 bf16 elements.
#[target_feature(enable = "avx512f")]
#[inline]
fn even16(pairs: __m512i) -> __m512 {
    _mm512_castsi512_ps(_mm512_slli_epi32::<16>(pairs))
}

/// Returns elements 1, 3, … of 32 bf16 elements.
#[target_feature(enable = "avx512f")]
#[inline]
fn odd16(pairs: __m512i) -> __m512 {
    _mm512_castsi512_ps(_mm512_and_si512(pairs, _mm512_set1_epi32(0xffff_0000_u32 as i32)))
}

/// Returns the sum of each of eight vectors. Every step halves the partial sums of two vectors and places
/// them side by side.
#[target_feature(enable = "avx512f")]
#[inline]
fn sums_of_16(v: [__m512; 8]) -> [f32; 8] {
    // Adds lanes 8..16 of a vector to its lanes 0..8, for the vectors a and b.
    let eighths =
        |a, b| _mm512_add_ps(_mm512_shuffle_f32x4::<0x44>(a, b), _mm512_shuffle_f32x4::<0xee>(a, b));
    // Adds to a quarter of each vector in a and in b the quarter after it.
    let quarters =
        |a, b| _mm512_add_ps(_mm512_shuffle_f32x4::<0x88>(a, b), _mm512_shuffle_f32x4::<0xdd>(a, b));
    let low = quarters(eighths(v[0], v[1]), eighths(v[2], v[3]));
    let high = quarters(eighths(v[4], v[5]), eighths(v[6], v[7]));
    // Adds partial sums 2 and 3 of each vector to its partial sums 0 and 1; quarter i then holds vectors i
    // and i + 4.
    let (a, b) = (_mm512_castps_pd(low), _mm512_castps_pd(high));
    let pairs =
        _mm512_add_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(a, b)), _mm512_castpd_ps(_mm512_unpackhi_pd(a, b)));
    // Adds the second of the two partial sums of each vector to the first.
    let sums = _mm512_add_ps(pairs, _mm512_movehdup_ps(pairs));
    let mut stored = [0.0; 16];
    // SAFETY: the array has room for sixteen values.
    unsafe { _mm512_storeu_ps(stored.as_mut_ptr(), sums) };
    std::array::from_fn(|i| stored[i % 4 * 4 + i / 4 * 2])
}

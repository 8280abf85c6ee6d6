//! The portable implementation of sixteen lanes, in plain Rust.

use half::{bf16, f16};

use super::lanes::{BYTES, LANES, PAIRS, Simd};

/// Plain Rust, which the compiler vectorises as it can.
#[derive(Clone, Copy, Debug)]
pub(in crate::device::cpu) struct Portable;

impl Simd for Portable {
    type Lanes = [f32; LANES];

    // Every x86-64 and AArch64 machine has at least sixteen registers of four lanes: four vectors of sixteen
    // lanes.
    const REGISTERS: usize = 4;

    #[inline(always)]
    fn splat(self, value: f32) -> Self::Lanes {
        [value; LANES]
    }

    #[inline(always)]
    fn load(self, from: &[f32; LANES]) -> Self::Lanes {
        *from
    }

    #[inline(always)]
    fn load_f16(self, from: &[f16; LANES]) -> Self::Lanes {
        let mut lanes = [0.0; LANES];
        for (lane, value) in lanes.iter_mut().zip(from) {
            // `to_f32` would test at every call whether the machine has F16C.
            *lane = value.to_f32_const();
        }
        lanes
    }

    #[inline(always)]
    fn load_bf16(self, from: &[bf16; LANES]) -> Self::Lanes {
        let mut lanes = [0.0; LANES];
        for (lane, value) in lanes.iter_mut().zip(from) {
            *lane = f32::from_bits(u32::from(value.to_bits()) << 16);
        }
        lanes
    }

    #[inline(always)]
    fn store(self, lanes: Self::Lanes, to: &mut [f32; LANES]) {
        *to = lanes;
    }

    #[inline(always)]
    fn add(self, mut a: Self::Lanes, b: Self::Lanes) -> Self::Lanes {
        for (a, b) in a.iter_mut().zip(b) {
            *a += b;
        }
        a
    }

    #[inline(always)]
    fn sub(self, mut a: Self::Lanes, b: Self::Lanes) -> Self::Lanes {
        for (a, b) in a.iter_mut().zip(b) {
            *a -= b;
        }
        a
    }

    #[inline(always)]
    fn mul(self, mut a: Self::Lanes, b: Self::Lanes) -> Self::Lanes {
        for (a, b) in a.iter_mut().zip(b) {
            *a *= b;
        }
        a
    }

    #[inline(always)]
    fn div(self, mut a: Self::Lanes, b: Self::Lanes) -> Self::Lanes {
        for (a, b) in a.iter_mut().zip(b) {
            *a /= b;
        }
        a
    }

    #[inline(always)]
    fn max(self, mut a: Self::Lanes, b: Self::Lanes) -> Self::Lanes {
        for (a, b) in a.iter_mut().zip(b) {
            *a = if *a > b { *a } else { b };
        }
        a
    }

    #[inline(always)]
    fn min(self, mut a: Self::Lanes, b: Self::Lanes) -> Self::Lanes {
        for (a, b) in a.iter_mut().zip(b) {
            *a = if *a < b { *a } else { b };
        }
        a
    }

    #[inline(always)]
    fn scale(self, mut x: Self::Lanes, n: Self::Lanes) -> Self::Lanes {
        for (x, n) in x.iter_mut().zip(n) {
            // x is multiplied by two factors, because 2ⁿ may be subnormal or infinite when x · 2ⁿ is not. The
            // product with the first is exact.
            let n = n as i32;
            let power = |n: i32| f32::from_bits(((n + 127) as u32) << 23);
            *x = *x * power(n >> 1) * power(n - (n >> 1));
        }
        x
    }

    #[inline(always)]
    fn mul_add(self, a: Self::Lanes, b: Self::Lanes, mut c: Self::Lanes) -> Self::Lanes {
        for (c, (a, b)) in c.iter_mut().zip(a.iter().zip(b)) {
            *c += a * b;
        }
        c
    }

    /// The even elements of a vector of pairs, and its odd elements.
    type Pairs = [[f32; LANES]; 2];

    #[inline(always)]
    fn load_pairs(self, from: &[bf16; PAIRS]) -> Self::Pairs {
        let mut pairs = [[0.0; LANES]; 2];
        for (l, pair) in from.as_chunks::<2>().0.iter().enumerate() {
            (pairs[0][l], pairs[1][l]) = (pair[0].to_f32(), pair[1].to_f32());
        }
        pairs
    }

    #[inline(always)]
    fn dot_pairs(self, a: Self::Pairs, b: Self::Pairs, c: Self::Lanes) -> Self::Lanes {
        self.mul_add(a[0], b[0], self.mul_add(a[1], b[1], c))
    }

    type Ints = [i32; LANES];

    #[inline(always)]
    fn load_u8(self, from: &[u8; LANES]) -> Self::Ints {
        let mut x = [0; LANES];
        for (x, &byte) in x.iter_mut().zip(from) {
            *x = i32::from(byte);
        }
        x
    }

    #[inline(always)]
    fn load_i8(self, from: &[u8; LANES]) -> Self::Ints {
        let mut x = [0; LANES];
        for (x, &byte) in x.iter_mut().zip(from) {
            *x = i32::from(byte.cast_signed());
        }
        x
    }

    #[inline(always)]
    fn shift_right(self, mut x: Self::Ints, count: u32) -> Self::Ints {
        for x in &mut x {
            *x = (x.cast_unsigned() >> count).cast_signed();
        }
        x
    }

    #[inline(always)]
    fn shift_left(self, mut x: Self::Ints, count: u32) -> Self::Ints {
        for x in &mut x {
            *x <<= count;
        }
        x
    }

    #[inline(always)]
    fn and(self, mut x: Self::Ints, mask: i32) -> Self::Ints {
        for x in &mut x {
            *x &= mask;
        }
        x
    }

    #[inline(always)]
    fn or(self, mut a: Self::Ints, b: Self::Ints) -> Self::Ints {
        for (a, b) in a.iter_mut().zip(b) {
            *a |= b;
        }
        a
    }

    #[inline(always)]
    fn to_lanes(self, x: Self::Ints) -> Self::Lanes {
        let mut lanes = [0.0; LANES];
        for (lane, x) in lanes.iter_mut().zip(x) {
            *lane = x as f32;
        }
        lanes
    }

    #[inline(always)]
    fn splat_f16(self, bytes: [u8; 2]) -> Self::Lanes {
        [f16::from_le_bytes(bytes).to_f32_const(); LANES]
    }

    /// Scale and offset.
    type Affine = (f32, f32);

    #[inline(always)]
    fn affine(self, scale: Self::Lanes, offset: Self::Lanes) -> Self::Affine {
        (scale[0], offset[0])
    }

    #[inline(always)]
    fn apply(self, (scale, offset): Self::Affine, q: Self::Ints) -> Self::Lanes {
        let q = self.to_lanes(self.and(q, 0xf));
        self.mul_add(q, self.splat(scale), self.splat(offset))
    }

    #[inline(always)]
    fn halves(self, mut low: Self::Lanes, high: Self::Lanes) -> Self::Lanes {
        low[LANES / 2..].copy_from_slice(&high[LANES / 2..]);
        low
    }

    type Bytes = [u8; BYTES];

    #[inline(always)]
    fn load_bytes(self, from: &[u8; BYTES]) -> Self::Bytes {
        *from
    }

    #[inline(always)]
    fn join(self, low: &[u8; BYTES / 2], high: &[u8; BYTES / 2]) -> Self::Bytes {
        let mut bytes = [0; BYTES];
        bytes[..BYTES / 2].copy_from_slice(low);
        bytes[BYTES / 2..].copy_from_slice(high);
        bytes
    }

    #[inline(always)]
    fn nibbles(self, first: &[u8; LANES], second: &[u8; LANES]) -> Self::Bytes {
        let mut bytes = [0; BYTES];
        for i in 0..LANES {
            (bytes[i], bytes[LANES + i]) = (first[i] & 0xf, first[i] >> 4);
            (bytes[2 * LANES + i], bytes[3 * LANES + i]) = (second[i] & 0xf, second[i] >> 4);
        }
        bytes
    }

    #[inline(always)]
    fn dot_bytes(self, a: Self::Bytes, b: Self::Bytes) -> Self::Ints {
        let mut sums = [0; LANES];
        for (l, sum) in sums.iter_mut().enumerate() {
            for i in 4 * l..4 * l + 4 {
                *sum += i32::from(a[i]) * i32::from(b[i].cast_signed());
            }
        }
        sums
    }

    type Signed = [u8; BYTES];

    #[inline(always)]
    fn signed(self, x: Self::Bytes) -> Self::Signed {
        x
    }

    #[inline(always)]
    fn dot_signed(self, a: Self::Signed, b: &[u8; BYTES], _: &[u8; BYTES]) -> Self::Ints {
        let mut sums = [0; LANES];
        for (l, sum) in sums.iter_mut().enumerate() {
            for i in 4 * l..4 * l + 4 {
                *sum += i32::from(a[i].cast_signed()) * i32::from(b[i].cast_signed());
            }
        }
        sums
    }

    #[inline(always)]
    fn prefetch<T>(self, _: *const T) {}

    #[inline(always)]
    fn sum(self, mut lanes: Self::Lanes) -> f32 {
        let mut half = LANES / 2;
        while half > 0 {
            for l in 0..half {
                lanes[l] += lanes[l + half];
            }
            half /= 2;
        }
        lanes[0]
    }
}

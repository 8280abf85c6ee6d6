//! Vectors of sixteen f32 lanes, for several instruction sets.
//!
//! Numerical code is written once, generic over [`Simd`], and compiled for each instruction set;
//! [`Vectors::run`] selects the compiled copy at run time. All copies compute every sum in the same order
//! (lane l of 16, then the tree of [`Simd::sum`]). AVX2 and AVX-512 both fuse multiply and add, so they agree
//! in every bit. The portable copy also rounds the product, because a fused multiply-add is a library call
//! without FMA hardware.
//!
//! The types that implement [`Simd`] are proofs: an `Avx512` value exists only if the machine has AVX-512.
//! This makes the methods safe to call.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod exp;
mod lanes;
mod portable;

pub(super) use exp::exp;
pub(super) use lanes::{BYTES, Kernel, LANES, PAIRS, Simd, VectorElement, padded};
pub(super) use portable::Portable;

/// Instruction sets that the CPU device has code for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum InstructionSet {
    /// The target features that the crate was compiled with; no fused multiply-add.
    Portable,
    /// x86-64 with AVX2, FMA and F16C.
    Avx2,
    /// x86-64 with AVX-512F, AVX-512VL and AVX-512BW.
    Avx512,
    /// x86-64 with AVX-512F, AVX-512VL, AVX-512BW, and dot products of bf16 pairs (AVX-512_BF16) and of bytes
    /// (AVX-512_VNNI).
    Avx512Bf16,
}

impl InstructionSet {
    /// Returns the instruction sets that this machine has, the fastest last.
    pub fn available() -> Vec<Self> {
        [Self::Portable, Self::Avx2, Self::Avx512, Self::Avx512Bf16]
            .into_iter()
            .filter(|&set| Vectors::new(set).is_some())
            .collect()
    }
}

/// An instruction set that this machine is known to have.
#[derive(Clone, Copy, Debug)]
pub(super) enum Vectors {
    Portable(Portable),
    #[cfg(target_arch = "x86_64")]
    Avx2(avx2::Avx2),
    #[cfg(target_arch = "x86_64")]
    Avx512(avx512::Avx512<false>),
    #[cfg(target_arch = "x86_64")]
    Avx512Bf16(avx512::Avx512<true>),
}

impl Vectors {
    /// Returns `set` if the machine has it.
    pub(super) fn new(set: InstructionSet) -> Option<Self> {
        match set {
            InstructionSet::Portable => Some(Self::Portable(Portable)),
            #[cfg(target_arch = "x86_64")]
            InstructionSet::Avx2 => avx2::Avx2::detect().map(Self::Avx2),
            #[cfg(target_arch = "x86_64")]
            InstructionSet::Avx512 => avx512::Avx512::detect().map(Self::Avx512),
            #[cfg(target_arch = "x86_64")]
            InstructionSet::Avx512Bf16 => avx512::Avx512::detect().map(Self::Avx512Bf16),
            #[cfg(not(target_arch = "x86_64"))]
            InstructionSet::Avx2 | InstructionSet::Avx512 | InstructionSet::Avx512Bf16 => None,
        }
    }

    /// Returns the fastest instruction set that the machine has.
    pub(super) fn fastest() -> Self {
        let set = InstructionSet::available().last().copied().and_then(Self::new);
        set.unwrap_or(Self::Portable(Portable))
    }

    /// Returns the instruction set.
    pub(super) fn instruction_set(self) -> InstructionSet {
        match self {
            Self::Portable(_) => InstructionSet::Portable,
            #[cfg(target_arch = "x86_64")]
            Self::Avx2(_) => InstructionSet::Avx2,
            #[cfg(target_arch = "x86_64")]
            Self::Avx512(_) => InstructionSet::Avx512,
            #[cfg(target_arch = "x86_64")]
            Self::Avx512Bf16(_) => InstructionSet::Avx512Bf16,
        }
    }

    /// Runs the copy of `kernel` that was compiled for this instruction set. Products of bf16 pairs use
    /// [`run_pairs`](Self::run_pairs) instead, and products of bytes [`run_bytes`](Self::run_bytes): apart from them,
    /// AVX-512 with and without these instructions runs the same code.
    pub(super) fn run<K: Kernel>(self, kernel: K) -> K::Output {
        match self {
            Self::Portable(simd) => kernel.run(simd),
            #[cfg(target_arch = "x86_64")]
            Self::Avx2(simd) => simd.run(kernel),
            #[cfg(target_arch = "x86_64")]
            Self::Avx512(simd) => simd.run(kernel),
            #[cfg(target_arch = "x86_64")]
            Self::Avx512Bf16(simd) => simd.without_dots().run(kernel),
        }
    }

    /// Runs a kernel that multiplies bf16 pairs: with the hardware's instruction if it
    /// [exists](Self::multiplies_pairs), otherwise in portable code.
    pub(super) fn run_pairs<K: Kernel>(self, kernel: K) -> K::Output {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Avx512Bf16(simd) => simd.run(kernel),
            _ => kernel.run(Portable),
        }
    }

    /// Runs a kernel that multiplies bytes, with the hardware's instruction if it exists.
    pub(super) fn run_bytes<K: Kernel>(self, kernel: K) -> K::Output {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Avx512Bf16(simd) => simd.run(kernel),
            _ => self.run(kernel),
        }
    }

    /// Returns whether the hardware multiplies pairs of bf16 directly, twice as many at a time as f32.
    pub(super) fn multiplies_pairs(self) -> bool {
        self.instruction_set() == InstructionSet::Avx512Bf16
    }
}

#[cfg(test)]
mod tests {
    use half::{bf16, f16};

    use super::*;

    struct Everything {
        a: [f32; LANES],
        b: [f32; LANES],
        c: [f32; LANES],
    }

    impl Kernel for Everything {
        type Output = Vec<f32>;

        #[inline(always)]
        fn run<S: Simd>(self, simd: S) -> Vec<f32> {
            let [a, b, c] = [simd.load(&self.a), simd.load(&self.b), simd.load(&self.c)];
            let a_f16 = simd.load_f16(&self.a.map(f16::from_f32));
            let a_bf16 = simd.load_bf16(&self.a.map(bf16::from_f32));
            let mut out = Vec::new();
            let n = simd.mul(c, simd.splat(20.0));
            for lanes in [
                simd.splat(self.a[3]),
                simd.add(a, b),
                simd.mul(a, b),
                a_f16,
                a_bf16,
                simd.sub(a, b),
                simd.div(a, b),
                simd.max(a, b),
                simd.min(a, b),
                simd.scale(b, n),
            ] {
                let mut stored = [0.0; LANES];
                simd.store(lanes, &mut stored);
                out.extend(stored);
            }
            out.push(simd.sum(a));
            let pairs: [bf16; PAIRS] = std::array::from_fn(|i| bf16::from_f32(i as f32 - 9.0));
            let [x, y] =
                [pairs, std::array::from_fn(|i| pairs[PAIRS - 1 - i])].map(|pairs| simd.load_pairs(&pairs));
            let mut stored = [0.0; LANES];
            simd.store(simd.dot_pairs(x, y, c), &mut stored);
            out.extend(stored);
            // Eight vectors that differ, and whose sums are rounded.
            let turned = |i: usize| {
                let mut turned = self.b;
                turned.rotate_left(i);
                turned[i] *= 1.7;
                turned
            };
            let sums = simd.sum8(std::array::from_fn(|i| simd.load(&turned(i))));
            assert_eq!(sums, std::array::from_fn(|i| simd.sum(simd.load(&turned(i)))));
            out.extend(sums);
            let bytes: [u8; BYTES] = std::array::from_fn(|i| (i * 37 % 128) as u8);
            // The largest sums of both kinds: of 127 · 127, and of −128 · −127.
            let extreme = |byte: u8, i: usize| if i < 8 { byte } else { bytes[i].wrapping_mul(2) };
            let signed = |byte: u8| {
                std::array::from_fn(|i| if extreme(byte, i) == 0x80 { 0x81 } else { extreme(byte, i) })
            };
            for ints in [
                simd.dot_bytes(simd.load_bytes(&[127; BYTES]), simd.load_bytes(&[127; BYTES])),
                simd.dot_bytes(
                    simd.join(&std::array::from_fn(|i| bytes[i]), &std::array::from_fn(|i| bytes[32 + i])),
                    simd.load_bytes(&signed(0x81)),
                ),
                simd.dot_bytes(
                    simd.nibbles(
                        &std::array::from_fn(|i| bytes[i].wrapping_mul(2)),
                        &std::array::from_fn(|i| bytes[40 + i]),
                    ),
                    simd.load_bytes(&signed(0x81)),
                ),
                simd.dot_signed(
                    simd.signed(simd.load_bytes(&std::array::from_fn(|i| extreme(0x80, i)))),
                    &signed(0x81),
                    &signed(0x81).map(|byte| byte ^ 0x80),
                ),
                simd.dot_signed(simd.signed(simd.load_bytes(&[0x80; BYTES])), &[0x7f; BYTES], &[0xff; BYTES]),
            ] {
                let mut stored = [0.0; LANES];
                simd.store(simd.to_lanes(ints), &mut stored);
                out.extend(stored);
            }
            let mut stored = [0.0; LANES];
            simd.store(simd.halves(a, b), &mut stored);
            out.extend(stored);
            // Without rounding errors, a fused multiply-add gives the same result as a multiplication and an
            // addition.
            out.push(simd.sum(simd.mul_add(simd.splat(2.0), c, c)));
            out
        }
    }

    #[test]
    fn instruction_sets_agree() {
        let a: [f32; LANES] = std::array::from_fn(|i| (i as f32 * 0.7).sin() * 10.0);
        let b: [f32; LANES] = std::array::from_fn(|i| (i as f32 * 1.3).cos());
        let c: [f32; LANES] = std::array::from_fn(|i| i as f32 - 4.0);
        let expected = Everything { a, b, c }.run(Portable);
        assert_eq!(expected[2 * LANES + 5], a[5] * b[5]);
        assert_eq!(expected[3 * LANES + 5], f16::from_f32(a[5]).to_f32());
        assert_eq!(expected[4 * LANES + 5], bf16::from_f32(a[5]).to_f32());
        assert_eq!(expected[5 * LANES + 5], a[5] - b[5]);
        assert_eq!(expected[6 * LANES + 5], a[5] / b[5]);
        assert_eq!(expected[7 * LANES + 5], a[5].max(b[5]));
        assert_eq!(expected[8 * LANES + 5], a[5].min(b[5]));
        // The lanes are scaled by 2^−80 to 2^220 in steps of 2^20: lane 0 by 2^−80, lane 4 by 2^0, lane 15 by
        // 2^220.
        assert_eq!(expected[9 * LANES], b[0] * 2f32.powi(-80));
        assert_eq!(expected[9 * LANES + 4], b[4]);
        assert_eq!(expected[9 * LANES + 15], f32::NEG_INFINITY.copysign(b[15]));
        // Lane 5 multiplies elements 10 and 11 of two vectors of pairs, 1 and 2 times 12 and 11, and adds c.
        assert_eq!(expected[10 * LANES + 1 + 5], 1.0 + 1.0 * 12.0 + 2.0 * 11.0);
        // The products of bytes come after the sums of eight vectors, and the halves of `a` and `b` after them.
        let bytes = &expected[11 * LANES + 1 + 8..];
        assert_eq!(bytes[..LANES], [4.0 * 127.0 * 127.0; LANES]);
        assert_eq!(bytes[LANES], -127.0 * (0.0 + 37.0 + 74.0 + 111.0));
        // The low halves of the bytes 0, 74, 148 and 222, times −127.
        assert_eq!(bytes[2 * LANES], -127.0 * (0.0 + 10.0 + 4.0 + 14.0));
        assert_eq!(bytes[3 * LANES..3 * LANES + 2], [4.0 * 128.0 * 127.0; 2]);
        assert_eq!(bytes[4 * LANES..5 * LANES], [-4.0 * 128.0 * 127.0; LANES]);
        assert_eq!(bytes[5 * LANES..6 * LANES], [&a[..8], &b[8..]].concat());
        assert_eq!(expected.last(), Some(&(3.0 * c.iter().sum::<f32>())));
        for set in InstructionSet::available() {
            let vectors = Vectors::new(set).unwrap();
            assert_eq!(vectors.instruction_set(), set);
            assert_eq!(vectors.run(Everything { a, b, c }), expected, "{set:?}");
            assert_eq!(vectors.run_pairs(Everything { a, b, c }), expected, "{set:?}, in pairs");
            assert_eq!(vectors.run_bytes(Everything { a, b, c }), expected, "{set:?}, in bytes");
        }
    }

    #[test]
    fn the_sum_is_the_tree_of_its_description() {
        let lanes: [f32; LANES] = std::array::from_fn(|i| (i as f32 * 0.37).exp());
        let pair = |l: usize| lanes[l] + lanes[l + 8];
        let four = |l: usize| pair(l) + pair(l + 4);
        let eight = |l: usize| four(l) + four(l + 2);
        assert_eq!(Portable.sum(lanes).to_bits(), (eight(0) + eight(1)).to_bits());
    }
}

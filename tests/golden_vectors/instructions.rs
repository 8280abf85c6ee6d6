//! The kernels of `cuda/golden/golden.cu`, each for one instruction or for CUDA's math functions: their inputs, the
//! same in every run, and the required agreement between the model's results and a GPU's.

use std::ffi::c_void;

use flexdraft::runtime::{Access, Launch, Region, Runtime, RuntimeError};
use half::{bf16, f16};

/// Parameters of the kernels that execute single instructions (`FlexdraftGoldenParams`).
#[repr(C)]
struct Params {
    input: u64,
    out: u64,
}

/// A function that compares the results of a case with the expected results, given the case's input; an error says
/// where they disagree.
type Agreement = fn(input: &[u32], found: &[u32], expected: &[u32]) -> Result<(), String>;

/// An instruction, with its test cases and the required agreement.
pub struct Instruction {
    pub kernel: &'static str,
    /// Threads per CTA; each CTA runs one case.
    threads: u32,
    /// Number of 32-bit input words per case.
    words_in: usize,
    pub words_out: usize,
    /// The input words of all cases, one case after another.
    pub input: Vec<u32>,
    agree: Agreement,
}

/// The SplitMix64 generator of pseudo-random arguments.
struct Random(u64);

impl Random {
    fn word(&mut self) -> u32 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ z >> 31) as u32
    }

    fn below(&mut self, limit: u32) -> u32 {
        self.word() % limit
    }

    /// Returns the next number, uniform in −1..1.
    fn unit(&mut self) -> f32 {
        self.word() as f32 / (1u32 << 31) as f32 - 1.0
    }

    fn words(&mut self, len: usize) -> Vec<u32> {
        (0..len).map(|_| self.word()).collect()
    }
}

/// Returns every instruction that the SIMT emulator models, and the math functions that it has stand-ins for.
pub fn all() -> Vec<Instruction> {
    let mut random = Random(20_260_522);
    let matrices = |random: &mut Random| -> Vec<u32> {
        (0..6)
            .flat_map(|_| [random.words(256), (0..32).map(|_| random.below(64)).collect()].concat())
            .collect()
    };
    let moved = |kernel, words_in, words_out, input| Instruction {
        kernel,
        threads: 32,
        words_in,
        words_out,
        input,
        agree: equal,
    };
    vec![
        moved("golden_ldmatrix_x4", 288, 128, matrices(&mut random)),
        moved("golden_ldmatrix_x4_trans", 288, 128, matrices(&mut random)),
        moved("golden_cp_async_16", 160, 128, copies(&mut random)),
        moved("golden_collectives", 32, 320, random.words(4 * 32)),
        Instruction {
            kernel: "golden_mma_m16n8k16",
            threads: 32,
            words_in: 320,
            words_out: 128,
            input: products(&mut random, 1, bf16_bits),
            agree: products_agree::<bf16>,
        },
        Instruction {
            kernel: "golden_exp2_approx",
            threads: 32,
            words_in: 32,
            words_out: 32,
            input: exponents(&mut random),
            agree: powers_agree,
        },
        // The inputs of these kernels are drawn last, so that the inputs of the kernels before them stay equal to the
        // recorded inputs.
        moved("golden_cvt_rn_bf16", 64, 64, numbers(&mut random)),
        Instruction {
            kernel: "golden_math",
            threads: 32,
            words_in: 32 * FUNCTIONS.len(),
            words_out: 32 * FUNCTIONS.len(),
            input: arguments(&mut random),
            agree: functions_agree,
        },
        Instruction {
            kernel: WGMMA,
            threads: 128,
            words_in: 4 * 320,
            words_out: 128 * 12,
            input: products(&mut random, 4, bf16_bits),
            agree: warpgroup_products_agree,
        },
        Instruction {
            kernel: "golden_mma_m16n8k16_f16",
            threads: 32,
            words_in: 320,
            words_out: 128,
            input: products(&mut random, 1, f16_bits),
            agree: products_agree::<f16>,
        },
        moved("golden_cvt_f16", 64, 128, numbers_near_f16(&mut random)),
    ]
}

/// The kernel that computes a product once with `mma.sync` and twice with `wgmma`.
pub const WGMMA: &str = "golden_wgmma_m64n8k16";

/// The value of every result word before a launch. Results of instructions that the processor lacks keep this value.
pub const UNWRITTEN: u32 = 0xdead_beef;

/// Returns a case of copies for every number of bytes from 0 to 16.
fn copies(random: &mut Random) -> Vec<u32> {
    let bytes = |case: u32| (0..32).map(move |lane| (lane + 5 * case) % 17);
    (0..4).flat_map(|case| random.words(128).into_iter().chain(bytes(case)).collect::<Vec<u32>>()).collect()
}

/// The types of the factors of a product.
trait Factor: Copy {
    fn value(bits: u16) -> f32;
}

impl Factor for bf16 {
    fn value(bits: u16) -> f32 {
        bf16::from_bits(bits).to_f32()
    }
}

impl Factor for f16 {
    fn value(bits: u16) -> f32 {
        f16::from_bits(bits).to_f32()
    }
}

fn bf16_bits(x: f32) -> u16 {
    bf16::from_f32(x).to_bits()
}

fn f16_bits(x: f32) -> u16 {
    f16::from_f32(x).to_bits()
}

/// Returns sums and factors of products, the factors rounded by `bits`, `warps` warps per case: small integers (exact in any order), numbers of one
/// magnitude, of many magnitudes, numbers that cancel in the sum, and NaN, infinities and subnormals.
fn products(random: &mut Random, warps: usize, bits: fn(f32) -> u16) -> Vec<u32> {
    const SPECIAL: [f32; 8] = [0.0, -0.0, 1.0, -2.0, f32::INFINITY, f32::NEG_INFINITY, f32::NAN, 1e-40];
    let mut words = Vec::new();
    for case in 0..20 {
        let mut number = |sum: bool| match case % 5 {
            0 => random.below(17) as f32 - 8.0,
            1 => random.unit(),
            2 => random.unit() * (random.below(40) as f32 - 20.0).exp2(),
            3 if sum => -4.0 + random.unit() / 64.0,
            // A sum of sixteen products of about 1/4 cancels the initial value of about −4.
            3 => 0.5 + random.unit() / 256.0,
            // NaN, infinities and subnormals are rare among the numbers, because otherwise every result would be NaN.
            _ if random.below(24) == 0 => SPECIAL[random.below(8) as usize],
            _ => random.unit(),
        };
        for _ in 0..32 * warps {
            words.extend((0..4).map(|_| number(true).to_bits()));
            let pair = |low: f32, high: f32| u32::from(bits(low)) | u32::from(bits(high)) << 16;
            words.extend((0..6).map(|_| pair(number(false), number(false))));
        }
    }
    words
}

/// Returns arguments of 2^x: over the range of results, at the ends of the range, and as in attention: scores below a
/// maximum, and −∞.
fn exponents(random: &mut Random) -> Vec<u32> {
    let mut words: Vec<u32> =
        [0.0, -0.0, 1.0, -1.0, 127.0, 127.99, 128.0, 1e30, -125.5, -126.0, -126.5, -149.0, -1e30, 1e-40]
            .into_iter()
            .chain([f32::INFINITY, f32::NEG_INFINITY, f32::NAN, -1e-40])
            .map(f32::to_bits)
            .collect();
    while words.len() < 32 * 32 {
        let scale = [0.01, 1.0, 20.0, 120.0][words.len() % 4];
        words.push((random.unit() * scale).to_bits());
    }
    words
}

/// Returns f32 numbers to round to bf16: ties to either side and their neighbours, numbers that round to infinity,
/// subnormals, NaN of both signs with several payloads, and random bits.
fn numbers(random: &mut Random) -> Vec<u32> {
    let mut words =
        vec![0, 1 << 31, 0x7f80_0000, 0xff80_0000, 0x7f7f_ffff, 0xff7f_ffff, 0x7f7f_7fff, 0x7f7f_8000];
    words.extend([
        0x7fc0_0000,
        0xffc0_0000,
        0x7f80_0001,
        0xff80_0001,
        0x7fff_ffff,
        0x7f80_8000,
        1,
        0x8000,
        0x18000,
    ]);
    for upper in [0x3f80, 0x3f81, 0xbf80, 0xbf81, 0x3fff, 0x007f, 0x0080, 0x8000] {
        words.extend([0x7fff, 0x8000, 0x8001].map(|lower| upper << 16 | lower));
    }
    let more = 8 * 64 - words.len();
    words.extend(random.words(more));
    words
}

/// Returns f32 numbers to round to f16: the numbers of [`numbers`], numbers at the ends of f16's range and of its normal
/// numbers, ties, and random numbers within the range.
fn numbers_near_f16(random: &mut Random) -> Vec<u32> {
    let mut words = numbers(random);
    let edges =
        [65504.0f32, 65520.0, 65536.0, 1.0, 2048.0, 2049.0, 6.103_515_6e-5, 5.960_464_5e-8, 2.980_232_2e-8];
    words.extend(edges.iter().flat_map(|x| [x.to_bits() - 1, x.to_bits(), x.to_bits() + 1, (-x).to_bits()]));
    while !words.len().is_multiple_of(64) || words.len() < 16 * 64 {
        words.push((random.unit() * (random.below(44) as f32 - 27.0).exp2()).to_bits());
    }
    words
}

/// A function of CUDA's math library.
struct Function {
    name: &'static str,
    /// The largest allowed distance between a result and the correctly rounded result, in units in the last place, from
    /// the CUDA C++ Programming Guide ("Mathematical Functions", single precision). Where editions of the guide differ,
    /// this is the larger bound. For 1 / sqrtf it is the bound of rsqrtf, which the compiler may use instead.
    ulps: u32,
    /// The smallest and the largest argument that the function gets in the kernels.
    range: [f32; 2],
    special: [f32; 4],
}

const NAN: f32 = f32::NAN;
const INF: f32 = f32::INFINITY;

/// The tested math functions, in the order of the kernel's arguments.
const FUNCTIONS: [Function; 7] = [
    Function { name: "expf", ulps: 2, range: [-105.0, 88.0], special: [0.0, -INF, INF, NAN] },
    Function { name: "logf", ulps: 1, range: [0.0, 40.0], special: [0.0, 1.0, INF, -1.0] },
    Function { name: "log1pf", ulps: 1, range: [-0.5, 0.0], special: [0.0, -1.0, INF, -2.0] },
    Function { name: "log2f", ulps: 1, range: [0.0, 1e5], special: [0.0, 1.0, INF, -1.0] },
    Function { name: "cospif", ulps: 2, range: [-1.0, 1.0], special: [0.0, 0.5, -1.0, INF] },
    Function { name: "sinpif", ulps: 2, range: [-1.0, 1.0], special: [0.0, 0.5, -1.0, INF] },
    Function { name: "1 / sqrtf", ulps: 2, range: [1e-6, 1e6], special: [0.0, 1.0, INF, -1.0] },
];

/// Returns arguments over each function's range, half of them near the end of the range that is nearer to 0.
fn arguments(random: &mut Random) -> Vec<u32> {
    let mut words = Vec::new();
    for i in 0..8 * 32 {
        for Function { range: [low, high], special, .. } in &FUNCTIONS {
            let share = random.word() as f32 / (1u64 << 32) as f32;
            let near = low + (high - low) * share;
            let x = match i {
                0..4 => special[i],
                _ if i % 2 == 0 => near,
                _ if low.abs() < high.abs() => low + (near - low) * (-24.0 * share).exp2(),
                _ => high - (high - near) * (-24.0 * share).exp2(),
            };
            words.push(x.to_bits());
        }
    }
    words
}

/// Requires equal bits, as for instructions that only move data.
fn equal(_: &[u32], found: &[u32], expected: &[u32]) -> Result<(), String> {
    match found.iter().zip(expected).position(|(found, expected)| found != expected) {
        None => Ok(()),
        Some(i) => Err(format!("word {i} is {:#010x}, not {:#010x}", found[i], expected[i])),
    }
}

/// Returns the sums of the products' magnitudes, `[16, 8]`, with the layout of m16n8k16 in the PTX ISA.
fn magnitudes<T: Factor>(input: &[u32]) -> [[f64; 8]; 16] {
    let half = |word: u32, high: usize| f64::from(T::value((word >> (16 * high)) as u16));
    let (mut a, mut b, mut sums) = ([[0.0; 16]; 16], [[0.0; 8]; 16], [[0.0; 8]; 16]);
    for (lane, words) in input.chunks(10).enumerate() {
        let (group, pair) = (lane / 4, 2 * (lane % 4));
        for high in 0..2 {
            for i in 0..4 {
                a[group + 8 * (i % 2)][pair + 8 * (i / 2) + high] = half(words[4 + i], high);
            }
            for i in 0..2 {
                b[pair + 8 * i + high][group] = half(words[8 + i], high);
            }
        }
        for i in 0..4 {
            sums[group + 8 * (i / 2)][pair + i % 2] = f64::from(f32::from_bits(words[i])).abs();
        }
    }
    for (row, sums) in sums.iter_mut().enumerate() {
        for (col, sum) in sums.iter_mut().enumerate() {
            *sum += (0..16).map(|k| (a[row][k] * b[k][col]).abs()).sum::<f64>();
        }
    }
    sums
}

/// Requires sums of products to agree within the rounding errors of both sides. Products of the factors are exact on both sides;
/// the order of the 17 addends and their rounding differ. The model adds with k ascending and rounds each sum to
/// nearest: an error of at most 16 · 2⁻²⁴ of the addends' magnitudes M. Matrix units align a block of addends to the
/// largest and cut off everything below 24 bits of it, so each of the 17 addends and of the sums loses at most 2⁻²³ M.
/// Hence the tolerance 2⁻¹⁸ M (which is 32 · 2⁻²³ M), and no error if all sums are exact: integers below 2²⁴. NaN must
/// match NaN, and infinity the same infinity.
fn products_agree<T: Factor>(input: &[u32], found: &[u32], expected: &[u32]) -> Result<(), String> {
    let magnitudes = magnitudes::<T>(input);
    let exact = input.chunks(10).all(|words| {
        let halves = words[4..].iter().flat_map(|word| [*word as u16, (word >> 16) as u16]);
        let sums = words[..4].iter().map(|word| f32::from_bits(*word));
        sums.chain(halves.map(T::value)).all(|x| x.fract() == 0.0 && x.abs() <= 256.0)
    });
    for (i, (found, expected)) in found.iter().zip(expected).enumerate() {
        let (lane, register) = (i / 4, i % 4);
        let magnitude = magnitudes[lane / 4 + 8 * (register / 2)][2 * (lane % 4) + register % 2];
        let (found, expected) = (f32::from_bits(*found), f32::from_bits(*expected));
        let same = if expected.is_finite() && found.is_finite() {
            let tolerance =
                if exact { 0.0 } else { magnitude / f64::from(1 << 18) + f64::from(f32::MIN_POSITIVE) };
            (f64::from(found) - f64::from(expected)).abs() <= tolerance
        } else {
            found == expected || (found.is_nan() && expected.is_nan())
        };
        if !same {
            return Err(format!(
                "lane {lane}, register {register}: {found}, not {expected}, of magnitude {magnitude}"
            ));
        }
    }
    Ok(())
}

/// Applies [`products_agree`] warp by warp: to the `mma.sync` results of the two sides and, if a side has `wgmma`
/// results, to these and the other side's `mma.sync` results. All warps have the first warp's factors b.
fn warpgroup_products_agree(input: &[u32], found: &[u32], expected: &[u32]) -> Result<(), String> {
    for warp in 0..4 {
        let mut own = input[warp * 320..][..320].to_vec();
        for (lane, words) in own.chunks_mut(10).enumerate() {
            words[8..].copy_from_slice(&input[lane * 10 + 8..][..2]);
        }
        // Each lane of the warp has three results (one of `mma.sync`, two of `wgmma`) of four words each.
        let part = |output: &[u32], part: usize| {
            let lanes = output[warp * 32 * 12..][..32 * 12].chunks(12);
            lanes.flat_map(|words| words[4 * part..][..4].to_vec()).collect::<Vec<u32>>()
        };
        let [by_mma, expected_by_mma] = [found, expected].map(|output| part(output, 0));
        let agree = |which: &str, found: &[u32], expected: &[u32]| {
            products_agree::<bf16>(&own, found, expected)
                .map_err(|error| format!("{which}, warp {warp}, {error}"))
        };
        agree("mma.sync", &by_mma, &expected_by_mma)?;
        for (index, name) in [(1, "wgmma from shared memory"), (2, "wgmma from registers")] {
            let sides = [part(found, index), part(expected, index)];
            let [here, there] = sides.each_ref().map(|words| words.iter().any(|word| *word != UNWRITTEN));
            if here {
                agree(name, &sides[0], &expected_by_mma)?;
            }
            if there {
                agree(name, &by_mma, &sides[1])?;
            }
        }
    }
    Ok(())
}

/// Counts the words of `wgmma` results that were written, and the written words with the same bits as `mma.sync`.
pub fn equal_to_mma(output: &[u32]) -> [usize; 2] {
    let mut counts = [0; 2];
    for words in output.chunks(12) {
        for (i, word) in words[4..].iter().enumerate() {
            counts[0] += usize::from(*word != UNWRITTEN);
            counts[1] += usize::from(*word == words[i % 4]);
        }
    }
    counts
}

/// Requires the results of ex2.approx, powers of two, to agree. The instruction's relative error is at most 2⁻²², the
/// model's (the C library's exp2f, within one ulp) at most 2⁻²³. Results that must be exact: 0, infinity, and 1 for ±0
/// and for subnormal exponents. NaN must match NaN.
fn powers_agree(input: &[u32], found: &[u32], expected: &[u32]) -> Result<(), String> {
    for ((input, found), expected) in input.iter().zip(found).zip(expected) {
        let [x, found, expected] = [input, found, expected].map(|bits| f32::from_bits(*bits));
        let same = if !expected.is_finite() || expected == 0.0 || x.abs() < f32::MIN_POSITIVE {
            found.to_bits() == expected.to_bits() || (found.is_nan() && expected.is_nan())
        } else {
            let error = (f64::from(found) - f64::from(expected)).abs() / f64::from(expected);
            error <= 1.5 / f64::from(1 << 22)
        };
        if !same {
            return Err(format!("2^{x} is {found}, not {expected}"));
        }
    }
    Ok(())
}

/// Returns the index of an f32 in the order of all f32 numbers; neighbouring numbers have neighbouring indices.
fn place(x: f32) -> i64 {
    let magnitude = i64::from(x.to_bits() & 0x7fff_ffff);
    if x.is_sign_negative() { -magnitude } else { magnitude }
}

/// Requires the results of CUDA's math functions to agree. The C library's functions are within one ulp, so the
/// distance to a GPU's result may be CUDA's bound plus one. The stand-ins for sine and cosine of multiples of π round
/// the argument to f64, so where the exact result is 0, theirs is only within 2⁻⁵⁰ of 0. NaN must match NaN, and
/// infinity the same infinity.
fn functions_agree(input: &[u32], found: &[u32], expected: &[u32]) -> Result<(), String> {
    for (i, ((x, found), expected)) in input.iter().zip(found).zip(expected).enumerate() {
        let [x, found, expected] = [x, found, expected].map(|bits| f32::from_bits(*bits));
        let Function { name, ulps, .. } = &FUNCTIONS[i % FUNCTIONS.len()];
        let same = if expected.is_finite() && found.is_finite() {
            let nothing = name.contains("pif") && (found - expected).abs() <= (-50f32).exp2();
            nothing || (place(found) - place(expected)).unsigned_abs() <= u64::from(ulps + 1)
        } else {
            found == expected || (found.is_nan() && expected.is_nan())
        };
        if !same {
            return Err(format!("{name} of {x} is {found}, not {expected}"));
        }
    }
    Ok(())
}

impl Instruction {
    fn cases(&self) -> usize {
        self.input.len() / self.words_in
    }

    /// Runs the instruction on all inputs and returns the results.
    pub fn run<R: Runtime>(&self, runtime: &R, stream: &R::Stream) -> Result<Vec<u32>, RuntimeError> {
        let mut output = vec![UNWRITTEN; self.cases() * self.words_out];
        let mut input = runtime.allocate::<u32>(stream, self.input.len())?;
        let mut out = runtime.allocate::<u32>(stream, output.len())?;
        runtime.upload(stream, &self.input, &mut input, 0)?;
        runtime.upload(stream, &output, &mut out, 0)?;
        {
            let (read, written) = (runtime.view(stream, &input), runtime.view_mut(stream, &mut out));
            let params = Params { input: read.address(), out: written.address() };
            let region = |name, address, len, access| Region { name, address, bytes: 4 * len as u64, access };
            let regions = [
                region("in", params.input, read.len(), Access::Read),
                region("out", params.out, written.len(), Access::Write),
            ];
            let launch = Launch {
                kernel: self.kernel,
                grid: [self.cases() as u32, 1, 1],
                threads: self.threads,
                shared_bytes: 4096,
                params: (&raw const params).cast::<c_void>(),
                params_bytes: size_of::<Params>(),
                regions: &regions,
            };
            // SAFETY: the parameters have the kernel's type. Its operands have one case's words for each CTA and live
            // until the results are copied.
            unsafe { runtime.launch(stream, &launch) }?;
        }
        runtime.download(stream, &out, 0, &mut output)?;
        Ok(output)
    }

    /// Compares a machine's results with recorded results, case by case.
    pub fn compare(&self, found: &[u32], recorded: &[u32]) -> Result<(), String> {
        if found.len() != recorded.len() {
            return Err(format!(
                "{}: {} words, and {} are recorded",
                self.kernel,
                found.len(),
                recorded.len()
            ));
        }
        let cases = self.input.chunks(self.words_in);
        for (case, (input, (found, recorded))) in
            cases.zip(found.chunks(self.words_out).zip(recorded.chunks(self.words_out))).enumerate()
        {
            (self.agree)(input, found, recorded)
                .map_err(|error| format!("{}, case {case}: {error}", self.kernel))?;
        }
        Ok(())
    }
}

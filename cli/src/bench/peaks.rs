//! Measures the machine's limits: memory bandwidth and arithmetic throughput.

use std::hint::black_box;
use std::time::Instant;

use flexdraft::device::gpu;
use serde::Serialize;

/// The limits of the device that steps are timed on.
#[derive(Clone, Debug, Serialize)]
#[serde(untagged)]
pub enum Peaks {
    Cpu(CpuPeaks),
    Gpu(gpu::Peaks),
}

impl Peaks {
    /// Returns the memory bandwidth that a step's floor is computed with, in bytes per second.
    pub fn bytes_per_second(&self) -> f64 {
        match self {
            Self::Cpu(cpu) => cpu.read_bytes_per_second,
            Self::Gpu(gpu) => gpu.copy_bytes_per_second,
        }
    }

    /// Returns the arithmetic throughput that a step's floor is computed with, in floating-point operations per second.
    pub fn flops_per_second(&self) -> f64 {
        match self {
            Self::Cpu(cpu) => cpu.flops_per_second,
            Self::Gpu(gpu) => gpu.product_flops_per_second,
        }
    }

    /// Returns whether the device runs asynchronously, so that the time to submit a step differs from the step's
    /// time.
    pub fn runs_behind(&self) -> bool {
        matches!(self, Self::Gpu(_))
    }
}

/// The memory bandwidth and arithmetic throughput of the CPU with a number of threads.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct CpuPeaks {
    /// Bandwidth of a sum over memory, in bytes per second.
    pub read_bytes_per_second: f64,
    /// Throughput of f32 fused multiply-adds on registers alone, in floating-point operations per second.
    pub flops_per_second: f64,
    pub threads: usize,
}

/// Number of sums over memory that are timed; the fastest one counts.
const SUMS: usize = 5;

/// Number of independent chains of the arithmetic loop: two units with a latency of four cycles need eight.
const CHAINS: usize = 12;

/// Number of rounds of the arithmetic loop: a few hundredths of a second.
const ROUNDS: usize = 4 << 20;

impl CpuPeaks {
    /// Measures memory bandwidth and arithmetic throughput, reading `bytes` bytes of memory.
    pub fn measure(threads: usize, bytes: usize) -> Self {
        Self {
            read_bytes_per_second: read_bytes_per_second(threads, bytes),
            flops_per_second: flops_per_second(threads),
            threads,
        }
    }
}

fn read_bytes_per_second(threads: usize, bytes: usize) -> f64 {
    let memory: Vec<u64> = (0..bytes / size_of::<u64>()).map(|i| i as u64).collect();
    let part = memory.len().div_ceil(threads).max(1);
    let seconds = || {
        let start = Instant::now();
        std::thread::scope(|scope| {
            for part in memory.chunks(part) {
                scope.spawn(move || black_box(sum(part)));
            }
        });
        start.elapsed().as_secs_f64()
    };
    let best = (0..SUMS).map(|_| seconds()).fold(f64::INFINITY, f64::min);
    size_of_val(memory.as_slice()) as f64 / best
}

fn flops_per_second(threads: usize) -> f64 {
    let seconds = || {
        let start = Instant::now();
        std::thread::scope(|scope| {
            for _ in 0..threads {
                scope.spawn(|| black_box(multiply_add(ROUNDS)));
            }
        });
        start.elapsed().as_secs_f64()
    };
    let best = (0..SUMS).map(|_| seconds()).fold(f64::INFINITY, f64::min);
    (threads * ROUNDS * CHAINS * lanes() * 2) as f64 / best
}

/// Returns the sum of all numbers in `memory`, from many partial sums that the compiler vectorises.
fn sum(memory: &[u64]) -> u64 {
    let mut sums = [0u64; 32];
    let (chunks, rest) = memory.as_chunks::<32>();
    for chunk in chunks {
        for (sum, value) in sums.iter_mut().zip(chunk) {
            *sum = sum.wrapping_add(*value);
        }
    }
    sums.iter().chain(rest).fold(0u64, |sum, value| sum.wrapping_add(*value))
}

/// Returns the number of lanes in the vectors that [`multiply_add`] uses.
fn lanes() -> usize {
    #[cfg(target_arch = "x86_64")]
    {
        if is_x86_feature_detected!("avx512f") {
            return 16;
        }
        if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
            return 8;
        }
    }
    4
}

/// Runs `rounds` multiply-adds in every lane of every chain; the result is not used.
fn multiply_add(rounds: usize) -> f32 {
    let (factor, addend) = (black_box(0.999_9f32), black_box(1e-4f32));
    #[cfg(target_arch = "x86_64")]
    {
        match lanes() {
            // SAFETY: the machine has AVX-512F.
            16 => return unsafe { x86::avx512(rounds, factor, addend) },
            // SAFETY: the machine has AVX2 and FMA.
            8 => return unsafe { x86::avx2(rounds, factor, addend) },
            _ => {}
        }
    }
    let mut chains = [[1.0f32; 4]; CHAINS];
    for _ in 0..rounds {
        for chain in &mut chains {
            for x in chain {
                *x = *x * factor + addend;
            }
        }
    }
    chains.as_flattened().iter().sum()
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::{
        _mm256_cvtss_f32, _mm256_fmadd_ps, _mm256_set1_ps, _mm512_fmadd_ps, _mm512_reduce_add_ps,
        _mm512_set1_ps,
    };

    use super::CHAINS;

    #[target_feature(enable = "avx512f")]
    pub fn avx512(rounds: usize, factor: f32, addend: f32) -> f32 {
        let (factor, addend) = (_mm512_set1_ps(factor), _mm512_set1_ps(addend));
        let mut chains = [_mm512_set1_ps(1.0); CHAINS];
        for _ in 0..rounds {
            for chain in &mut chains {
                *chain = _mm512_fmadd_ps(*chain, factor, addend);
            }
        }
        chains.iter().map(|&chain| _mm512_reduce_add_ps(chain)).sum()
    }

    #[target_feature(enable = "avx2,fma")]
    pub fn avx2(rounds: usize, factor: f32, addend: f32) -> f32 {
        let (factor, addend) = (_mm256_set1_ps(factor), _mm256_set1_ps(addend));
        let mut chains = [_mm256_set1_ps(1.0); CHAINS];
        for _ in 0..rounds {
            for chain in &mut chains {
                *chain = _mm256_fmadd_ps(*chain, factor, addend);
            }
        }
        chains.iter().map(|&chain| _mm256_cvtss_f32(chain)).sum()
    }
}

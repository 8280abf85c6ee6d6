//! Tests that the SIMT emulator runs kernels as a GPU does, and finds bugs that would not show on a GPU. The kernels
//! are in `cuda/simt/tests/planted.cu`; each kernel with a bug has a correct twin.

use flexdraft::runtime::simt::{Checking, Copies, Traffic};
use flexdraft::runtime::{RuntimeError, Simt, SimtOptions};
use half::bf16;
use proptest::prelude::*;

use crate::support::planted::{Run, counting};
use crate::support::properties::properties;

/// Returns emulators with every combination of checks and copies, and a few schedules.
fn hosts() -> Vec<Simt> {
    let mut hosts = Vec::new();
    for checking in [Checking::Off, Checking::Accesses] {
        hosts.extend(checked_or_not(checking));
    }
    hosts
}

fn checked_or_not(checking: Checking) -> Vec<Simt> {
    let mut hosts = Vec::new();
    for copies in [Copies::Eager, Copies::Late] {
        for schedule in [0, 1, 2, 77] {
            hosts.push(Simt::new(SimtOptions { checking, copies, schedule }));
        }
    }
    hosts
}

/// Returns the error that each checking emulator reports for a kernel; panics if an emulator misses the bug.
fn found(kernel: &'static str, run: impl Fn() -> Run) -> Vec<String> {
    checked_or_not(Checking::Accesses)
        .iter()
        .map(|simt| match run().on(simt, kernel) {
            Err(error) => error,
            Ok(()) => panic!("{kernel} passed on {simt:?}"),
        })
        .collect()
}

#[test]
fn barriers() {
    for simt in hosts() {
        let mut run = Run::new(counting(3 * 70), 3 * 70, 3, 70);
        run.on(&simt, "planted_reverse").unwrap();
        let expected: Vec<u32> = run.input.chunks(70).flat_map(|cta| cta.iter().rev().copied()).collect();
        assert_eq!(run.out, expected, "{simt:?}");
    }
    for error in found("planted_reverse_without_barrier", || Run::new(counting(128), 128, 1, 128)) {
        assert!(error.contains("races with") && error.contains("shared memory"), "{error}");
    }
}

#[test]
fn asynchronous_copies() {
    for simt in hosts() {
        for source_bytes in [16, 8, 4, 0] {
            let mut run = Run::new(counting(2 * 4 * 64), 2 * 4 * 64, 2, 64).with(source_bytes);
            run.on(&simt, "planted_copy").unwrap();
            let expected: Vec<u32> = run
                .input
                .chunks(4 * 64)
                .flat_map(|cta| cta.as_chunks::<4>().0.iter().rev())
                .flat_map(|chunk| (0..4).map(|i| if 4 * i < source_bytes { chunk[i as usize] } else { 0 }))
                .collect();
            assert_eq!(run.out, expected, "{simt:?}");
        }
    }
    let run = || Run::new(counting(256), 256, 1, 64).with(16);
    for error in found("planted_copy_without_wait", run) {
        assert!(error.contains("while an asynchronous copy of thread"), "{error}");
    }
    for error in found("planted_copy_without_barrier", run) {
        assert!(error.contains("races with") || error.contains("asynchronous copy"), "{error}");
    }
    for error in found("planted_misaligned", || run().with(4)) {
        assert!(error.contains("cp.async: global address") && error.contains("multiple of 16"), "{error}");
    }
}

#[test]
fn the_last_cta_sees_what_was_fenced() {
    // Thread `thread` of a CTA adds up elements, and thread 0 counts the CTAs that have arrived; both may be the same
    // thread.
    let run = |thread| Run::new(counting(5 * 32), 6, 5, 32).with(thread);
    let sound = [
        ("planted_last_cta", 0),
        ("planted_last_cta", 31),
        ("planted_last_cta_releases_elsewhere", 0),
        ("planted_last_cta_acquires_elsewhere", 0),
    ];
    for simt in hosts() {
        for (kernel, thread) in sound {
            let mut run = run(thread);
            for _ in 0..2 {
                run.on(&simt, kernel).unwrap();
                let sum = run.input.iter().fold(0u32, |sum, &x| sum.wrapping_add(x));
                assert_eq!(run.out[0], sum, "{kernel} on {simt:?}");
                assert_eq!(run.counter, [0]);
            }
        }
    }
    let missing = [
        ("planted_last_cta_without_release", 0),
        ("planted_last_cta_without_release", 31),
        ("planted_last_cta_without_acquire", 0),
        ("planted_last_cta_without_acquire", 31),
        // In these kernels, the fence comes from thread 31, which does no atomic operation.
        ("planted_last_cta_releases_elsewhere", 31),
        ("planted_last_cta_acquires_elsewhere", 31),
    ];
    for (kernel, thread) in missing {
        let race = format!("`out` races with a write by thread {thread} of CTA");
        for error in found(kernel, || run(thread)) {
            assert!(error.contains(&race), "{error}");
        }
    }
}

#[test]
fn bounds_and_access() {
    for simt in hosts() {
        let mut run = Run::new(counting(67), 64, 2, 32).with(3);
        run.on(&simt, "planted_offset").unwrap();
        assert_eq!(run.out, run.input[3..]);
    }
    for error in found("planted_offset", || Run::new(counting(66), 64, 2, 32).with(3)) {
        assert!(error.contains("a read of 4 bytes out of bounds: 0 bytes after `in`"), "{error}");
    }
    for error in found("planted_offset", || Run::new(counting(66), 63, 2, 32).with(2)) {
        assert!(error.contains("a write of 4 bytes out of bounds: 0 bytes after `out`"), "{error}");
    }
    for error in found("planted_write_input", || Run::new(counting(32), 32, 1, 32)) {
        assert!(error.contains("a write to `in`, which is only read"), "{error}");
    }
}

#[test]
fn shared_memory_ends() {
    let mut run = Run::new(counting(256), 256, 1, 64).with(16);
    run.shared_bytes = 1008;
    for simt in hosts() {
        let error = run.on(&simt, "planted_copy").unwrap_err();
        assert!(error.contains("out of the CTA's 1008 bytes"), "{error}");
    }
}

#[test]
fn barriers_that_not_all_reach() {
    for simt in hosts() {
        let error =
            Run::new(counting(64), 64, 1, 64).with(16).on(&simt, "planted_divergent_barrier").unwrap_err();
        assert!(error.contains("threads that never come"), "{error}");
        // With one warp per barrier there is no error: the warp that waits at the other barrier has ended when this
        // barrier completes.
        Run::new(counting(64), 64, 1, 64).with(32).on(&simt, "planted_divergent_barrier").unwrap();
        Run::new(counting(64), 64, 1, 64).with(64).on(&simt, "planted_divergent_barrier").unwrap();
    }
}

#[test]
fn lanes_are_ordered_by_syncwarp_only() {
    for simt in hosts() {
        let mut run = Run::new(counting(64), 64, 1, 64).with(1);
        run.on(&simt, "planted_lanes").unwrap();
        assert!((0..64).all(|i| run.out[i] == run.input[i ^ 1]));
    }
    for error in found("planted_lanes", || Run::new(counting(64), 64, 1, 64)) {
        assert!(error.contains("races with"), "{error}");
    }
}

#[test]
fn warp_wide_operations() {
    let input = counting(64);
    for simt in hosts() {
        let mut run = Run::new(input.clone(), 640, 1, 64);
        run.on(&simt, "planted_collectives").unwrap();
        for (t, out) in run.out.chunks(10).enumerate() {
            let (lane, warp) = (t % 32, &input[t / 32 * 32..][..32]);
            let ones = |f: &dyn Fn(u32) -> bool| {
                warp.iter().enumerate().filter(|&(_, &x)| f(x)).map(|(l, _)| 1u32 << l).sum::<u32>()
            };
            let expected = [
                warp[warp[lane] as usize % 32],
                if lane % 16 >= 3 { warp[lane - 3] } else { warp[lane] },
                if lane + 5 < 32 { warp[lane + 5] } else { warp[lane] },
                warp[lane ^ 9],
                ones(&|x| x & 1 == 1),
                ones(&|x| x % 3 == warp[lane] % 3),
                warp.iter().fold(0u32, |sum, &x| sum.wrapping_add(x)),
                *warp.iter().max().unwrap(),
                *warp.iter().min().unwrap(),
                input.iter().filter(|&&x| x & 1 == 1).count() as u32,
            ];
            assert_eq!(out, expected, "thread {t} on {simt:?}");
        }
    }
}

#[test]
fn ldmatrix_transposes() {
    let elements: Vec<u16> = (0..64).map(|i| 100 + i).collect();
    let pack = |values: &[u16]| values.chunks(2).map(|p| u32::from(p[0]) | u32::from(p[1]) << 16).collect();
    for simt in hosts() {
        let mut run = Run::new(pack(&elements), 32, 1, 32);
        run.on(&simt, "planted_transpose").unwrap();
        let transposed: Vec<u16> = (0..64).map(|i| elements[i % 8 * 8 + i / 8]).collect();
        assert_eq!(run.out, pack(&transposed) as Vec<u32>);
    }
}

proptest! {
    #![proptest_config(properties(24))]

    #[test]
    fn mma_is_a_matrix_product(
        a in prop::collection::vec(-4i8..5, 256),
        b in prop::collection::vec(-4i8..5, 128),
        c in prop::collection::vec(-100i16..100, 128),
        schedule in 0u64..4,
    ) {
        // The inputs are small integers, so every sum is exact in any order.
        let simt = Simt::new(SimtOptions { schedule, checking: Checking::Accesses, ..SimtOptions::default() });
        let bits = |x: &i8| u32::from(bf16::from_f32(f32::from(*x)).to_bits());
        let packed: Vec<u32> = a.iter().chain(&b).map(bits).collect();
        let input = packed.chunks(2).map(|pair| pair[0] | pair[1] << 16).collect();
        let mut run = Run::new(input, 128, 1, 32);
        run.out = c.iter().map(|&x| f32::from(x).to_bits()).collect();
        run.on(&simt, "planted_mma").unwrap();
        for row in 0..16 {
            for col in 0..8 {
                let sum: i32 = (0..16).map(|k| i32::from(a[row * 16 + k]) * i32::from(b[col * 16 + k])).sum();
                let expected = (sum + i32::from(c[row * 8 + col])) as f32;
                prop_assert_eq!(f32::from_bits(run.out[row * 8 + col]), expected);
            }
        }
    }
}

#[test]
fn traffic_is_counted() {
    let simt = Simt::new(SimtOptions { checking: Checking::Accesses, ..SimtOptions::default() });
    Run::new(counting(67), 64, 2, 32).with(3).on(&simt, "planted_offset").unwrap();
    let expected = |kernel, operand, [read, written, read_total, written_total]: [u64; 4]| Traffic {
        kernel,
        operand,
        read,
        written,
        read_total,
        written_total,
    };
    let traffic = |kernel, read, read_total| {
        let counter = expected(kernel, "counter", [0; 4]);
        [expected(kernel, "in", [read, 0, read_total, 0]), expected(kernel, "out", [0, 256, 0, 256]), counter]
    };
    assert_eq!(simt.take_traffic(), traffic("planted_offset", 256, 256));
    assert!(simt.take_traffic().is_empty());
    for (kernel, total) in [("planted_add_largest", 256), ("planted_add_largest_reading_twice", 512)] {
        Run::new(counting(64), 64, 2, 32).on(&simt, kernel).unwrap();
        assert_eq!(simt.take_traffic(), traffic(kernel, 256, total));
    }
    // Bytes of cp.async copies and of atomic operations are counted too.
    Run::new(counting(256), 256, 1, 64).with(8).on(&simt, "planted_copy").unwrap();
    assert_eq!(simt.take_traffic()[0], expected("planted_copy", "in", [512, 0, 512, 0]));
    Run::new(counting(5 * 32), 6, 5, 32).on(&simt, "planted_last_cta").unwrap();
    assert_eq!(simt.take_traffic()[2], expected("planted_last_cta", "counter", [4, 4, 20, 24]));
}

#[test]
fn kernels_and_threads_that_are_not() {
    let simt = Simt::new(SimtOptions::default());
    let mut run = Run::new(counting(64), 128, 1, 64);
    let error = RuntimeError::NoKernel("planted_nothing").to_string();
    assert_eq!(run.on(&simt, "planted_nothing").unwrap_err(), error);
    assert!(run.on(&simt, "planted_mma").unwrap_err().contains("64 threads a CTA, of at most 32"));
}

//! Tests of the norms and sums: the reference's values row by row, and the same bits for a row in any batch.

use flexdraft::kernels::norm::{Add, Residual, RmsNorm};
use half::{bf16, f16};
use proptest::prelude::*;

use crate::halves::{Half, Kind, NAN, halves};
use crate::processors::Bench;
use crate::rows::{RELEASED_WIDTHS, is_rounded, on_every_processor, on_every_runtime};
use crate::support::properties::properties;

proptest! {
    #![proptest_config(properties(16))]

    #[test]
    fn norm_with_and_without_a_residual(
        eighths in 1usize..180,
        rows in 0usize..4,
        residual in any::<bool>(),
        kind in prop::sample::select(Kind::BOTH.to_vec()),
        seed in any::<u64>(),
    ) {
        on_every_processor(seed, |bench| check(bench, kind, 8 * eighths, rows, residual, seed))?;
    }
}

#[test]
fn widths_of_released_models() {
    for ([hidden, _], residual) in RELEASED_WIDTHS.into_iter().zip([true, false]) {
        on_every_processor(1, |bench| check(bench, Kind::Bf16, hidden, 5, residual, 1)).unwrap();
    }
}

#[test]
fn is_the_same_on_every_runtime() {
    for residual in [false, true] {
        on_every_runtime(|bench| check(bench, Kind::F16, 328, 5, residual, 1));
    }
}

fn check(
    bench: &Bench,
    kind: Kind,
    cols: usize,
    rows: usize,
    residual: bool,
    seed: u64,
) -> Result<(), TestCaseError> {
    match kind {
        Kind::Bf16 => check_with::<bf16>(bench, cols, rows, residual, seed),
        Kind::F16 => check_with::<f16>(bench, cols, rows, residual, seed),
    }
}

fn check_with<T: Half>(
    bench: &Bench,
    cols: usize,
    rows: usize,
    residual: bool,
    seed: u64,
) -> Result<(), TestCaseError> {
    let Bench { kernels, stream } = bench;
    let (before, delta) = (halves(seed, rows * cols), halves(seed ^ 1, rows * cols));
    let weight: Vec<f32> = halves::<bf16>(seed ^ 2, cols).iter().map(|w| w.to_f32() * 1.01).collect();
    let weight_memory = bench.memory(&weight);
    // Runs `rms_norm` and returns x, to which it may have added delta, and the output.
    let run = |x: &[T], delta: &[T]| {
        let (mut x, delta) = (bench.memory(x), bench.memory(delta));
        let mut out = bench.memory(&vec![T::from_bits(NAN); x.len()]);
        let args = RmsNorm {
            x: match residual {
                true => Residual::Add { x: bench.view_mut(&mut x), delta: bench.view(&delta) },
                false => Residual::Is(bench.view(&x)),
            },
            weight: bench.view(&weight_memory),
            out: bench.view_mut(&mut out),
            eps: 1e-5,
        };
        kernels.rms_norm(stream, &args).unwrap();
        drop(args);
        (bench.host(&x), bench.host(&out))
    };
    let (x, out) = run(&before, &delta);
    let sums: Vec<T> =
        before.iter().zip(&delta).map(|(x, d)| T::rounded(x.f64() as f32 + d.f64() as f32)).collect();
    prop_assert_eq!(&x, if residual { &sums } else { &before });
    let (mut added, delta_memory) = (bench.memory(&before), bench.memory(&delta));
    let args = Add { x: bench.view_mut(&mut added), delta: bench.view(&delta_memory) };
    kernels.add(stream, &args).unwrap();
    drop(args);
    prop_assert_eq!(&bench.host(&added), &sums);
    let weights: Vec<f64> = weight.iter().map(|&w| f64::from(w)).collect();
    for (x, out) in x.chunks(cols).zip(out.chunks(cols)) {
        let exact = flexdraft_reference::norm::rms_norm(
            &x.iter().map(|x| x.f64()).collect::<Vec<f64>>(),
            &weights,
            1e-5,
        );
        for (&out, exact) in out.iter().zip(exact) {
            prop_assert!(is_rounded(out, exact), "{out:?} for {exact}");
        }
    }
    // A row has the same bits in a batch of one row.
    for row in 0..rows {
        let range = row * cols..(row + 1) * cols;
        let (_, alone) = run(&before[range.clone()], &delta[range.clone()]);
        prop_assert_eq!(&alone, &out[range]);
    }
    Ok(())
}

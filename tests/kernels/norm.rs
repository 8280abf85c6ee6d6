//! Tests of the norms and sums: the reference's values row by row, and the same bits for a row in any batch.

use flexdraft::kernels::norm::{Add, Residual, RmsNorm};
use half::bf16;
use proptest::prelude::*;

use crate::processors::Bench;
use crate::rows::{POISON, RELEASED_WIDTHS, f64s, is_rounded, on_every_processor, on_every_runtime};
use crate::support::noise::halves;
use crate::support::properties::properties;

proptest! {
    #![proptest_config(properties(16))]

    #[test]
    fn norm_with_and_without_a_residual(
        eighths in 1usize..180,
        rows in 0usize..4,
        residual in any::<bool>(),
        seed in any::<u64>(),
    ) {
        on_every_processor(seed, |bench| check(bench, 8 * eighths, rows, residual, seed))?;
    }
}

#[test]
fn widths_of_released_models() {
    for ([hidden, _], residual) in RELEASED_WIDTHS.into_iter().zip([true, false]) {
        on_every_processor(1, |bench| check(bench, hidden, 5, residual, 1)).unwrap();
    }
}

#[test]
fn is_the_same_on_every_runtime() {
    for residual in [false, true] {
        on_every_runtime(|bench| check(bench, 328, 5, residual, 1));
    }
}

fn check(bench: &Bench, cols: usize, rows: usize, residual: bool, seed: u64) -> Result<(), TestCaseError> {
    let Bench { kernels, stream } = bench;
    let (before, delta) = (halves(seed, rows * cols), halves(seed ^ 1, rows * cols));
    let weight: Vec<f32> = halves(seed ^ 2, cols).iter().map(|w| w.to_f32() * 1.01).collect();
    let weight_memory = bench.memory(&weight);
    // Runs `rms_norm` and returns x, to which it may have added delta, and the output.
    let run = |x: &[bf16], delta: &[bf16]| {
        let (mut x, delta) = (bench.memory(x), bench.memory(delta));
        let mut out = bench.memory(&vec![POISON; x.len()]);
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
    let sums: Vec<bf16> =
        before.iter().zip(&delta).map(|(x, d)| bf16::from_f32(x.to_f32() + d.to_f32())).collect();
    prop_assert_eq!(&x, if residual { &sums } else { &before });
    let (mut added, delta_memory) = (bench.memory(&before), bench.memory(&delta));
    let args = Add { x: bench.view_mut(&mut added), delta: bench.view(&delta_memory) };
    kernels.add(stream, &args).unwrap();
    drop(args);
    prop_assert_eq!(&bench.host(&added), &sums);
    let weights: Vec<f64> = weight.iter().map(|&w| f64::from(w)).collect();
    for (x, out) in x.chunks(cols).zip(out.chunks(cols)) {
        let exact = flexdraft_reference::norm::rms_norm(&f64s(x), &weights, 1e-5);
        for (&out, exact) in out.iter().zip(exact) {
            prop_assert!(is_rounded(out, exact), "{out} for {exact}");
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

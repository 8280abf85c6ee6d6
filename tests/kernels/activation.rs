//! Tests of the activation kernels: the reference's values element by element, and rows without a bonus row unchanged.

use flexdraft::kernels::activation::{SiluAdd, SiluMul};
use half::{bf16, f16};
use proptest::prelude::*;

use crate::halves::{Half, Kind, NAN, halves};
use crate::processors::Bench;
use crate::rows::{RELEASED_WIDTHS, is_rounded, on_every_processor, on_every_runtime};
use crate::support::properties::properties;

proptest! {
    #![proptest_config(properties(16))]

    #[test]
    fn activations(
        eighths in 1usize..140,
        rows in 0usize..4,
        absent in prop::sample::select(vec![-1, 2, -2]),
        kind in prop::sample::select(Kind::BOTH.to_vec()),
        seed in any::<u64>(),
    ) {
        on_every_processor(seed, |bench| check(bench, kind, 8 * eighths, rows, absent, seed))?;
    }
}

#[test]
fn widths_of_released_models() {
    for [_, intermediate] in RELEASED_WIDTHS {
        on_every_processor(1, |bench| check(bench, Kind::F16, intermediate, 5, -1, 1)).unwrap();
    }
}

#[test]
fn is_the_same_on_every_runtime() {
    on_every_runtime(|bench| check(bench, Kind::F16, 328, 5, 2, 1));
}

fn check(
    bench: &Bench,
    kind: Kind,
    cols: usize,
    rows: usize,
    absent: i32,
    seed: u64,
) -> Result<(), TestCaseError> {
    match kind {
        Kind::Bf16 => check_with::<bf16>(bench, cols, rows, absent, seed),
        Kind::F16 => check_with::<f16>(bench, cols, rows, absent, seed),
    }
}

fn check_with<T: Half>(
    bench: &Bench,
    cols: usize,
    rows: usize,
    absent: i32,
    seed: u64,
) -> Result<(), TestCaseError> {
    let Bench { kernels, stream } = bench;
    let x: Vec<T> = halves(seed, rows * 2 * cols);
    let (from, mut out) = (bench.memory(&x), bench.memory(&vec![T::from_bits(NAN); rows * cols]));
    let args = SiluMul { x: bench.view(&from), out: bench.view_mut(&mut out), cols };
    kernels.silu_mul(stream, &args).unwrap();
    drop(args);
    let silu = |x: f64| x / (1.0 + (-x).exp());
    for (row, out) in x.chunks(2 * cols).zip(bench.host(&out).chunks(cols)) {
        for (i, &out) in out.iter().enumerate() {
            let exact = silu(row[i].f64()) * row[cols + i].f64();
            prop_assert!(is_rounded(out, exact), "{out:?} for {exact}");
        }
    }

    let bonus = halves(seed ^ 5, 2 * cols);
    // There are bonus rows 0 and 1, so −1, 2 and −2 are no indices of a bonus row. Index −1 asks for no bonus row and
    // is not an error.
    let owner: Vec<i32> = (0..rows).map(|row| [0, absent, 1][row % 3]).collect();
    let before = &x[..rows * cols];
    let (mut hidden, mut error) = (bench.memory(before), bench.memory(&[0]));
    let (bonus_memory, owner_memory) = (bench.memory(&bonus), bench.memory(&owner));
    let args = SiluAdd {
        x: bench.view_mut(&mut hidden),
        bonus: bench.view(&bonus_memory),
        owner: bench.view(&owner_memory),
        error: Some(bench.view_mut(&mut error)),
        cols,
    };
    kernels.silu_add(stream, &args).unwrap();
    drop(args);
    prop_assert_eq!(bench.host(&error), [if rows > 1 && absent != -1 { 16 } else { 0 }]);
    let hidden = bench.host(&hidden);
    for row in 0..rows {
        for c in 0..cols {
            let (before, found) = (before[row * cols + c], hidden[row * cols + c]);
            match usize::try_from(owner[row]).ok().and_then(|owner| bonus.get(owner * cols + c)) {
                Some(bonus) => {
                    let exact = silu(f64::from(before.f64() as f32 + bonus.f64() as f32));
                    prop_assert!(is_rounded(found, exact), "{found:?} for {exact}");
                }
                None => prop_assert_eq!(found, before),
            }
        }
    }
    Ok(())
}

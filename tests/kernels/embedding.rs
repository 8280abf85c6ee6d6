//! Tests of embedding and gather: each output row is the row of the table that its index names, and no other byte is
//! changed.

use flexdraft::kernels::embedding::{Embed, Gather};
use half::{bf16, f16};
use proptest::prelude::*;

use crate::halves::{Half, Kind, NAN, halves};
use crate::processors::Bench;
use crate::rows::{RELEASED_WIDTHS, on_every_processor, on_every_runtime};
use crate::support::properties::properties;

proptest! {
    #![proptest_config(properties(16))]

    #[test]
    fn embedding_and_gather(
        eighths in 1usize..40,
        ids in prop::collection::vec(-2i32..9, 0..6),
        kind in prop::sample::select(Kind::BOTH.to_vec()),
        seed in any::<u64>(),
    ) {
        on_every_processor(seed, |bench| check(bench, kind, 8 * eighths, &ids, seed))?;
    }
}

#[test]
fn widths_of_released_models() {
    for [hidden, _] in RELEASED_WIDTHS {
        on_every_processor(1, |bench| check(bench, Kind::Bf16, hidden, &[3, 0, 6, 6, 1], 1)).unwrap();
    }
}

#[test]
fn is_the_same_on_every_runtime() {
    on_every_runtime(|bench| check(bench, Kind::F16, 328, &[3, 0, 6, -1, 6, 1], 1));
}

fn check(bench: &Bench, kind: Kind, cols: usize, ids: &[i32], seed: u64) -> Result<(), TestCaseError> {
    match kind {
        Kind::Bf16 => check_with::<bf16>(bench, cols, ids, seed),
        Kind::F16 => check_with::<f16>(bench, cols, ids, seed),
    }
}

fn check_with<T: Half>(bench: &Bench, cols: usize, ids: &[i32], seed: u64) -> Result<(), TestCaseError> {
    let Bench { kernels, stream } = bench;
    let vocab = 7;
    let contents: Vec<T> = halves(seed, vocab * cols);
    let (table, indices) = (bench.memory(&contents), bench.memory(ids));
    let mut error = bench.memory(&[0u32]);
    let [mut out, mut gathered] = [(); 2].map(|()| bench.memory(&vec![T::from_bits(NAN); ids.len() * cols]));
    let args = Embed {
        ids: bench.view(&indices),
        table: bench.view(&table),
        out: bench.view_mut(&mut out),
        error: Some(bench.view_mut(&mut error)),
        cols,
    };
    kernels.embed(stream, &args).unwrap();
    drop(args);
    let wrong = |id: &i32| !(0..7).contains(id);
    prop_assert_eq!(bench.host(&error), [if ids.iter().any(wrong) { 2 } else { 0 }]);
    bench.write(&[0], &mut error, 0);
    let args = Gather {
        indices: bench.view(&indices),
        x: bench.view(&table),
        out: bench.view_mut(&mut gathered),
        error: Some(bench.view_mut(&mut error)),
        cols,
    };
    kernels.gather(stream, &args).unwrap();
    drop(args);
    // Index −1 asks for a row of zeros and is not an error.
    prop_assert_eq!(bench.host(&error), [if ids.iter().any(|id| wrong(id) && *id != -1) { 16 } else { 0 }]);
    let (out, zeros) = (bench.host(&out), vec![T::rounded(0.0); cols]);
    for (row, &id) in out.chunks(cols).zip(ids) {
        let expected =
            usize::try_from(id).ok().and_then(|id| contents.chunks(cols).nth(id)).unwrap_or(&zeros);
        prop_assert_eq!(row, expected);
    }
    prop_assert_eq!(bench.host(&gathered), out);
    Ok(())
}

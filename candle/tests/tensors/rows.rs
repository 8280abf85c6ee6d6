//! Embedding, gather, norm, addition and activations.

use flexdraft::kernels::Fault;
use flexdraft::kernels::activation::{SiluAdd, SiluMul};
use flexdraft::kernels::embedding::{Embed, Gather};
use flexdraft::kernels::norm::{Add, Residual, RmsNorm};
use half::{bf16, f16};
use proptest::prelude::*;

use crate::properties::properties;
use crate::support::{Half, Noise, both, same, tensor};

proptest! {
    #![proptest_config(properties(8))]

    #[test]
    fn indexed_rows(seed: u64, rows in 0usize..6, count in 1usize..5, chunks in 1usize..9, is_f16: bool) {
        match is_f16 {
            false => indexed_rows_of::<bf16>(seed, rows, count, chunks)?,
            true => indexed_rows_of::<f16>(seed, rows, count, chunks)?,
        }
    }

    #[test]
    fn norms_and_sums(seed: u64, rows in 0usize..6, chunks in 1usize..40, is_f16: bool) {
        match is_f16 {
            false => norms_and_sums_of::<bf16>(seed, rows, chunks)?,
            true => norms_and_sums_of::<f16>(seed, rows, chunks)?,
        }
    }

    #[test]
    fn activations(seed: u64, rows in 0usize..6, drafts in 1usize..4, chunks in 1usize..9, is_f16: bool) {
        match is_f16 {
            false => activations_of::<bf16>(seed, rows, drafts, chunks)?,
            true => activations_of::<f16>(seed, rows, drafts, chunks)?,
        }
    }
}

fn indexed_rows_of<T: Half>(
    seed: u64,
    rows: usize,
    count: usize,
    chunks: usize,
) -> Result<(), TestCaseError> {
    let ((kernels, wrappers), mut noise, cols) = (both(), Noise(seed), 8 * chunks);
    let stream = wrappers.runtime().stream();
    let (ids, table) = (noise.indices(rows, count), noise.halves::<T>(count * cols));
    let (mut out, mut word) = (vec![T::from_f64(1.0); rows * cols], [0u32]);
    let (ids_tensor, table_tensor) = (tensor(&ids, &[rows]), tensor(&table, &[count, cols]));
    wrappers
        .embed(
            &stream,
            &Embed {
                ids: stream.view(&ids),
                table: stream.view(&table),
                out: stream.view_mut(&mut out),
                error: Some(stream.view_mut(&mut word)),
                cols,
            },
        )
        .unwrap();
    same(&kernels.embed(&ids_tensor, &table_tensor).unwrap(), &out);
    let faults = kernels.take_faults().unwrap();
    prop_assert_eq!(faults.map_or(0, |faults| faults.word()), word[0]);
    prop_assert_eq!(faults.is_some_and(|faults| faults.contains(Fault::Token)), word[0] != 0);
    // Faults are taken once.
    prop_assert_eq!(kernels.take_faults().unwrap(), None);

    wrappers
        .gather(
            &stream,
            &Gather {
                indices: stream.view(&ids),
                x: stream.view(&table),
                out: stream.view_mut(&mut out),
                error: None,
                cols,
            },
        )
        .unwrap();
    same(&kernels.gather(&ids_tensor, &table_tensor).unwrap(), &out);
    // Candle's own indices are u32.
    let valid: Vec<u32> = ids.iter().map(|&id| id.clamp(0, count as i32 - 1).cast_unsigned()).collect();
    let valid = tensor(&valid, &[rows]);
    let expected = table_tensor.index_select(&valid, 0).unwrap();
    same(
        &kernels.embed(&valid, &table_tensor).unwrap(),
        &expected.flatten_all().unwrap().to_vec1::<T>().unwrap(),
    );
    Ok(())
}

fn norms_and_sums_of<T: Half>(seed: u64, rows: usize, chunks: usize) -> Result<(), TestCaseError> {
    let ((kernels, wrappers), mut noise, cols) = (both(), Noise(seed), 8 * chunks);
    let stream = wrappers.runtime().stream();
    let (x, delta, weight) =
        (noise.halves::<T>(rows * cols), noise.halves::<T>(rows * cols), noise.floats(cols));
    let (x_tensor, delta_tensor) = (tensor(&x, &[rows, cols]), tensor(&delta, &[rows, cols]));
    let weight_tensor = tensor(&weight, &[cols]);
    let mut out = vec![T::from_f64(1.0); rows * cols];
    wrappers
        .rms_norm(
            &stream,
            &RmsNorm {
                x: Residual::Is(stream.view(&x)),
                weight: stream.view(&weight),
                out: stream.view_mut(&mut out),
                eps: 1e-5,
            },
        )
        .unwrap();
    let normed = kernels.rms_norm(&x_tensor, &weight_tensor, 1e-5).unwrap();
    same(&normed, &out);
    same(&x_tensor, &x);

    let mut sum = x.clone();
    wrappers
        .rms_norm(
            &stream,
            &RmsNorm {
                x: Residual::Add { x: stream.view_mut(&mut sum), delta: stream.view(&delta) },
                weight: stream.view(&weight),
                out: stream.view_mut(&mut out),
                eps: 1e-5,
            },
        )
        .unwrap();
    let normed = kernels.add_rms_norm(&x_tensor, &delta_tensor, &weight_tensor, 1e-5).unwrap();
    same(&normed, &out);
    same(&x_tensor, &sum);

    wrappers.add(&stream, &Add { x: stream.view_mut(&mut sum), delta: stream.view(&delta) }).unwrap();
    kernels.add(&x_tensor, &delta_tensor).unwrap();
    same(&x_tensor, &sum);
    Ok(())
}

fn activations_of<T: Half>(
    seed: u64,
    rows: usize,
    drafts: usize,
    chunks: usize,
) -> Result<(), TestCaseError> {
    let ((kernels, wrappers), mut noise, cols) = (both(), Noise(seed), 8 * chunks);
    let stream = wrappers.runtime().stream();
    let x = noise.halves::<T>(rows * 2 * cols);
    let mut out = vec![T::from_f64(1.0); rows * cols];
    wrappers
        .silu_mul(&stream, &SiluMul { x: stream.view(&x), out: stream.view_mut(&mut out), cols })
        .unwrap();
    same(&kernels.silu_mul(&tensor(&x, &[rows, 2 * cols])).unwrap(), &out);

    let (bonus, owner) = (noise.halves::<T>(drafts * cols), noise.indices(rows, drafts));
    let x_tensor = tensor(&out, &[rows, cols]);
    let mut word = [0u32];
    wrappers
        .silu_add(
            &stream,
            &SiluAdd {
                x: stream.view_mut(&mut out),
                bonus: stream.view(&bonus),
                owner: stream.view(&owner),
                error: Some(stream.view_mut(&mut word)),
                cols,
            },
        )
        .unwrap();
    kernels.silu_add(&x_tensor, &tensor(&bonus, &[drafts, cols]), &tensor(&owner, &[rows])).unwrap();
    same(&x_tensor, &out);
    prop_assert_eq!(kernels.take_faults().unwrap().map_or(0, |faults| faults.word()), word[0]);
    Ok(())
}

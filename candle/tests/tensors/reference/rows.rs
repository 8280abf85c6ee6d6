//! Embedding, gather, norm, addition and activations.

use flexdraft_reference::norm::rms_norm;
use flexdraft_reference::swiglu::silu;
use half::{bf16, f16};
use proptest::prelude::*;

use crate::properties::properties;
use crate::support::{Half, Noise, both, tensor, values};

proptest! {
    #![proptest_config(properties(16))]

    #[test]
    fn rows_are_the_reference_s(seed: u64, rows in 0usize..6, count in 1usize..5, chunks in 1usize..40, is_f16: bool) {
        match is_f16 {
            false => check::<bf16>(seed, rows, count, 8 * chunks)?,
            true => check::<f16>(seed, rows, count, 8 * chunks)?,
        }
    }
}

/// Returns whether `found` is `exact` rounded to the type after f32 arithmetic.
fn is_rounded<T: Half>(found: T, exact: f64) -> bool {
    (found.to_f64() - exact).abs() <= exact.abs() * T::ROUNDOFF * 1.01 + 1e-6
}

/// Checks every element of `found`, by its index.
fn all_rounded<T: Half>(found: &[T], exact: impl Fn(usize) -> f64) -> Result<(), TestCaseError> {
    for (i, &found) in found.iter().enumerate() {
        prop_assert!(is_rounded(found, exact(i)), "element {i}: {found:?} for {}", exact(i));
    }
    Ok(())
}

fn check<T: Half>(seed: u64, rows: usize, count: usize, cols: usize) -> Result<(), TestCaseError> {
    let (kernels, mut noise) = (both().0, Noise(seed));
    let wide = |values: &[T]| values.iter().map(|value| value.to_f64()).collect::<Vec<f64>>();
    let (indices, table) = (noise.indices(rows, count), noise.halves::<T>(count * cols));
    let (index_tensor, table_tensor) = (tensor(&indices, &[rows]), tensor(&table, &[count, cols]));
    // The row of the table that an index names; none if the index is out of range.
    let named = |row: usize| usize::try_from(indices[row]).ok().and_then(|row| table.chunks(cols).nth(row));
    let zeros = vec![T::from_f64(0.0); cols];
    for found in [kernels.embed(&index_tensor, &table_tensor), kernels.gather(&index_tensor, &table_tensor)] {
        for (row, found) in values::<T>(&found.unwrap()).chunks(cols).enumerate() {
            prop_assert_eq!(found, named(row).unwrap_or(&zeros));
        }
    }

    let (x, delta, weight) =
        (noise.halves::<T>(rows * cols), noise.halves::<T>(rows * cols), noise.floats(cols));
    let (x_tensor, delta_tensor) = (tensor(&x, &[rows, cols]), tensor(&delta, &[rows, cols]));
    let weight_tensor = tensor(&weight, &[cols]);
    let normed = |x: &[T]| -> Vec<f64> {
        let weight: Vec<f64> = weight.iter().map(|&value| value.into()).collect();
        x.chunks(cols).flat_map(|x| rms_norm(&wide(x), &weight, f64::from(1e-5f32))).collect()
    };
    let exact = normed(&x);
    all_rounded(&values::<T>(&kernels.rms_norm(&x_tensor, &weight_tensor, 1e-5).unwrap()), |i| exact[i])?;
    let out = kernels.add_rms_norm(&x_tensor, &delta_tensor, &weight_tensor, 1e-5).unwrap();
    let sum: Vec<T> = values(&x_tensor);
    all_rounded(&sum, |i| x[i].to_f64() + delta[i].to_f64())?;
    // The norm is the norm of the sum as it was rounded.
    let exact = normed(&sum);
    all_rounded(&values::<T>(&out), |i| exact[i])?;
    kernels.add(&x_tensor, &delta_tensor).unwrap();
    all_rounded(&values::<T>(&x_tensor), |i| sum[i].to_f64() + delta[i].to_f64())?;

    let both = noise.halves::<T>(rows * 2 * cols);
    let activated = kernels.silu_mul(&tensor(&both, &[rows, 2 * cols])).unwrap();
    all_rounded(&values::<T>(&activated), |i| {
        let gate = i / cols * 2 * cols + i % cols;
        silu(both[gate].to_f64()) * both[gate + cols].to_f64()
    })?;
    // The table's rows are the bonus rows. A row without a bonus row does not change.
    let hidden = tensor(&x, &[rows, cols]);
    kernels.silu_add(&hidden, &table_tensor, &index_tensor).unwrap();
    all_rounded(&values::<T>(&hidden), |i| match named(i / cols) {
        Some(bonus) => silu(x[i].to_f64() + bonus[i % cols].to_f64()),
        None => x[i].to_f64(),
    })?;
    Ok(())
}

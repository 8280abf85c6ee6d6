//! Tests of the kernels on a GPU. They are compared with the same kernels on the SIMT emulator, with the reference in f64,
//! and with themselves for rows in other batches; matrix products are compared with exact sums, and the decode loop is
//! tested as a whole.
//!
//! The comparisons run on every machine. Without a GPU (or without device code in the build) they run on the SIMT emulator,
//! so that the tests themselves are tested everywhere; the decode loop is then skipped with a message.
//! `FLEXDRAFT_REQUIRE_GPU=1` makes a missing GPU an error.

#![cfg(all(feature = "runner", feature = "simt"))]
#![allow(clippy::unwrap_used, missing_docs)]

mod acceptance_reference;
mod attention;
mod attention_reference;
mod bench;
mod capture;
#[path = "../../benches/kernels/cases/mod.rs"]
#[allow(dead_code)]
mod cases;
mod decoding;
mod every_kernel;
#[path = "../../benches/kernels/first.rs"]
#[allow(dead_code)]
mod first;
#[path = "../../benches/kernels/floor.rs"]
#[allow(dead_code)]
mod floor;
mod glue;
#[path = "../../benches/kernels/machine.rs"]
#[allow(dead_code)]
mod machine;
mod products;
mod sampling;
mod sampling_reference;
mod selection;
#[path = "../support/mod.rs"]
mod support;
#[path = "../../benches/kernels/traced.rs"]
#[allow(dead_code)]
mod traced;

use bench::{Bench, cuda, foreign, simt};
use flexdraft::runtime::simt::{Checking, Copies};
use flexdraft::runtime::{Runtime, SimtOptions};
use half::bf16;

/// Runs a case on the SIMT emulator in two variants, and on a GPU (on a stream of our own and on a foreign one) if there is
/// one, and compares the results.
fn compare<T>(case: impl Case<Output = T>, same: impl Fn(&T, &T)) {
    let expected = case.run(&simt(SimtOptions::default()));
    let other = SimtOptions { checking: Checking::Off, copies: Copies::Late, schedule: 3 };
    same(&expected, &case.run(&simt(other)));
    if let Some(gpu) = cuda() {
        let found = case.run(&gpu);
        same(&expected, &found);
        same(&found, &case.run(&foreign(&gpu)));
    }
}

/// Runs a case on the SIMT emulator and on a GPU, if there is one, and checks each result.
fn everywhere<T>(case: &impl Case<Output = T>, check: impl Fn(&T)) {
    check(&case.run(&simt(SimtOptions::default())));
    on_a_gpu(case, check);
}

/// Runs a case on a GPU, if there is one.
fn on_a_gpu<T>(case: &impl Case<Output = T>, check: impl Fn(&T)) {
    if let Some(gpu) = cuda() {
        check(&case.run(&gpu));
    }
}

/// Runs a case on a GPU, if there is one. In a rehearsal (`FLEXDRAFT_REHEARSE`) it also runs on the SIMT emulator, where it
/// takes minutes.
fn on_a_gpu_or_rehearsed<T>(case: &impl Case<Output = T>, check: impl Fn(&T)) {
    if is_rehearsal() {
        check(&case.run(&simt(SimtOptions::default())));
    }
    on_a_gpu(case, check);
}

/// True in a rehearsal of a run on a GPU (`benches/gpu/rehearse.sh`).
fn is_rehearsal() -> bool {
    std::env::var_os("FLEXDRAFT_REHEARSE").is_some()
}

/// A computation that runs on any runtime.
trait Case {
    type Output;
    fn run<B: Runtime>(&self, bench: &Bench<B>) -> Self::Output;
}

/// Checks that values differ by rounding only, relative to the largest value.
fn close(name: &str, found: &[f32], expected: &[f32], tolerance: f32) {
    assert_eq!(found.len(), expected.len());
    let scale = expected.iter().fold(0.0f32, |most, x| most.max(x.abs())).max(1e-3);
    for (i, (found, expected)) in found.iter().zip(expected).enumerate() {
        let error = (found - expected).abs() / scale;
        assert!(error <= tolerance || found == expected, "{name}: element {i} is {found}, not {expected}");
    }
}

fn f32s(values: &[bf16]) -> Vec<f32> {
    values.iter().map(|x| x.to_f32()).collect()
}

//! The kernels on a GPU: against the same kernels on the SIMT host, against the reference in f64, and against
//! themselves wherever a row is; matrix products against exact sums; the decode loop.
//!
//! What compares runs on every machine there is. Without a GPU (or without device code in the build) that is the
//! SIMT host, so that what is compared, and how, is tested everywhere; the decode loop is skipped loudly.
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
use flexdraft::backend::simt::{Checking, Copies};
use flexdraft::backend::{Backend, SimtOptions};
use half::bf16;

/// Runs a case on the SIMT host and on the other machine.
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

/// Runs a case on the SIMT host and on a GPU, if there is one.
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

/// Runs a case on a GPU, if there is one, and in a rehearsal (`FLEXDRAFT_REHEARSE`) on the SIMT host too: a case whose
/// time there is minutes.
fn on_a_gpu_or_rehearsed<T>(case: &impl Case<Output = T>, check: impl Fn(&T)) {
    if is_rehearsal() {
        check(&case.run(&simt(SimtOptions::default())));
    }
    on_a_gpu(case, check);
}

/// Whether this is a rehearsal of a run on a GPU (`benches/gpu/rehearse.sh`).
fn is_rehearsal() -> bool {
    std::env::var_os("FLEXDRAFT_REHEARSE").is_some()
}

/// What is computed, on any backend.
trait Case {
    type Output;
    fn run<B: Backend>(&self, bench: &Bench<B>) -> Self::Output;
}

/// That values differ by rounding only: relative to the largest of them, which sums are made of.
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

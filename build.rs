//! Compiles the CUDA kernel sources: for GPUs if nvcc is found, and for the SIMT emulator if the feature `simt`
//! is on.

use std::error::Error;
use std::process::ExitCode;

#[path = "build/nvcc.rs"]
mod nvcc;
#[cfg(feature = "simt")]
#[path = "build/simt.rs"]
mod simt;

/// The directories of `cuda` that contain kernels, each in a file with the directory's name.
const FAMILIES: [&str; 4] = ["attention", "sampling", "acceptance", "glue"];

/// Kernels of single instructions, for comparing the SIMT emulator's models of instructions; only in test builds.
const INSTRUCTIONS: &str = "golden";

fn main() -> ExitCode {
    match build() {
        Ok(()) => ExitCode::SUCCESS,
        Err(problem) => {
            // The text contains a compiler's output, which `Debug` would print on one line.
            eprintln!("{problem}");
            ExitCode::FAILURE
        }
    }
}

fn build() -> Result<(), Box<dyn Error>> {
    println!("cargo::rustc-check-cfg=cfg(flexdraft_simt_sanitized)");
    let tested = cfg!(feature = "simt").then_some(INSTRUCTIONS);
    let families: Vec<&str> = FAMILIES.into_iter().chain(tested).collect();
    nvcc::build(&families)?;
    #[cfg(feature = "simt")]
    simt::build(&families)?;
    Ok(())
}

//! Compiles the kernel sources: for GPUs where there is an nvcc, and for the SIMT host where the feature
//! `simt` asks for it.

use std::error::Error;
use std::process::ExitCode;

#[path = "build/nvcc.rs"]
mod nvcc;
#[cfg(feature = "simt")]
#[path = "build/simt.rs"]
mod simt;

/// The directories of `cuda` with kernels, each with a file of its name.
const FAMILIES: [&str; 4] = ["attention", "sampling", "acceptance", "glue"];

/// Kernels of single instructions, which the SIMT host's models are compared by: of test builds only.
const INSTRUCTIONS: &str = "golden";

fn main() -> ExitCode {
    match build() {
        Ok(()) => ExitCode::SUCCESS,
        Err(problem) => {
            // A compiler's output, which `Debug` would put on one line.
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

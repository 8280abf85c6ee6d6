//! Compiles the CUDA kernel sources: for GPUs if nvcc is found, and for the SIMT emulator if the feature `simt`
//! is on.

use std::error::Error;
use std::fs;
use std::path::Path;
use std::process::ExitCode;

#[path = "build/nvcc.rs"]
mod nvcc;
#[cfg(feature = "simt")]
#[path = "build/simt.rs"]
mod simt;

/// The directories of `cuda` that contain kernels, each in a file with the directory's name.
const FAMILIES: [&str; 8] =
    ["attention", "sampling", "acceptance", "chain", "embedding", "norm", "activation", "rope"];

/// The directory with kernels of single instructions, which compare the SIMT emulator's models of instructions with a
/// GPU; only in test builds.
const INSTRUCTIONS: &str = "golden";

fn main() -> ExitCode {
    match build() {
        Ok(()) => ExitCode::SUCCESS,
        Err(problem) => {
            // The error is printed here, because its text contains a compiler's output, which `Debug` would print on
            // one line.
            eprintln!("{problem}");
            ExitCode::FAILURE
        }
    }
}

fn build() -> Result<(), Box<dyn Error>> {
    println!("cargo::rustc-check-cfg=cfg(flexdraft_simt_sanitized)");
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=build");
    watch(Path::new("cuda"))?;
    let tested = cfg!(feature = "simt").then_some(INSTRUCTIONS);
    let families: Vec<&str> = FAMILIES.into_iter().chain(tested).collect();
    nvcc::build(&families)?;
    #[cfg(feature = "simt")]
    simt::build(&families)?;
    Ok(())
}

/// Makes Cargo run this script again when a source file in `folder` changes. Scripts and crates in the folder do not
/// count, because a new run compiles all kernels again.
fn watch(folder: &Path) -> Result<(), Box<dyn Error>> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            if !path.join("Cargo.toml").exists() {
                watch(&path)?;
            }
        } else if path
            .extension()
            .is_some_and(|kind| ["cu", "cuh", "h", "cpp", "args"].iter().any(|k| kind == *k))
        {
            println!("cargo::rerun-if-changed={}", path.display());
        }
    }
    Ok(())
}

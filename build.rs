//! Compiles the kernel sources: for the SIMT host where the feature `simt` asks for it.

use std::error::Error;

#[cfg(feature = "simt")]
#[path = "build/simt.rs"]
mod simt;

/// The directories of `cuda` with kernels, each with a file of its name.
#[cfg(feature = "simt")]
const FAMILIES: [&str; 4] = ["attention", "sampling", "acceptance", "glue"];

fn main() -> Result<(), Box<dyn Error>> {
    #[cfg(feature = "simt")]
    simt::build(&FAMILIES)?;
    Ok(())
}

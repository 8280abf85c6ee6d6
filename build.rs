//! Compiles the kernel sources: for GPUs where there is an nvcc.

use std::error::Error;

#[path = "build/nvcc.rs"]
mod nvcc;

fn main() -> Result<(), Box<dyn Error>> {
    nvcc::build()
}

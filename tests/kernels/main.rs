//! Tests of the kernels on the SIMT emulator: compared with the reference, compared with themselves in other batches and
//! orders of threads, and called with operands that do not match.

mod acceptance;
mod attention;
mod captured_launches;
mod faults;
mod floors;
mod glue;
mod misuse;
mod sampling;
mod selection;
#[path = "../support/mod.rs"]
mod support;

// The GPU benchmark's cases and floors, which `floors` tests.
#[allow(dead_code)]
#[path = "../../benches/kernels/cases/mod.rs"]
mod cases;
#[allow(dead_code)]
#[path = "../../benches/kernels/floor.rs"]
mod floor;
#[allow(dead_code)]
#[path = "../../benches/kernels/machine.rs"]
mod machine;
#[allow(dead_code)]
#[path = "../../benches/kernels/record.rs"]
mod record;

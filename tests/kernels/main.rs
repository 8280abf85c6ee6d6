//! Tests of the kernels, on the SIMT emulator always and on a GPU if the machine has one: compared with the reference, with
//! themselves in other batches and orders, and, between runtimes, with each other. Shapes of released models run on a GPU.
//! Without a GPU the program says so once; `FLEXDRAFT_REQUIRE_GPU=1` makes a missing GPU an error.
//!
//! Modules named `on_the_emulator` test what only the emulator shows.

mod acceptance;
mod activation;
mod any_runtime;
mod attention;
mod captured_launches;
mod chain;
mod embedding;
mod halves;
mod norm;
mod on_the_emulator;
mod processors;
mod rope;
mod rows;
mod sampling;
mod selection;
#[path = "../support/mod.rs"]
mod support;

// The GPU benchmark's cases, floors and first program, which the module `on_the_emulator` tests.
#[allow(dead_code)]
#[path = "../../benches/kernels/cases/mod.rs"]
mod cases;
#[allow(dead_code)]
#[path = "../../benches/kernels/first.rs"]
mod first;
#[allow(dead_code)]
#[path = "../../benches/kernels/floor.rs"]
mod floor;
#[allow(dead_code)]
#[path = "../../benches/kernels/machine.rs"]
mod machine;
#[allow(dead_code)]
#[path = "../../benches/kernels/record.rs"]
mod record;
#[allow(dead_code)]
#[path = "../../benches/kernels/traced.rs"]
mod traced;

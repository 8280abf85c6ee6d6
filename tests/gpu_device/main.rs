//! Tests of the GPU device on the SIMT emulator: the decode loop, the driver calls of a step, and the self-test that a
//! device must pass before it is chosen automatically.

mod decode_loop;
mod head_products;
mod self_test;
mod step;
#[path = "../support/mod.rs"]
mod support;

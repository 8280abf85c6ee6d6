//! The GPU device on the SIMT host: the decode loop on the kernels, what a step asks of the driver, and the test that a
//! device passes before it is chosen.

mod decode_loop;
mod head_products;
mod self_test;
mod step;
#[path = "../support/mod.rs"]
mod support;

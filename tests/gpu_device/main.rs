//! Tests of the GPU device: on the SIMT emulator, the decode loop, the driver calls of a step, and the self-test that a
//! device must pass before it is chosen automatically; on a GPU, if the machine has one, the decode loop and the matrix
//! products of cuBLASLt.

mod chained_law;
mod chains;
mod decode_loop;
mod faults;
mod head_products;
mod margins;
mod on_a_gpu;
mod orthrus;
mod processors;
mod products;
mod proposals;
mod self_test;
#[path = "../lossless/sampled/statistics.rs"]
mod statistics;
mod step;
#[path = "../support/mod.rs"]
mod support;

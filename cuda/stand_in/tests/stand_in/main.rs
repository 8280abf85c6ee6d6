//! Tests of the stand-in for the driver and cuBLASLt: what it refuses, what its policies find, and flexdraft's kernels
//! on it.
//!
//! Each case runs in a process of its own, because a process reads the policies once.

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, missing_docs)]

mod c_interface;
mod captures;
mod dependent_launches;
mod device;
mod engine;
mod foreign_captures;
mod kernels;
mod memory;
mod misses;
mod process;
mod products;
mod soak;
mod streams;

// The whole workspace shares these modules: kernels with a stream and operands, numbers for operands, and the number of
// steps of long tests.
#[allow(dead_code)]
#[path = "../../../../tests/support/bench.rs"]
mod bench;
#[allow(dead_code)]
#[path = "../../../../tests/support/noise.rs"]
mod noise;
#[allow(dead_code)]
#[path = "../../../../tests/support/properties.rs"]
mod properties;

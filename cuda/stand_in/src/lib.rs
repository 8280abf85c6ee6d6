//! A stand-in for the CUDA driver and for cuBLASLt: one library, which is found under both names.
//!
//! It exports the functions that flexdraft calls, with the driver's names and checks. Kernels run on the SIMT emulator,
//! matrix products on the CPU. What the driver leaves open, such as the time at which work on a stream runs, is a policy;
//! docs/testing.md lists the policies. The stand-in proves that the host side of the GPU device is right. It says nothing
//! about speed.

#![allow(non_snake_case, reason = "the names of the driver and of cuBLASLt")]

mod api;
mod captures;
mod cublas;
mod driver;
mod faults;
mod foreign;
mod memory;
mod modules;
mod objects;
mod policy;
mod refusal;
mod run;
mod streams;
mod work;

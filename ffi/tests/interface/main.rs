//! Tests of the C interface and of the TVM-FFI functions on the SIMT emulator, called as from C.

#![allow(missing_docs, clippy::unwrap_used)]

mod equal;
mod example;
mod header;
mod misuse;
mod real_tvm_ffi;
mod support;
mod tvm;

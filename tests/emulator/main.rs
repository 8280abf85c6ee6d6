//! Tests of the SIMT emulator: it runs kernels as a GPU does, and finds planted bugs.

mod dependent_launches;
mod host;
mod number_of_cases;
#[cfg(flexdraft_simt_sanitized)]
mod sanitizers;
#[path = "../support/mod.rs"]
mod support;

//! The SIMT host runs kernels as a GPU would, and finds planted bugs.

mod host;
#[cfg(flexdraft_simt_sanitized)]
mod sanitizers;
#[path = "../support/mod.rs"]
mod support;

//! Tests of the C interface on the SIMT emulator, called as from C.

#![allow(missing_docs, clippy::unwrap_used)]

mod equal;
mod example;
mod header;
mod misuse;
mod support;

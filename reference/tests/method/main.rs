//! Tests of the reference: its parts, its losslessness, and the recordings of the official implementation.

mod attention;
mod common;
mod decode;
mod lossless;
mod official_fixtures;
mod rope;

// How many cases the properties of the whole workspace run.
#[allow(dead_code)]
#[path = "../../../tests/support/properties.rs"]
mod properties;

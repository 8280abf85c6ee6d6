//! Tests of the reference: its parts, its losslessness, and the recordings of the official implementation.

mod attention;
mod chain;
mod checkpoint;
mod common;
mod decode;
mod lossless;
mod official_fixtures;
mod orthrus_fixtures;
mod processors;
mod rope;

// This module, which the whole workspace shares, sets the number of cases of a property test.
#[allow(dead_code)]
#[path = "../../../tests/support/properties.rs"]
mod properties;

//! The method as the reference states it: its parts, its losslessness, and the official implementation's recordings.

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

//! The method as the reference states it: its parts, its losslessness, and the official implementation's recordings.

mod attention;
mod common;
mod decode;
mod lossless;
mod official_fixtures;
mod rope;

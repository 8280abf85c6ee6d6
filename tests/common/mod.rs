//! Shared by the integration tests: small random models, and ways to run them.

#![allow(dead_code)] // Each test file uses its own part.

pub mod bounds;
pub mod gguf;
pub mod models;
pub mod policies;
pub mod reference;
pub mod runs;

//! The kernels' parameter structs, as their C headers declare them.

#![allow(missing_docs)] // The headers have them.

pub mod common;
pub mod glue;

//! The kernels' parameter structs, generated from `cuda/*/params.h`, and the shapes of their launches, from
//! `cuda/common/shapes.h`: one module a header.
//!
//! The crate in `bindings` writes these files and tests that they match the headers.

// Not every field of the headers has a comment, and not all that the headers declare is used here.
#![allow(dead_code, missing_docs, unused_imports)]

pub mod acceptance;
pub mod activation;
pub mod attention;
pub mod chain;
pub mod common;
pub mod embedding;
pub mod norm;
pub mod rope;
pub mod sampling;
pub mod shapes;

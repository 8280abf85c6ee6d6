//! Files that are damaged, or of another model: an error that says which file, key or tensor, and
//! never a panic.
#![cfg(feature = "runner")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

#[path = "../common/bounds.rs"]
mod bounds;
mod configs;
mod damage;
mod directory;
mod drafters;
mod tensors;
mod text;

#[global_allocator]
static ALLOCATOR: bounds::Watched = bounds::Watched;

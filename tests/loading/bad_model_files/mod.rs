//! Tests with model files that are damaged or belong to another model: loading gives an error that names the file, key
//! or tensor, and never panics.

mod configs;
mod damage;
pub mod directory;
mod drafters;
mod orthrus;
mod tensors;
mod text;

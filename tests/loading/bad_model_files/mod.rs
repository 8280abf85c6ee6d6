//! Files that are damaged, or of another model: an error that says which file, key or tensor, and
//! never a panic.

mod configs;
mod damage;
mod directory;
mod drafters;
mod tensors;
mod text;

//! The stand-in for cuBLASLt: descriptors, proposed algorithms, and matrix products on the CPU.

mod algorithms;
mod api;
mod descriptors;
mod multiply;
mod product;

pub use descriptors::Cublas;
pub use multiply::multiply;
pub use product::Product;

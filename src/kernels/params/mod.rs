//! The kernels' parameter structs, as the headers in `cuda/` declare them.

pub mod sampling;

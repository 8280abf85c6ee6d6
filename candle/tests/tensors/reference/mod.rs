//! Comparison of the kernels on tensors with the reference in double precision, on random shapes and data, within the
//! bounds of the kernels' own tests (`tests/kernels`). The generators and the oracles of sampling and acceptance are
//! those tests' own files.

mod acceptance;
mod chain;
mod passes;
mod rows;
mod sampling;

//! The driver's functions, as `cuda.h` declares them. Handles are numbers that are never used twice, so that an old one is
//! recognised.

mod device;
mod execution;
mod graph;
mod memory;
mod stream;

//! Tests of the kernels that need the SIMT emulator: operands that are refused before a launch, memory that a test
//! corrupts between launches, the bytes that each operand moves, and the order of launches.

mod faults;
mod first_program;
mod floors;
mod misuse;
mod waits;

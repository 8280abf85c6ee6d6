//! Tests of the kernels that need the SIMT emulator: operands that are refused before a launch, memory that a test
//! corrupts between launches, and the bytes that each operand moves.

mod faults;
mod first_program;
mod floors;
mod misuse;

//! What only the SIMT emulator shows of the kernels: operands that are refused before a launch, memory that a test corrupts
//! between launches, and the bytes of each operand.

mod faults;
mod first_program;
mod floors;
mod misuse;

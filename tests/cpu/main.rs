//! The CPU device's operations: their accuracy, the operands that they refuse, and that a row's bits do not depend on
//! the other rows.

mod accuracy;
mod operands;
mod row_invariance;
#[path = "../support/mod.rs"]
mod support;

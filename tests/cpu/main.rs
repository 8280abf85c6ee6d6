//! Tests of the CPU device's operations: accuracy, errors for operands that do not fit, and independence of a row's
//! bits from the other rows.

mod accuracy;
mod operands;
mod quantized;
mod row_invariance;
#[path = "../support/mod.rs"]
mod support;

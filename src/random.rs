//! The random-number contract.

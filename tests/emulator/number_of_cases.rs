//! Test of the number of random cases that a property runs.

use std::cell::Cell;

use proptest::prelude::*;

use crate::support::properties::{effort, properties, scaled};

/// proptest replaces a property's number of cases by `PROPTEST_CASES`, so the variable of these tests must be another.
#[test]
fn a_property_runs_its_usual_number_of_cases() {
    let runs = Cell::new(0);
    proptest!(properties(10), |(_ in any::<u8>())| runs.set(runs.get() + 1));
    let everywhere = std::env::var("PROPTEST_CASES").ok().map(|cases| cases.parse().unwrap());
    assert_eq!(runs.get(), everywhere.unwrap_or(scaled(10, effort())));
}

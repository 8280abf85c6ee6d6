//! Settings of property tests: the number of random cases, and the files of failing cases.

use proptest::prelude::ProptestConfig;
use proptest::test_runner::FileFailurePersistence;

/// The percentage of its usual number of cases that each property runs without `FLEXDRAFT_TEST_EFFORT`.
const USUAL: u32 = 100;

/// The value of the variable `FLEXDRAFT_TEST_EFFORT`, a percentage that raises or lowers the counts of all properties
/// together. proptest's own variable, `PROPTEST_CASES`, gives every property the same number of cases instead.
pub fn effort() -> u32 {
    match std::env::var("FLEXDRAFT_TEST_EFFORT") {
        Ok(percent) => percent
            .parse()
            .unwrap_or_else(|_| panic!("FLEXDRAFT_TEST_EFFORT is `{percent}`, expected a percentage")),
        Err(_) => USUAL,
    }
}

/// Returns the configuration of a property that runs `usual` cases, scaled by `FLEXDRAFT_TEST_EFFORT`. The seed of a
/// failing case is kept in a file beside the source (`.proptest-regressions`), and runs first from then on.
pub fn properties(usual: u32) -> ProptestConfig {
    ProptestConfig {
        cases: scaled(usual, effort()),
        failure_persistence: Some(Box::new(FileFailurePersistence::WithSource("proptest-regressions"))),
        ..ProptestConfig::default()
    }
}

/// Returns `percent` percent of `usual`, rounded up, and at least 1: the number of cases of a property.
pub fn scaled(usual: u32, percent: u32) -> u32 {
    let cases = (u64::from(usual) * u64::from(percent)).div_ceil(u64::from(USUAL));
    u32::try_from(cases).unwrap_or(u32::MAX).max(1)
}

/// Returns whether fewer cases than usual are asked for: tests of fixed cases then leave some of them out.
pub fn fewer_than_usual() -> bool {
    effort() < USUAL
}

/// Returns whether more cases than usual are asked for: cases that take seconds are then run too.
pub fn more_than_usual() -> bool {
    effort() > USUAL
}

//! Settings of property tests: the number of random cases, and the files of failing cases.

use proptest::prelude::ProptestConfig;
use proptest::test_runner::FileFailurePersistence;

/// The value of `PROPTEST_CASES` with which each property runs its usual number of cases. It is also the default.
const USUAL: u32 = 64;

/// The value of the variable `PROPTEST_CASES`, which raises or lowers the counts of all properties together.
fn asked() -> u32 {
    match std::env::var("PROPTEST_CASES") {
        Ok(cases) => {
            cases.parse().unwrap_or_else(|_| panic!("PROPTEST_CASES is `{cases}`, expected a number"))
        }
        Err(_) => USUAL,
    }
}

/// Returns the configuration of a property that runs `usual` cases, or that number times `PROPTEST_CASES` / 64. The
/// seed of a failing case is kept in a file beside the source (`.proptest-regressions`), and runs first from then on.
pub fn properties(usual: u32) -> ProptestConfig {
    ProptestConfig {
        cases: scaled(usual, asked()),
        failure_persistence: Some(Box::new(FileFailurePersistence::WithSource("proptest-regressions"))),
        ..ProptestConfig::default()
    }
}

/// Returns `usual` times `asked` / 64, rounded up, and at least 1: the number of cases of a property.
fn scaled(usual: u32, asked: u32) -> u32 {
    let cases = (u64::from(usual) * u64::from(asked)).div_ceil(u64::from(USUAL));
    u32::try_from(cases).unwrap_or(u32::MAX).max(1)
}

/// Returns whether fewer cases than usual are asked for: tests of fixed cases then leave some of them out.
pub fn fewer_than_usual() -> bool {
    asked() < USUAL
}

/// Returns whether more cases than usual are asked for: cases that take seconds are then run too.
pub fn more_than_usual() -> bool {
    asked() > USUAL
}

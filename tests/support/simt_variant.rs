//! The variant of the SIMT emulator that the kernels' tests run on.

use flexdraft::runtime::simt::Checking;

/// Returns the variant that `FLEXDRAFT_TEST_CHECKING` asks for: `accesses` runs all tests of kernels in race mode,
/// `off` without checks, which is the only variant in the sanitized build. Without the variable, returns `usual`.
pub fn checking(usual: Checking) -> Checking {
    match std::env::var("FLEXDRAFT_TEST_CHECKING").as_deref() {
        Ok("accesses") => Checking::Accesses,
        Ok("off") => Checking::Off,
        Ok(other) => panic!("FLEXDRAFT_TEST_CHECKING is `{other}`, and may be `accesses` or `off`"),
        Err(_) => usual,
    }
}

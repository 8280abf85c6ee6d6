//! Which variant of the kernels their tests run.

use flexdraft::backend::simt::Checking;

/// What `FLEXDRAFT_TEST_CHECKING` asks all tests of kernels for: `accesses` runs them in race mode, `off`
/// with the plain kernels, which alone are part of the sanitized build. Without it, what is usual.
pub fn checking(usual: Checking) -> Checking {
    match std::env::var("FLEXDRAFT_TEST_CHECKING").as_deref() {
        Ok("accesses") => Checking::Accesses,
        Ok("off") => Checking::Off,
        Ok(other) => panic!("FLEXDRAFT_TEST_CHECKING is `{other}`, and may be `accesses` or `off`"),
        Err(_) => usual,
    }
}

//! The local time, which chat templates print.

use std::time::{SystemTime, UNIX_EPOCH};

/// Returns the seconds from 1970-01-01 00:00:00 to now, both by the local clock. A clock before 1970 counts as 1970.
pub(super) fn seconds_on_the_local_clock() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs());
    now.saturating_add_signed(seconds_east_of_utc(now))
}

/// Returns the seconds by which the local clock is ahead of UTC at a time.
#[cfg(unix)]
fn seconds_east_of_utc(unix_seconds: u64) -> i64 {
    let Ok(time) = libc::time_t::try_from(unix_seconds) else { return 0 };
    let mut local = std::mem::MaybeUninit::<libc::tm>::uninit();
    // SAFETY: both pointers are to values that live until the call returns; `localtime_r` writes the second one.
    let converted = unsafe { libc::localtime_r(&raw const time, local.as_mut_ptr()) };
    if converted.is_null() {
        return 0;
    }
    // SAFETY: a result that is not null says that `local` was written.
    let local = unsafe { local.assume_init() };
    local.tm_gmtoff
}

#[cfg(not(unix))]
fn seconds_east_of_utc(_: u64) -> i64 {
    0
}

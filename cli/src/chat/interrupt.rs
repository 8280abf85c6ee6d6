//! Ctrl-C: a flag that an interrupt sets instead of ending the program.

use std::sync::atomic::{AtomicBool, Ordering};

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// Makes Ctrl-C set the flag from now on, instead of ending the program. On systems other than Unix, Ctrl-C ends the
/// program as before.
pub fn catch_interrupts() {
    #[cfg(unix)]
    unix::install();
}

/// Returns whether an interrupt came since the flag was last taken, and clears the flag.
pub fn take_interrupt() -> bool {
    INTERRUPTED.swap(false, Ordering::Relaxed)
}

#[cfg(unix)]
mod unix {
    use std::sync::atomic::Ordering;
    use std::{mem, ptr};

    extern "C" fn interrupted(_signal: libc::c_int) {
        super::INTERRUPTED.store(true, Ordering::Relaxed);
    }

    pub fn install() {
        // SAFETY: a zeroed `sigaction` is valid: no flags, and an empty mask on the systems that libc supports. Without
        // the flag SA_RESTART, a read that waits for input returns with an error, so that its caller sees the interrupt.
        let mut action: libc::sigaction = unsafe { mem::zeroed() };
        let handler: extern "C" fn(libc::c_int) = interrupted;
        action.sa_sigaction = handler as libc::sighandler_t;
        // SAFETY: the handler only stores to an atomic, which is allowed in a signal handler; `action` is initialised,
        // and the old action is not asked for. The call fails only for invalid signals.
        unsafe { libc::sigaction(libc::SIGINT, &action, ptr::null_mut()) };
    }
}

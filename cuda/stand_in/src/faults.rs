//! Names the call that touched device memory which is not accessible.

use std::ffi::{c_int, c_void};
use std::ptr;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::memory;

/// The name of the running call, as its length above its address, which has 48 bits. One number, so that no reader sees
/// half.
static CALL: AtomicU64 = AtomicU64::new(0);
const ADDRESS_BITS: u32 = 48;

/// Notes the name of the call that starts; an empty name after a call.
pub fn now_in(call: &'static str) {
    let address = call.as_ptr().expose_provenance() as u64 & ((1 << ADDRESS_BITS) - 1);
    CALL.store((call.len() as u64) << ADDRESS_BITS | address, Ordering::Relaxed);
}

/// Installs the signal handler for accesses to inaccessible memory.
pub fn install() {
    // SAFETY: the structure is valid when zeroed, and the handler has the type that SA_SIGINFO asks for.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = handler as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK | libc::SA_RESETHAND;
        libc::sigaction(libc::SIGSEGV, &raw const action, ptr::null_mut());
    }
}

/// Prints which call touched which device memory. The instruction then runs again and ends the process.
extern "C" fn handler(_: c_int, info: *mut libc::siginfo_t, _: *mut c_void) {
    // SAFETY: the system passes a valid structure with the address of the access.
    let address = unsafe { (*info).si_addr() } as u64;
    if !memory::is_device_address(address) {
        return;
    }
    let call = CALL.load(Ordering::Relaxed);
    let (bytes, name) = ((call >> ADDRESS_BITS) as usize, (call & ((1 << ADDRESS_BITS) - 1)) as usize);
    say(b"stand-in: ");
    if bytes == 0 {
        say(b"the host touched device memory outside of every call");
    } else {
        // SAFETY: the address and the length of one static string, from `now_in`.
        say(unsafe { std::slice::from_raw_parts(ptr::with_exposed_provenance(name), bytes) });
        say(b" touched device memory that is freed, or that no parameter of the work leads to");
    }
    say(b"\n");
}

fn say(text: &[u8]) {
    // SAFETY: write is safe in a signal handler.
    unsafe { libc::write(libc::STDERR_FILENO, text.as_ptr().cast(), text.len()) };
}

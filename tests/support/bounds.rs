//! Limits on memory and time while a test reads files.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::time::{Duration, Instant};

/// The system's allocator, with a record of each thread's largest allocation.
pub struct Watched;

thread_local! {
    static LARGEST_REQUEST: Cell<usize> = const { Cell::new(0) };
}

/// Records an allocation, except while a thread ends.
fn remember(size: usize) {
    let _ = LARGEST_REQUEST.try_with(|largest| largest.set(largest.get().max(size)));
}

// SAFETY: every call is passed on unchanged to the system's allocator.
unsafe impl GlobalAlloc for Watched {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        remember(layout.size());
        // SAFETY: the caller keeps the contract of `alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        remember(layout.size());
        // SAFETY: the caller keeps the contract of `alloc_zeroed`.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        remember(new_size);
        // SAFETY: the caller keeps the contract of `realloc`.
        unsafe { System.realloc(pointer, layout, new_size) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller keeps the contract of `dealloc`.
        unsafe { System.dealloc(pointer, layout) }
    }
}

/// Suppresses reports of panics in the `tokenizers` and `minijinja` crates, which are caught and become errors: a
/// backtrace would allocate megabytes for symbols, which the limit must not count.
fn quieten_libraries() {
    static ONCE: std::sync::Once = std::sync::Once::new();
    ONCE.call_once(|| {
        let report = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            let file = panic.location().map_or("", |location| location.file());
            if !file.contains("tokenizers-") && !file.contains("minijinja-") {
                report(panic);
            }
        }));
    });
}

/// Runs `read`, which reads files of `file_len` bytes in all, and checks its largest allocation and its time. One
/// allocation may be 16 times that size plus a megabyte (hashed tables of a tokenizer are a multiple of its texts;
/// 4-bit weights become 16-bit), and 20 seconds may pass. `read` runs in its own thread, because the `tokenizers` crate
/// keeps a cache for every tokenizer that a thread ever used.
pub fn within_bounds(file_len: usize, read: impl FnOnce() + Send + 'static) {
    within(file_len, (1 << 20) + 16 * file_len, read);
}

/// Like [`within_bounds`], with a limit of `bound` bytes for one allocation.
pub fn within(file_len: usize, bound: usize, read: impl FnOnce() + Send + 'static) {
    quieten_libraries();
    let bounded = move || {
        let start = Instant::now();
        read();
        let largest = LARGEST_REQUEST.get();
        assert!(largest <= bound, "{largest} bytes at once for {file_len} bytes of files");
        let time = start.elapsed();
        assert!(time < Duration::from_secs(20), "{file_len} bytes of files took {time:?}");
    };
    if let Err(panic) = std::thread::spawn(bounded).join() {
        std::panic::resume_unwind(panic);
    }
}

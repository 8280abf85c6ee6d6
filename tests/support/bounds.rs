//! Reading files within bounds: of memory asked for at once, and of time.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::time::{Duration, Instant};

/// The system's allocator, remembering the largest request of each thread.
pub struct Watched;

thread_local! {
    static LARGEST_REQUEST: Cell<usize> = const { Cell::new(0) };
}

/// Nothing is remembered while a thread ends.
fn remember(size: usize) {
    let _ = LARGEST_REQUEST.try_with(|largest| largest.set(largest.get().max(size)));
}

// SAFETY: every call is passed on to the system's allocator as it is.
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

/// Panics of the `tokenizers` and `minijinja` crates are caught and become errors; reporting them with a backtrace would
/// allocate megabytes for the symbols, which are not the file's doing.
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

/// Runs `read`, which reads files of `file_len` bytes in all. It may ask for a multiple of that at once (a
/// tokenizer's tables, hashed, take a multiple of its texts; weights in 4 bits become 16), and has seconds.
/// In a thread of its own: the `tokenizers` crate keeps a cache for every tokenizer that a thread ever used.
pub fn within_bounds(file_len: usize, read: impl FnOnce() + Send + 'static) {
    quieten_libraries();
    let bounded = move || {
        let start = Instant::now();
        read();
        let (largest, bound) = (LARGEST_REQUEST.get(), (1 << 20) + 16 * file_len);
        assert!(largest <= bound, "{largest} bytes at once for {file_len} bytes of files");
        let time = start.elapsed();
        assert!(time < Duration::from_secs(20), "{file_len} bytes of files took {time:?}");
    };
    if let Err(panic) = std::thread::spawn(bounded).join() {
        std::panic::resume_unwind(panic);
    }
}

//! Page-locked memory of the host.

use std::ptr::NonNull;
use std::sync::Arc;

use cudarc::driver::sys::CUstreamCaptureStatus as CaptureStatus;
use cudarc::driver::{CudaStream, result};

use crate::runtime::{RuntimeError, View, ViewMut};

/// Page-locked words, for copies on one stream.
#[derive(Debug)]
pub(in crate::runtime) struct PageLocked {
    words: NonNull<u64>,
    len: usize,
    stream: Arc<CudaStream>,
    /// Whether a copy on the stream may still read the words.
    read: bool,
}

// SAFETY: the words belong to this object alone, and any thread may call the driver.
unsafe impl Send for PageLocked {}
// SAFETY: a shared reference gives no access to the words.
unsafe impl Sync for PageLocked {}

impl PageLocked {
    /// Returns the memory in `kept` if it is for `stream` and has `len` words. Otherwise this replaces it.
    pub(in crate::runtime) fn of<'a>(
        kept: &'a mut Option<Self>,
        stream: &Arc<CudaStream>,
        len: usize,
    ) -> Result<&'a mut Self, RuntimeError> {
        let found = kept.take().filter(|kept| kept.len >= len && Arc::ptr_eq(&kept.stream, stream));
        let locked = match found {
            Some(locked) => locked,
            None => Self::new(stream, len.next_power_of_two().max(64))?,
        };
        Ok(kept.insert(locked))
    }

    fn new(stream: &Arc<CudaStream>, len: usize) -> Result<Self, RuntimeError> {
        let too_long = RuntimeError::OutOfMemory { elements: len, element_bytes: size_of::<u64>() };
        let bytes = len.checked_mul(size_of::<u64>()).filter(|&bytes| bytes <= isize::MAX as usize);
        let bytes = bytes.ok_or(too_long.clone())?;
        stream.context().bind_to_thread()?;
        // SAFETY: the memory gets defined contents below, before anything reads it.
        let words = unsafe { result::malloc_host(bytes, 0) }?.cast::<u64>();
        let words = NonNull::new(words).ok_or(too_long)?;
        // SAFETY: the driver allocated this number of bytes, at a multiple of a page.
        unsafe { words.as_ptr().write_bytes(0, len) };
        Ok(Self { words, len, stream: stream.clone(), read: false })
    }

    /// Returns whether a copy may still read the words, so that they must not change.
    pub(in crate::runtime) fn is_being_read(&self) -> bool {
        self.read
    }

    /// Notes that `stream` has run all its copies.
    pub(in crate::runtime) fn finished_on(&mut self, stream: &Arc<CudaStream>) {
        self.read &= !Arc::ptr_eq(&self.stream, stream);
    }

    /// Copies `words` into this memory, and from there to `to` when the stream has run its earlier work. The caller has
    /// checked that the words fit both, and that nothing [reads](Self::is_being_read) this memory. The stream is not
    /// captured if it is `own`, which no caller can capture.
    pub(in crate::runtime) fn upload(
        &mut self,
        words: &[u64],
        to: &mut ViewMut<'_, u64>,
        own: bool,
    ) -> Result<(), RuntimeError> {
        if words.is_empty() {
            return Ok(());
        }
        let (wanted, found) = (words.len(), self.len.min(to.len()));
        if wanted > found || self.read {
            return Err(RuntimeError::CopyLength { wanted, found });
        }
        self.stream.context().bind_to_thread()?;
        // A graph would read the words again when it runs.
        if !own {
            // SAFETY: the stream is alive.
            let capture = unsafe { result::stream::is_capturing(self.stream.cu_stream()) }?;
            if capture != CaptureStatus::CU_STREAM_CAPTURE_STATUS_NONE {
                return Err(RuntimeError::Refused("memory of the host cannot be uploaded in a capture"));
            }
        }
        self.read = true;
        // SAFETY: the words fit both, no copy uses this memory, and it is neither changed nor freed before the stream has
        // run the copy, because `read` is set.
        unsafe {
            self.words.as_ptr().copy_from_nonoverlapping(words.as_ptr(), words.len());
            let source = std::slice::from_raw_parts(self.words.as_ptr(), words.len());
            result::memcpy_htod_async(to.address(), source, self.stream.cu_stream())?;
        }
        Ok(())
    }

    /// Waits for the stream, and returns the first `len` words of `from`.
    pub(in crate::runtime) fn download(
        &mut self,
        from: &View<'_, u64>,
        len: usize,
    ) -> Result<&[u64], RuntimeError> {
        let found = self.len.min(from.len());
        if len > found {
            return Err(RuntimeError::CopyLength { wanted: len, found });
        }
        self.stream.context().bind_to_thread()?;
        // SAFETY: the words belong to this object and were initialised by `new`. A copy that may still read them comes
        // earlier on the same stream.
        let words = unsafe { std::slice::from_raw_parts_mut(self.words.as_ptr(), len) };
        // SAFETY: both sides have this length, and this waits for the copy.
        unsafe {
            if len > 0 {
                result::memcpy_dtoh_async(words, from.address(), self.stream.cu_stream())?;
            }
            result::stream::synchronize(self.stream.cu_stream()).inspect_err(|_| {
                // As after any copy: either the copy ends now, or no work in the context runs any more.
                let _ = self.stream.context().synchronize();
            })?;
        }
        self.read = false;
        Ok(words)
    }
}

impl Drop for PageLocked {
    fn drop(&mut self) {
        let context = self.stream.context();
        context.record_err(context.bind_to_thread());
        if self.read {
            context.record_err(self.stream.synchronize());
        }
        // SAFETY: `new` allocated the memory, it is freed once, and no copy uses it any more.
        context.record_err(unsafe { result::free_host(self.words.as_ptr().cast()) });
    }
}

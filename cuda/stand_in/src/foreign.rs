//! Pointers that the library's callers pass, and how they are accessed.

use std::borrow::Cow;
use std::ffi::{CStr, c_char};

use cudarc::driver::sys::CUresult;

use crate::refusal::{Outcome, refused};

/// A pointer to memory for a result, passed by a caller of the library. Only foreign callers make one, and guarantee that
/// it is null or leads to memory for a `T`.
#[repr(transparent)]
pub struct Out<T>(*mut T);

impl<T> Out<T> {
    /// Writes the result to the caller's memory.
    pub fn set(self, value: T) -> Outcome {
        if self.0.is_null() {
            return refused(CUresult::CUDA_ERROR_INVALID_VALUE, "a null pointer for a result");
        }
        // SAFETY: the code that made this pointer upholds its contract.
        unsafe { self.0.write_unaligned(value) };
        Ok(())
    }
}

/// A pointer to elements to read, passed by a caller of the library. Only foreign callers make one, and guarantee that it
/// is null or leads to as many elements as the call says.
#[repr(transparent)]
pub struct In<T>(*const T);

impl<T> From<*const T> for In<T> {
    /// Wraps a pointer that is part of a structure that a caller of the library passed.
    fn from(pointer: *const T) -> Self {
        In(pointer)
    }
}

impl<T: Copy> In<T> {
    pub fn is_null(&self) -> bool {
        self.0.is_null()
    }

    pub fn address(&self) -> u64 {
        self.0.expose_provenance() as u64
    }

    /// Returns element `index`, which exists, as the call guarantees.
    pub fn get(&self, index: usize) -> Outcome<T> {
        if self.0.is_null() {
            return refused(CUresult::CUDA_ERROR_INVALID_VALUE, "a null pointer for an operand");
        }
        // SAFETY: the code that made this pointer upholds its contract.
        Ok(unsafe { self.0.add(index).read_unaligned() })
    }
}

impl In<u8> {
    pub fn pointer(&self) -> *const u8 {
        self.0
    }

    /// Returns a copy of the `bytes` bytes at the pointer.
    pub fn copied(&self, bytes: usize) -> Outcome<Vec<u8>> {
        if self.0.is_null() && bytes > 0 {
            return refused(CUresult::CUDA_ERROR_INVALID_VALUE, "a null pointer for an operand");
        }
        let mut copy = vec![0u8; bytes];
        // SAFETY: the code that made this pointer upholds its contract; no bytes are read from a null pointer.
        unsafe { std::ptr::copy_nonoverlapping(self.0, copy.as_mut_ptr(), bytes) };
        Ok(copy)
    }
}

/// A pointer to text, passed by a caller of the library. Only foreign callers make one, and guarantee that it is null or
/// leads to text that ends with a zero.
#[repr(transparent)]
pub struct Text(*const c_char);

impl Text {
    pub fn read(&self) -> Outcome<Cow<'_, str>> {
        if self.0.is_null() {
            return refused(CUresult::CUDA_ERROR_INVALID_VALUE, "a null pointer for a name");
        }
        // SAFETY: the code that made this pointer upholds its contract.
        Ok(unsafe { CStr::from_ptr(self.0) }.to_string_lossy())
    }
}

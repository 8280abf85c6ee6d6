//! The functions of the process's TVM-FFI library. This crate does not link with the library: the caller has loaded it,
//! and the dynamic linker knows its functions by name.

use std::ffi::{CStr, CString, c_char, c_int, c_void};

use super::abi::ByteArray;
use crate::status::{FLEXDRAFT_RUNTIME, Outcome, Refusal};

unsafe extern "C" {
    fn dlsym(handle: *mut c_void, symbol: *const c_char) -> *mut c_void;
}

/// Returns the address of a function of any library that the process shares globally.
fn address(name: &CStr) -> Option<*mut c_void> {
    // SAFETY: a null handle (RTLD_DEFAULT) searches the libraries in the global scope.
    let found = unsafe { dlsym(std::ptr::null_mut(), name.as_ptr()) };
    (!found.is_null()).then_some(found)
}

/// Raises an error of TVM-FFI for the current thread, if the process has the library.
pub fn raise(kind: &CStr, message: &str) {
    type Raise = unsafe extern "C" fn(*const c_char, *const c_char);
    let message = CString::new(message.replace('\0', " ")).unwrap_or_default();
    if let Some(found) = address(c"TVMFFIErrorSetRaisedFromCStr") {
        // SAFETY: the function of this name has this type in apache-tvm-ffi 0.1, and both texts end with a zero.
        unsafe {
            let raise = std::mem::transmute::<*mut c_void, Raise>(found);
            raise(kind.as_ptr(), message.as_ptr());
        }
    }
}

/// Returns the stream that TVM-FFI's environment has for a CUDA device: the current stream of the framework.
pub fn current_stream(kind: i32, id: i32) -> *mut c_void {
    type Current = unsafe extern "C" fn(i32, i32) -> *mut c_void;
    match address(c"TVMFFIEnvGetStream") {
        None => std::ptr::null_mut(),
        // SAFETY: the function of this name has this type in apache-tvm-ffi 0.1.
        Some(found) => unsafe { std::mem::transmute::<*mut c_void, Current>(found)(kind, id) },
    }
}

/// Returns the number of the object type `key`, whose parent is `Object`.
///
/// # Errors
///
/// If the process has no TVM-FFI library.
pub fn type_index(key: &str) -> Outcome<i32> {
    type Index = unsafe extern "C" fn(*const ByteArray, i32, i32, i32, c_int, i32) -> i32;
    let found = address(c"TVMFFITypeGetOrAllocIndex").ok_or_else(|| Refusal {
        status: FLEXDRAFT_RUNTIME,
        text: "the process has no TVM-FFI library in its global scope, expected libtvm_ffi".into(),
    })?;
    let key = ByteArray { data: key.as_ptr().cast(), size: key.len() };
    // SAFETY: the function of this name has this type in apache-tvm-ffi 0.1. The type is dynamic (-1), a child of
    // `Object` (64), and has no children.
    Ok(unsafe { std::mem::transmute::<*mut c_void, Index>(found)(&raw const key, -1, 1, 0, 0, 64) })
}

//! The kernels as functions of TVM-FFI, on DLPack tensors: the symbols `__tvm_ffi_NAME` of this library.
//!
//! `tvm_ffi.load_module` loads the library, in Python and in other languages. Tensors on a CUDA device run there, on
//! the current stream of TVM-FFI's environment; tensors on the host run on the SIMT emulator. Every operand is an
//! argument in the order of [`functions`], outputs too; an optional operand may be None. Errors are errors of TVM-FFI:
//! a `TypeError` for an argument of another type, a `ValueError` for a shape or value, and a `RuntimeError` otherwise.
//!
//! Structs of the C interface are rows of a u8 tensor: `[rows, 40]` for row sampling, 48 bytes for row stats and
//! verify, 32 bytes for verdicts and drafts, 24 bytes for the edits of rows, and 16 bytes for edits.
//!
//! The kernels stay loaded for each device that was used once, until the process ends. This is the only state that
//! calls share, and no result depends on it.

mod abi;
mod arguments;
mod functions;
mod host;
mod launch;
mod pass;

use std::ffi::CStr;
use std::panic::{AssertUnwindSafe, catch_unwind};

use abi::Any;
use arguments::Arguments;

use crate::status::{
    FLEXDRAFT_ALIGNMENT, FLEXDRAFT_DTYPE, FLEXDRAFT_LENGTH, FLEXDRAFT_NULL, FLEXDRAFT_OVERFLOW,
    FLEXDRAFT_PASS_ROWS, FLEXDRAFT_QUEUE, FLEXDRAFT_UNSUPPORTED, FLEXDRAFT_VALUE, Outcome, panicked,
};

/// Returns the kind of error of TVM-FFI for a status.
fn kind(status: i32) -> &'static CStr {
    match status {
        FLEXDRAFT_NULL | FLEXDRAFT_DTYPE => c"TypeError",
        FLEXDRAFT_LENGTH
        | FLEXDRAFT_ALIGNMENT
        | FLEXDRAFT_QUEUE
        | FLEXDRAFT_UNSUPPORTED
        | FLEXDRAFT_VALUE
        | FLEXDRAFT_PASS_ROWS
        | FLEXDRAFT_OVERFLOW => c"ValueError",
        _ => c"RuntimeError",
    }
}

/// Runs the body of a TVM-FFI function: 0 and a result, or −1 and a raised error. A panic becomes an error.
///
/// # Safety
///
/// `values` has `count` valid values, whose objects and tensors live during the call; `result` is writable.
unsafe fn call(
    function: &'static str,
    body: fn(&mut Arguments<'_>) -> Outcome<Any>,
    values: *const Any,
    count: i32,
    result: *mut Any,
) -> i32 {
    let run = || {
        let values = match usize::try_from(count) {
            // SAFETY: the caller upholds the contract of this function.
            Ok(count) if count > 0 && !values.is_null() => unsafe {
                std::slice::from_raw_parts(values, count)
            },
            _ => &[],
        };
        body(&mut Arguments::new(function, values))
    };
    let refusal = match catch_unwind(AssertUnwindSafe(run)) {
        Ok(Ok(value)) => {
            // SAFETY: the caller upholds the contract of this function.
            unsafe { result.write(value) };
            return 0;
        }
        Ok(Err(refusal)) => refusal,
        Err(payload) => panicked(payload),
    };
    host::raise(kind(refusal.status), &refusal.text);
    -1
}

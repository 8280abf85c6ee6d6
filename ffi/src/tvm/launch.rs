//! Launches: the kernels and the stream of the device on which the arguments of a call are.

use std::collections::BTreeMap;
use std::ffi::c_void;
use std::sync::{Arc, Mutex, PoisonError};

use super::abi::{Any, CUDA, Device, INT, NONE};
use super::arguments::Elements::Struct;
use super::arguments::{Arguments, Elements};
use super::host;
use crate::buffer::{
    FLEXDRAFT_DRAFT, FLEXDRAFT_LOGIT_EDIT, FLEXDRAFT_ROW_EDITS, FLEXDRAFT_ROW_SAMPLING, FLEXDRAFT_ROW_STATS,
    FLEXDRAFT_VERDICT, FLEXDRAFT_VERIFY,
};
use crate::processor::{Call, FLEXDRAFT_EMULATOR, FlexdraftKernels};
use crate::status::Outcome;

/// A value that is None.
pub const NO_RESULT: Any = Any { type_index: NONE, padding: 0, bits: 0 };

/// Returns the kernels for a device, loaded at most once.
pub fn kernels(device: Device) -> Outcome<Arc<FlexdraftKernels>> {
    static LOADED: Mutex<BTreeMap<i32, Arc<FlexdraftKernels>>> = Mutex::new(BTreeMap::new());
    let number = if device.kind == CUDA { device.id } else { FLEXDRAFT_EMULATOR };
    let mut loaded = LOADED.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(found) = loaded.get(&number) {
        return Ok(found.clone());
    }
    let opened = Arc::new(FlexdraftKernels::open(number)?);
    loaded.insert(number, opened.clone());
    Ok(opened)
}

/// Returns the stream for launches on a device.
pub fn stream(device: Device) -> *mut c_void {
    if device.kind == CUDA { host::current_stream(device.kind, device.id) } else { std::ptr::null_mut() }
}

/// The elements of a table of row sampling.
pub const ROW_SAMPLING: Elements = Struct(FLEXDRAFT_ROW_SAMPLING, 40);
/// The elements of a table of row stats.
pub const ROW_STATS: Elements = Struct(FLEXDRAFT_ROW_STATS, 48);
/// The elements of a table of verify structs.
pub const VERIFY: Elements = Struct(FLEXDRAFT_VERIFY, 48);
/// The elements of a table of verdicts.
pub const VERDICT: Elements = Struct(FLEXDRAFT_VERDICT, 32);
/// The elements of a table of drafts.
pub const DRAFT: Elements = Struct(FLEXDRAFT_DRAFT, 32);
/// The elements of a table of the edits of rows.
pub const ROW_EDITS: Elements = Struct(FLEXDRAFT_ROW_EDITS, 24);
/// The elements of a table of edits.
pub const LOGIT_EDIT: Elements = Struct(FLEXDRAFT_LOGIT_EDIT, 16);
/// Any size of a dimension.
pub const ANY: i64 = -1;

/// Runs an operation on the device of the arguments, which all have been taken.
pub fn run<C: Call>(args: &Arguments<'_>, operation: &C) -> Outcome<C::Output> {
    args.end()?;
    let device = args.device();
    kernels(device)?.run(stream(device), operation)
}

/// Launches a kernel on the device of the arguments.
pub fn launch<C: Call<Output = ()>>(args: &Arguments<'_>, operation: &C) -> Outcome<Any> {
    run(args, operation).map(|()| NO_RESULT)
}

/// Returns an integer as a value.
pub fn integer(value: u64) -> Any {
    Any { type_index: INT, padding: 0, bits: value }
}

//! The tables of a pass as an object of TVM-FFI, which its users count references to.

use std::ffi::{c_int, c_void};
use std::sync::Arc;

use super::abi::{Any, Device, OBJECT, Object};
use super::host;
use crate::pass::FlexdraftPass;
use crate::processor::FlexdraftKernels;
use crate::status::Outcome;

/// The object: a header, and the tables with the kernels that they were made for.
#[repr(C)]
pub struct PassObject {
    header: Object,
    contents: Option<Box<Contents>>,
}

/// The tables of a pass, the kernels that made them, and their device.
pub struct Contents {
    /// The tables.
    pub pass: FlexdraftPass,
    /// The kernels, which live as long as the tables.
    pub kernels: Arc<FlexdraftKernels>,
    /// The device of the tables.
    pub device: Device,
}

/// Frees the tables when the strong count reaches 0, and the object's memory when the weak count does.
unsafe extern "C" fn delete(object: *mut c_void, flags: c_int) {
    let object: *mut PassObject = object.cast();
    // SAFETY: TVM-FFI calls this with an object that has this deleter, so `new` made it; it passes each flag once.
    unsafe {
        if flags & 1 != 0 {
            // Dropping waits for the device; a panic must not leave this function.
            let contents = (*object).contents.take();
            let _ = std::panic::catch_unwind(std::panic::AssertUnwindSafe(move || drop(contents)));
        }
        if flags & 2 != 0 {
            drop(Box::from_raw(object));
        }
    }
}

/// Returns an object with one reference, as a value that owns it.
pub fn new(contents: Contents) -> Outcome<Any> {
    let type_index = host::type_index("flexdraft.PassTables")?;
    let header = Object { counts: 1 << 32 | 1, type_index, padding: 0, deleter: Some(delete) };
    let object = Box::new(PassObject { header, contents: Some(Box::new(contents)) });
    Ok(Any { type_index, padding: 0, bits: Box::into_raw(object) as u64 })
}

/// Returns the contents of a value, if it is an object of this module.
///
/// # Safety
///
/// The value is a valid `TVMFFIAny` whose object lives for `'a`, and no other call uses the object.
pub unsafe fn contents<'a>(value: &Any) -> Option<&'a mut Contents> {
    let object = value.bits as *mut PassObject;
    if value.type_index < OBJECT || object.is_null() {
        return None;
    }
    // SAFETY: every object begins with a header.
    let deleter = unsafe { (*object.cast::<Object>()).deleter };
    // Only objects of this module have this deleter.
    if deleter.map(|deleter| deleter as usize) != Some(delete as *const () as usize) {
        return None;
    }
    // SAFETY: the object is of this module, and the caller guarantees that it lives and that no other call uses it.
    unsafe { (*object).contents.as_deref_mut() }
}

//! Operands: addresses with a number of elements and their type.

use std::ffi::c_void;

use flexdraft::kernels::HalfView;
use flexdraft::kernels::acceptance::{Verdict, Verify};
use flexdraft::kernels::sampling::{LogitEdit, RowEdits, RowSampling, RowStats};
use flexdraft::kernels::selection::Draft;
use flexdraft::runtime::{Element, QueueId, View, ViewMut};
use half::{bf16, f16};

use crate::status::{FLEXDRAFT_DTYPE, Outcome, Refusal, size};

/// Type of elements: no elements; the buffer is absent.
pub const FLEXDRAFT_ABSENT: u32 = 0;
/// Type of elements: bfloat16, 2 bytes.
pub const FLEXDRAFT_BF16: u32 = 1;
/// Type of elements: IEEE single precision, 4 bytes.
pub const FLEXDRAFT_F32: u32 = 2;
/// Type of elements: signed integer of 4 bytes.
pub const FLEXDRAFT_I32: u32 = 3;
/// Type of elements: unsigned integer of 4 bytes.
pub const FLEXDRAFT_U32: u32 = 4;
/// Type of elements: IEEE half precision, 2 bytes.
pub const FLEXDRAFT_F16: u32 = 5;
/// Type of elements: FlexdraftRowSampling, 40 bytes.
pub const FLEXDRAFT_ROW_SAMPLING: u32 = 16;
/// Type of elements: FlexdraftRowStats, 48 bytes.
pub const FLEXDRAFT_ROW_STATS: u32 = 17;
/// Type of elements: FlexdraftVerify, 48 bytes.
pub const FLEXDRAFT_VERIFY: u32 = 18;
/// Type of elements: FlexdraftVerdict, 32 bytes.
pub const FLEXDRAFT_VERDICT: u32 = 19;
/// Type of elements: FlexdraftDraft, 32 bytes.
pub const FLEXDRAFT_DRAFT: u32 = 20;
/// Type of elements: FlexdraftRowEdits, 24 bytes.
pub const FLEXDRAFT_ROW_EDITS: u32 = 21;
/// Type of elements: FlexdraftLogitEdit, 16 bytes.
pub const FLEXDRAFT_LOGIT_EDIT: u32 = 22;

/// An operand in memory of the caller, on the device. A buffer of zeros is absent, which only optional operands may be.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct FlexdraftBuffer {
    /// Address of the first element: on a GPU a device address, on the emulator a host address.
    pub data: *mut c_void,
    /// Number of elements.
    pub len: u64,
    /// Type of the elements: FLEXDRAFT_BF16, FLEXDRAFT_F32, and so on.
    pub dtype: u32,
    /// Unused; 0.
    pub reserved: u32,
}

impl FlexdraftBuffer {
    /// The absent buffer.
    pub const ABSENT: Self =
        FlexdraftBuffer { data: std::ptr::null_mut(), len: 0, dtype: FLEXDRAFT_ABSENT, reserved: 0 };

    pub(crate) fn is_absent(&self) -> bool {
        self.dtype == FLEXDRAFT_ABSENT && self.data.is_null() && self.len == 0
    }
}

/// The operand of a call whose type is the type of all rows and caches of the call, with its name.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Deciding<'a>(pub &'a str, pub &'a FlexdraftBuffer);

impl Deciding<'_> {
    /// Returns whether the rows and caches of the call are f16, or bf16.
    pub fn is_f16(self) -> Outcome<bool> {
        let Deciding(name, buffer) = self;
        let expected = "bf16 or f16";
        match buffer.dtype {
            _ if buffer.is_absent() => Err(Refusal::null(name, &format!("elements of type {expected}"))),
            FLEXDRAFT_BF16 => Ok(false),
            FLEXDRAFT_F16 => Ok(true),
            other => Err(wrong_dtype(name, other, expected)),
        }
    }
}

/// Calls a generic method of a call with the type of the call's rows and caches, which an operand decides. The views of
/// the other operands refuse another type.
macro_rules! with_half_float {
    ($call:ident . $method:ident ( $on:expr ) , $name:literal , $buffer:expr) => {
        match $crate::buffer::Deciding($name, $buffer).is_f16()? {
            false => $call.$method::<R, half::bf16>($on),
            true => $call.$method::<R, half::f16>($on),
        }
    };
}
pub(crate) use with_half_float;

/// An element type of operands, with its number and its name in the C interface.
pub(crate) trait Typed: Element {
    const DTYPE: u32;
}

impl Typed for bf16 {
    const DTYPE: u32 = FLEXDRAFT_BF16;
}
impl Typed for f16 {
    const DTYPE: u32 = FLEXDRAFT_F16;
}
impl Typed for f32 {
    const DTYPE: u32 = FLEXDRAFT_F32;
}
impl Typed for i32 {
    const DTYPE: u32 = FLEXDRAFT_I32;
}
impl Typed for u32 {
    const DTYPE: u32 = FLEXDRAFT_U32;
}
impl Typed for RowSampling {
    const DTYPE: u32 = FLEXDRAFT_ROW_SAMPLING;
}
impl Typed for RowStats {
    const DTYPE: u32 = FLEXDRAFT_ROW_STATS;
}
impl Typed for Verify {
    const DTYPE: u32 = FLEXDRAFT_VERIFY;
}
impl Typed for Verdict {
    const DTYPE: u32 = FLEXDRAFT_VERDICT;
}
impl Typed for Draft {
    const DTYPE: u32 = FLEXDRAFT_DRAFT;
}
impl Typed for RowEdits {
    const DTYPE: u32 = FLEXDRAFT_ROW_EDITS;
}
impl Typed for LogitEdit {
    const DTYPE: u32 = FLEXDRAFT_LOGIT_EDIT;
}

/// Returns the name of an element type, for errors.
pub(crate) fn dtype_name(dtype: u32) -> String {
    match dtype {
        FLEXDRAFT_ABSENT => "absent",
        FLEXDRAFT_BF16 => "bf16",
        FLEXDRAFT_F32 => "f32",
        FLEXDRAFT_I32 => "i32",
        FLEXDRAFT_U32 => "u32",
        FLEXDRAFT_F16 => "f16",
        FLEXDRAFT_ROW_SAMPLING => "row sampling",
        FLEXDRAFT_ROW_STATS => "row stats",
        FLEXDRAFT_VERIFY => "verify",
        FLEXDRAFT_VERDICT => "verdict",
        FLEXDRAFT_DRAFT => "draft",
        FLEXDRAFT_ROW_EDITS => "row edits",
        FLEXDRAFT_LOGIT_EDIT => "logit edit",
        other => return format!("unknown type {other}"),
    }
    .to_owned()
}

/// Returns the failure of an operand with elements of another type.
pub(crate) fn wrong_dtype(name: &str, found: u32, expected: &str) -> Refusal {
    let text = format!("operand `{name}` has elements of type {}, expected {expected}", dtype_name(found));
    Refusal { status: FLEXDRAFT_DTYPE, text }
}

/// Makes views of operands for launches on one queue.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Operands(pub QueueId);

impl Operands {
    /// Checks an operand's pointer and type, and returns its address and its number of elements.
    fn check<T: Typed>(name: &str, buffer: &FlexdraftBuffer) -> Outcome<(u64, usize)> {
        let expected = dtype_name(T::DTYPE);
        if buffer.is_absent() || (buffer.data.is_null() && buffer.len > 0) {
            return Err(Refusal::null(name, &format!("elements of type {expected}")));
        }
        if buffer.dtype != T::DTYPE {
            return Err(wrong_dtype(name, buffer.dtype, &expected));
        }
        Ok((buffer.data as u64, size(name, buffer.len)?))
    }

    /// Views an operand that a kernel reads.
    ///
    /// # Safety
    ///
    /// The conditions of [`View::from_raw`].
    pub unsafe fn read<'a, T: Typed>(self, name: &str, buffer: &FlexdraftBuffer) -> Outcome<View<'a, T>> {
        let (address, len) = Self::check::<T>(name, buffer)?;
        // SAFETY: the caller upholds the contract of this function.
        Ok(unsafe { View::from_raw(address, len, self.0) })
    }

    /// Views an operand that a kernel reads, if it is present.
    ///
    /// # Safety
    ///
    /// The conditions of [`View::from_raw`].
    pub unsafe fn read_optional<'a, T: Typed>(
        self,
        name: &str,
        buffer: &FlexdraftBuffer,
    ) -> Outcome<Option<View<'a, T>>> {
        if buffer.is_absent() {
            return Ok(None);
        }
        // SAFETY: the caller upholds the contract of this function.
        unsafe { self.read(name, buffer) }.map(Some)
    }

    /// Views an operand of bf16 or f16 that a kernel reads.
    ///
    /// # Safety
    ///
    /// The conditions of [`View::from_raw`].
    pub unsafe fn read_half<'a>(self, name: &str, buffer: &FlexdraftBuffer) -> Outcome<HalfView<'a>> {
        // SAFETY: the caller upholds the contract of this function.
        unsafe {
            Ok(match Deciding(name, buffer).is_f16()? {
                false => self.read::<bf16>(name, buffer)?.into(),
                true => self.read::<f16>(name, buffer)?.into(),
            })
        }
    }

    /// Views an operand that a kernel writes.
    ///
    /// # Safety
    ///
    /// The conditions of [`ViewMut::from_raw`].
    pub unsafe fn write<'a, T: Typed>(self, name: &str, buffer: &FlexdraftBuffer) -> Outcome<ViewMut<'a, T>> {
        let (address, len) = Self::check::<T>(name, buffer)?;
        // SAFETY: the caller upholds the contract of this function.
        Ok(unsafe { ViewMut::from_raw(address, len, self.0) })
    }

    /// Views an operand that a kernel writes, if it is present.
    ///
    /// # Safety
    ///
    /// The conditions of [`ViewMut::from_raw`].
    pub unsafe fn write_optional<'a, T: Typed>(
        self,
        name: &str,
        buffer: &FlexdraftBuffer,
    ) -> Outcome<Option<ViewMut<'a, T>>> {
        if buffer.is_absent() {
            return Ok(None);
        }
        // SAFETY: the caller upholds the contract of this function.
        unsafe { self.write(name, buffer) }.map(Some)
    }
}

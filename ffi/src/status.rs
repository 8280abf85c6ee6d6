//! Status codes, error messages, and the guard that stops panics at the C interface.

use std::any::Any;
use std::ffi::c_char;
use std::mem::offset_of;
use std::panic::{AssertUnwindSafe, catch_unwind};

use flexdraft::kernels::{ExceededLimit, Faults, KernelError};
use flexdraft::processors::ProcessorError;
use flexdraft::runtime::RuntimeError;
use flexdraft::sampling::SamplingError;

/// Status: the call succeeded.
pub const FLEXDRAFT_OK: i32 = 0;
/// Status: a required pointer or operand is null.
pub const FLEXDRAFT_NULL: i32 = 1;
/// Status: the size of a struct is not a size that this library knows.
pub const FLEXDRAFT_STRUCT_SIZE: i32 = 2;
/// Status: an operand has elements of another type than expected.
pub const FLEXDRAFT_DTYPE: i32 = 3;
/// Status: an operand has the wrong number of elements, or a workspace is too small.
pub const FLEXDRAFT_LENGTH: i32 = 4;
/// Status: the address of an operand is not a multiple of the required alignment.
pub const FLEXDRAFT_ALIGNMENT: i32 = 5;
/// Status: a pass or an operand belongs to another processor or stream than the launch.
pub const FLEXDRAFT_QUEUE: i32 = 6;
/// Status: the kernels do not support a shape.
pub const FLEXDRAFT_UNSUPPORTED: i32 = 7;
/// Status: a parameter is outside its range, or contradicts another parameter.
pub const FLEXDRAFT_VALUE: i32 = 8;
/// Status: the rows of a pass are invalid.
pub const FLEXDRAFT_PASS_ROWS: i32 = 9;
/// Status: a size or an index does not fit its integer type.
pub const FLEXDRAFT_OVERFLOW: i32 = 10;
/// Status: there is no CUDA driver or no such device, or the library was built without code for GPUs.
pub const FLEXDRAFT_NO_DEVICE: i32 = 11;
/// Status: memory ran out.
pub const FLEXDRAFT_OUT_OF_MEMORY: i32 = 12;
/// Status: the driver or the emulator reported an error.
pub const FLEXDRAFT_RUNTIME: i32 = 13;
/// Status: a kernel reported a fault in the device error word.
pub const FLEXDRAFT_FAULT: i32 = 14;
/// Status: the library panicked; the text has the panic's message.
pub const FLEXDRAFT_PANIC: i32 = 15;

/// The reason why a call failed, in memory of the caller. Set `struct_size` before the call.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct FlexdraftError {
    /// Size in bytes of the caller's struct, at least 32. A caller may have a longer `text` than this declaration; the
    /// size states its length.
    pub struct_size: u64,
    /// Written: the status code that the function returns.
    pub status: i32,
    /// Written: the number of bytes of the whole text without its terminating zero. The text was cut if this number
    /// does not fit `text`.
    pub text_bytes: u32,
    /// Written: the text in UTF-8, with a terminating zero. It names the operand or parameter, the expected value, and
    /// the value that was found. Empty after FLEXDRAFT_OK.
    pub text: [c_char; 496],
}

impl Default for FlexdraftError {
    fn default() -> Self {
        let struct_size = size_of::<Self>() as u64;
        FlexdraftError { struct_size, status: FLEXDRAFT_OK, text_bytes: 0, text: [0; 496] }
    }
}

impl FlexdraftError {
    /// Returns the text up to its terminating zero.
    pub fn text(&self) -> String {
        let bytes = self.text.iter().map(|&byte| byte.cast_unsigned());
        String::from_utf8_lossy(&bytes.take_while(|&byte| byte != 0).collect::<Vec<u8>>()).into_owned()
    }
}

/// A failed call: the status code and the text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Refusal {
    pub status: i32,
    pub text: String,
}

/// The result of a call, or the reason why it failed.
pub(crate) type Outcome<T> = Result<T, Refusal>;

impl Refusal {
    /// Returns the failure of a required pointer or operand `name` that is null.
    pub fn null(name: &str, expected: &str) -> Self {
        Refusal { status: FLEXDRAFT_NULL, text: format!("`{name}` is null, expected {expected}") }
    }

    /// Returns the failure of a parameter outside its range.
    pub fn value(name: &str, found: impl std::fmt::Display, expected: &str) -> Self {
        Refusal { status: FLEXDRAFT_VALUE, text: format!("`{name}` is {found}, expected {expected}") }
    }

    /// Returns the failure of a size `name` that does not fit its integer type.
    pub fn overflow(name: &str) -> Self {
        Refusal { status: FLEXDRAFT_OVERFLOW, text: format!("`{name}` is too large for its integer type") }
    }
}

/// Returns a size in the library's type.
pub(crate) fn size(name: &str, value: u64) -> Outcome<usize> {
    usize::try_from(value).map_err(|_| Refusal::overflow(name))
}

/// Returns whether a flag is set; a flag is 0 or 1.
pub(crate) fn flag(name: &str, value: u32) -> Outcome<bool> {
    match value {
        0 => Ok(false),
        1 => Ok(true),
        other => Err(Refusal::value(name, other, "0 or 1")),
    }
}

impl From<KernelError> for Refusal {
    fn from(error: KernelError) -> Self {
        let status = match &error {
            KernelError::Length { .. } => FLEXDRAFT_LENGTH,
            KernelError::Type { .. } => FLEXDRAFT_DTYPE,
            KernelError::Alignment { .. } => FLEXDRAFT_ALIGNMENT,
            KernelError::Queue { .. } => FLEXDRAFT_QUEUE,
            KernelError::Unsupported { .. } => FLEXDRAFT_UNSUPPORTED,
            KernelError::Pass { .. }
            | KernelError::Sequence { .. }
            | KernelError::PageId { .. }
            | KernelError::GroupOrder { .. }
            | KernelError::GroupBeyondCandidates { .. }
            | KernelError::NoSlots { .. }
            | KernelError::SharedToken { .. } => FLEXDRAFT_PASS_ROWS,
            KernelError::Overflow { .. } => FLEXDRAFT_OVERFLOW,
            KernelError::Runtime(error) => runtime_status(error),
            _ => FLEXDRAFT_RUNTIME,
        };
        Refusal { status, text: error.to_string() }
    }
}

fn runtime_status(error: &RuntimeError) -> i32 {
    match error {
        RuntimeError::Unavailable(_) | RuntimeError::NoDeviceCode => FLEXDRAFT_NO_DEVICE,
        error if error.is_out_of_memory() => FLEXDRAFT_OUT_OF_MEMORY,
        _ => FLEXDRAFT_RUNTIME,
    }
}

impl From<RuntimeError> for Refusal {
    fn from(error: RuntimeError) -> Self {
        Refusal { status: runtime_status(&error), text: error.to_string() }
    }
}

impl From<SamplingError> for Refusal {
    fn from(error: SamplingError) -> Self {
        Refusal { status: FLEXDRAFT_VALUE, text: error.to_string() }
    }
}

impl From<ProcessorError> for Refusal {
    fn from(error: ProcessorError) -> Self {
        Refusal { status: FLEXDRAFT_VALUE, text: error.to_string() }
    }
}

impl From<ExceededLimit> for Refusal {
    fn from(error: ExceededLimit) -> Self {
        Refusal { status: FLEXDRAFT_UNSUPPORTED, text: error.to_string() }
    }
}

/// A struct of the C interface that begins with its own size.
///
/// # Safety
///
/// The struct is `repr(C)`, its first field is `struct_size: u64`, and every pattern of bits is a valid value of it.
pub(crate) unsafe trait Versioned: Copy {
    /// The name of the struct, for errors.
    const NAME: &'static str;
    /// The size of the struct in the first version of the interface. A struct to which fields were added names its
    /// earlier size here.
    const FIRST_SIZE: usize = size_of::<Self>();
}

/// Declares structs as versioned. `Name before field` says that `field` is the first field which the first version of the
/// interface did not have.
macro_rules! versioned {
    ($($name:ident $(before $added:ident)?),* $(,)?) => {
        $(
            // SAFETY: the struct is `repr(C)`, begins with `struct_size`, and has fields of integers, floats and raw
            // pointers alone, for which every pattern of bits is valid.
            unsafe impl $crate::status::Versioned for $name {
                const NAME: &'static str = stringify!($name);
                $(const FIRST_SIZE: usize = std::mem::offset_of!($name, $added);)?
            }
        )*
    };
}
pub(crate) use versioned;

/// Returns the caller's struct at `from`. Fields that the caller's struct does not have are zero.
///
/// # Safety
///
/// `from` is null, or readable for 8 bytes and for the bytes that its first field states.
pub(crate) unsafe fn read<T: Versioned>(from: *const T) -> Outcome<T> {
    if from.is_null() {
        return Err(Refusal::null(T::NAME, "a struct"));
    }
    // SAFETY: the caller upholds the contract of this function.
    let bytes = unsafe { from.cast::<u64>().read_unaligned() };
    if bytes < T::FIRST_SIZE as u64 || bytes > size_of::<T>() as u64 {
        let (first, now) = (T::FIRST_SIZE, size_of::<T>());
        let sizes = if first == now { format!("{now}") } else { format!("{first} to {now}") };
        let text = format!("{}: `struct_size` is {bytes} bytes, expected {sizes}", T::NAME);
        return Err(Refusal { status: FLEXDRAFT_STRUCT_SIZE, text });
    }
    let mut to = std::mem::MaybeUninit::<T>::zeroed();
    // SAFETY: the caller upholds the contract of this function; `bytes` is at most the size of `T`, and any bits are a
    // valid `T`.
    unsafe {
        std::ptr::copy_nonoverlapping(from.cast::<u8>(), to.as_mut_ptr().cast::<u8>(), bytes as usize);
        Ok(to.assume_init())
    }
}

/// Writes a result to memory of the caller.
///
/// # Safety
///
/// `to` is null or writable for a `T`.
pub(crate) unsafe fn write<T>(name: &str, to: *mut T, value: T) -> Outcome<()> {
    if to.is_null() {
        return Err(Refusal::null(name, "memory for the result"));
    }
    // SAFETY: the caller upholds the contract of this function.
    unsafe { to.write_unaligned(value) };
    Ok(())
}

/// Returns the object that `from` leads to.
///
/// # Safety
///
/// `from` is null or leads to an object that lives for `'a`.
pub(crate) unsafe fn borrow<'a, T>(name: &str, from: *const T) -> Outcome<&'a T> {
    // SAFETY: the caller upholds the contract of this function.
    unsafe { from.as_ref() }.ok_or_else(|| Refusal::null(name, "an open object"))
}

/// The largest number of entries of a host table, which keeps the size of the table in bytes far from overflow.
pub(crate) const MOST: u64 = i32::MAX as u64;

/// Returns a host table of the caller.
///
/// # Safety
///
/// `from` is null or readable for `len` elements.
pub(crate) unsafe fn table<'a, T>(name: &str, from: *const T, len: u64) -> Outcome<&'a [T]> {
    if len == 0 {
        return Ok(&[]);
    }
    if len > MOST {
        return Err(Refusal::overflow(name));
    }
    if from.is_null() || !from.is_aligned() {
        return Err(Refusal::null(name, &format!("the aligned address of {len} entries")));
    }
    // SAFETY: the caller upholds the contract of this function; the length is within bounds.
    Ok(unsafe { std::slice::from_raw_parts(from, len as usize) })
}

/// Runs the body of a function of the C interface and returns its status. A panic becomes an error.
///
/// # Safety
///
/// `error` is null, or readable and writable for the bytes that its field `struct_size` states.
pub(crate) unsafe fn guard(error: *mut FlexdraftError, body: impl FnOnce() -> Outcome<()>) -> i32 {
    const TEXT: usize = offset_of!(FlexdraftError, text);
    let mut capacity = 0;
    if !error.is_null() {
        // SAFETY: the caller upholds the contract of this function.
        let bytes = unsafe { (&raw const (*error).struct_size).read_unaligned() };
        if bytes < 32 {
            return FLEXDRAFT_STRUCT_SIZE;
        }
        capacity = usize::try_from(bytes).unwrap_or(usize::MAX) - TEXT;
    }
    let Refusal { status, text } = match catch_unwind(AssertUnwindSafe(body)) {
        Ok(Ok(())) => Refusal { status: FLEXDRAFT_OK, text: String::new() },
        Ok(Err(refusal)) => refusal,
        Err(payload) => panicked(payload),
    };
    if capacity > 0 {
        let bytes = text.as_bytes();
        // A text that does not fit is cut between two characters.
        let mut len = bytes.len().min(capacity - 1);
        while !text.is_char_boundary(len) {
            len -= 1;
        }
        // SAFETY: the caller upholds the contract of this function; the text with its terminating zero fits the capacity.
        unsafe {
            (&raw mut (*error).status).write_unaligned(status);
            (&raw mut (*error).text_bytes).write_unaligned(u32::try_from(bytes.len()).unwrap_or(u32::MAX));
            let to = error.cast::<u8>().add(TEXT);
            std::ptr::copy_nonoverlapping(bytes.as_ptr(), to, len);
            to.add(len).write(0);
        }
    }
    status
}

/// Returns the failure of a call that panicked.
pub(crate) fn panicked(payload: Box<dyn Any + Send>) -> Refusal {
    let text = payload.downcast_ref::<&str>().copied();
    let text = text.or_else(|| payload.downcast_ref::<String>().map(String::as_str)).unwrap_or("no text");
    let text = format!("the library panicked, please report this: {text}").replace('\0', " ");
    // Dropping the payload could panic again.
    std::mem::forget(payload);
    Refusal { status: FLEXDRAFT_PANIC, text }
}

/// Names the faults that kernels reported in the device error word `word`, which the caller has copied to the host.
/// Returns FLEXDRAFT_OK if the word is 0, otherwise FLEXDRAFT_FAULT with a text that lists the faults.
///
/// # Safety
///
/// `error` is null, or valid for the size that it states.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn flexdraft_faults(word: u32, error: *mut FlexdraftError) -> i32 {
    let body = || match Faults::of(word) {
        None => Ok(()),
        Some(faults) => Err(Refusal { status: FLEXDRAFT_FAULT, text: faults.to_string() }),
    };
    // SAFETY: the caller upholds the contract of this function.
    unsafe { guard(error, body) }
}

#[cfg(test)]
mod tests {
    use super::*;

    extern "C" fn panics(error: *mut FlexdraftError) -> i32 {
        // SAFETY: the test's struct states its own size.
        unsafe { guard(error, || panic!("slot {} is taken", 7)) }
    }

    #[test]
    fn a_panic_stops_at_the_border() {
        let mut error = FlexdraftError::default();
        assert_eq!(panics(&raw mut error), FLEXDRAFT_PANIC);
        assert_eq!(error.status, FLEXDRAFT_PANIC);
        assert!(error.text().ends_with("slot 7 is taken"), "{}", error.text());
        assert_eq!(panics(std::ptr::null_mut()), FLEXDRAFT_PANIC);
    }

    #[test]
    fn texts_are_cut_to_the_memory_of_the_caller() {
        let long = || Err(Refusal::value("é".repeat(20).as_str(), 1, "0"));
        let mut error = FlexdraftError { struct_size: 32, ..FlexdraftError::default() };
        error.text[16] = 77;
        // SAFETY: the struct is longer than it states.
        assert_eq!(unsafe { guard(&raw mut error, long) }, FLEXDRAFT_VALUE);
        // A quote and seven letters of two bytes each, and no byte after the stated size.
        assert_eq!((error.text(), error.text[16]), (format!("`{}", "é".repeat(7)), 77));
        assert_eq!(error.text_bytes as usize, "`` is 1, expected 0".len() + 40);
        error.struct_size = 31;
        let mut ran = false;
        // SAFETY: as above.
        let status = unsafe {
            guard(&raw mut error, || {
                ran = true;
                Ok(())
            })
        };
        assert_eq!((status, ran), (FLEXDRAFT_STRUCT_SIZE, false));
    }

    #[repr(C)]
    #[derive(Clone, Copy)]
    struct Grown {
        struct_size: u64,
        first: u64,
        second: u64,
    }

    // SAFETY: the struct is `repr(C)` and has integers alone.
    unsafe impl Versioned for Grown {
        const NAME: &'static str = "Grown";
        const FIRST_SIZE: usize = 16;
    }

    #[test]
    fn structs_may_grow() {
        let read = |struct_size| {
            let grown = Grown { struct_size, first: 5, second: 6 };
            // SAFETY: the struct has at most the size that it states, or the size is refused.
            unsafe { read(&raw const grown) }.map(|grown| (grown.first, grown.second))
        };
        assert_eq!(read(24), Ok((5, 6)));
        // A caller of the first version does not have the second field.
        assert_eq!(read(16), Ok((5, 0)));
        for wrong in [0, 8, 15, 25, u64::MAX] {
            let refusal = read(wrong).unwrap_err();
            assert_eq!(refusal.status, FLEXDRAFT_STRUCT_SIZE);
            assert!(refusal.text.contains(&format!("{wrong} bytes, expected 16 to 24")), "{}", refusal.text);
        }
    }
}

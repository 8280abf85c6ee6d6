//! The kernels behind a C interface: `benches/peers` calls them from Python, on PyTorch's tensors and streams, beside
//! the libraries that they are compared with.
//!
//! Without a GPU they run on the SIMT host, on CPU tensors, so that the comparison itself is tested anywhere.
//!
//! Every function returns null or a nonzero status where it fails, and [`flexdraft_error`] says why. Pointers are
//! device addresses unless said otherwise; streams are `cudaStream_t`s as integers.

mod machine;
mod operands;

use std::ffi::{CStr, CString, c_char};
use std::panic::{AssertUnwindSafe, catch_unwind};

use machine::{Machine, On};
pub use operands::{AcceptOperands, AttentionOperands, PassLayout, SampleOperands, SamplingRule, VerifyRule};

/// Kernels somewhere, and what went wrong last.
pub struct Bridge {
    machine: Box<dyn Machine>,
    error: CString,
}

/// A pass on the device, and the text of an error.
pub struct Pass(Box<dyn std::any::Any>);

/// What a call came to, as text where it failed.
type Outcome<T> = Result<T, Box<dyn std::error::Error>>;

/// Runs a call: no panic leaves this library.
fn attempt<T>(call: impl FnOnce() -> Outcome<T>) -> Result<T, CString> {
    let text = |text: String| CString::new(text.replace('\0', " ")).unwrap_or_default();
    match catch_unwind(AssertUnwindSafe(call)) {
        Ok(outcome) => outcome.map_err(|error| text(error.to_string())),
        Err(_) => Err(text("a panic".into())),
    }
}

impl Bridge {
    fn status(&mut self, call: impl FnOnce(&dyn Machine) -> Outcome<()>) -> i32 {
        match attempt(|| call(&*self.machine)) {
            Ok(()) => 0,
            Err(error) => {
                self.error = error;
                1
            }
        }
    }
}

/// Loads the kernels for CUDA device `device`, or the SIMT host for −1. Where that fails the result is null and
/// `error`, of `error_bytes` bytes of host memory, gets a C string.
///
/// # Safety
///
/// `error` may be written for so many bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn flexdraft_open(device: i32, error: *mut c_char, error_bytes: usize) -> *mut Bridge {
    let open = || -> Outcome<Box<dyn Machine>> {
        Ok(match usize::try_from(device) {
            Ok(ordinal) => Box::new(On::gpu(ordinal)?),
            Err(_) => Box::new(On::simt()),
        })
    };
    match attempt(open) {
        Ok(machine) => Box::into_raw(Box::new(Bridge { machine, error: CString::default() })),
        Err(text) => {
            let bytes = text.as_bytes();
            let len = bytes.len().min(error_bytes.saturating_sub(1));
            if error_bytes > 0 {
                // SAFETY: the caller's promise; `len` bytes and the end fit.
                unsafe {
                    std::ptr::copy_nonoverlapping(bytes.as_ptr().cast(), error, len);
                    error.add(len).write(0);
                }
            }
            std::ptr::null_mut()
        }
    }
}

/// Unloads the kernels.
///
/// # Safety
///
/// `bridge` came from [`flexdraft_open`], is not used again, and its passes have been freed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn flexdraft_close(bridge: *mut Bridge) {
    if !bridge.is_null() {
        // SAFETY: the caller's promise.
        drop(unsafe { Box::from_raw(bridge) });
    }
}

/// Why the last call failed, until the next one.
///
/// # Safety
///
/// `bridge` came from [`flexdraft_open`] and is open.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn flexdraft_error(bridge: *const Bridge) -> *const c_char {
    // SAFETY: the caller's promise.
    let error: &CStr = unsafe { &(*bridge).error };
    error.as_ptr()
}

/// Puts a pass on the device, for launches on `stream`; null where its layout is not valid.
///
/// # Safety
///
/// `bridge` is open, `layout` valid, the stream of the device's primary context and alive until the pass is freed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn flexdraft_pass(
    bridge: *mut Bridge,
    stream: u64,
    layout: *const PassLayout,
) -> *mut Pass {
    // SAFETY: the caller's promise.
    let (bridge, layout) = unsafe { (&mut *bridge, &*layout) };
    // SAFETY: as above.
    match attempt(|| unsafe { bridge.machine.pass(stream, layout) }) {
        Ok(pass) => Box::into_raw(Box::new(Pass(pass))),
        Err(error) => {
            bridge.error = error;
            std::ptr::null_mut()
        }
    }
}

/// Frees a pass.
///
/// # Safety
///
/// `pass` came from [`flexdraft_pass`] and is not used again.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn flexdraft_pass_free(pass: *mut Pass) {
    if !pass.is_null() {
        // SAFETY: the caller's promise.
        drop(unsafe { Box::from_raw(pass) });
    }
}

/// Joint draft-and-verify attention ([`flexdraft::kernels::attention`]).
///
/// # Safety
///
/// `bridge` is open, `pass` is of it and of `stream`, the operands' addresses lead to as much memory as they say, and
/// nothing else uses what is written before the launches have run.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn flexdraft_attention(
    bridge: *mut Bridge,
    stream: u64,
    pass: *const Pass,
    operands: *const AttentionOperands,
) -> i32 {
    // SAFETY: the caller's promise.
    let (bridge, pass, operands) = unsafe { (&mut *bridge, &*pass, &*operands) };
    // SAFETY: as above.
    bridge.status(|machine| unsafe { machine.attention(stream, &*pass.0, operands) })
}

/// Sampling, of calibrated logits where there is a calibrator ([`flexdraft::kernels::sampling`]).
///
/// # Safety
///
/// As [`flexdraft_attention`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn flexdraft_sample(
    bridge: *mut Bridge,
    stream: u64,
    operands: *const SampleOperands,
) -> i32 {
    // SAFETY: the caller's promise.
    let (bridge, operands) = unsafe { (&mut *bridge, &*operands) };
    // SAFETY: as above.
    bridge.status(|machine| unsafe { machine.sample(stream, operands) })
}

/// Acceptance ([`flexdraft::kernels::acceptance`]).
///
/// # Safety
///
/// As [`flexdraft_attention`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn flexdraft_accept(
    bridge: *mut Bridge,
    stream: u64,
    operands: *const AcceptOperands,
) -> i32 {
    // SAFETY: the caller's promise.
    let (bridge, operands) = unsafe { (&mut *bridge, &*operands) };
    // SAFETY: as above.
    bridge.status(|machine| unsafe { machine.accept(stream, operands) })
}

/// Bytes of a row's sampling parameters on the device (0), of its statistics (1), of a sequence's verification (2), of
/// its verdict (3); 0 for anything else.
#[unsafe(no_mangle)]
pub extern "C" fn flexdraft_bytes(what: i32) -> u64 {
    operands::bytes(what)
}

/// Writes the sampling parameters of `rows` rows, for [`SampleOperands::sampling`].
///
/// # Safety
///
/// `bridge` is open, `rule` valid, and `out` leads to `rows` times their size of host memory.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn flexdraft_row_sampling(
    bridge: *mut Bridge,
    rule: *const SamplingRule,
    rows: u64,
    out: *mut u8,
) -> i32 {
    // SAFETY: the caller's promise.
    let (bridge, rule) = unsafe { (&mut *bridge, &*rule) };
    // SAFETY: as above.
    bridge.status(|_| unsafe { operands::row_sampling(rule, rows, out) })
}

/// Writes the verification of `batch` sequences whose rows follow each other, for [`AcceptOperands::sequences`].
///
/// # Safety
///
/// `bridge` is open, `rule` valid, and `out` leads to `batch` times their size of host memory.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn flexdraft_verify(
    bridge: *mut Bridge,
    rule: *const VerifyRule,
    batch: u64,
    out: *mut u8,
) -> i32 {
    // SAFETY: the caller's promise.
    let (bridge, rule) = unsafe { (&mut *bridge, &*rule) };
    // SAFETY: as above.
    bridge.status(|_| unsafe { operands::verify(rule, batch, out) })
}

/// f32 elements of the workspace of attention over a pass of so many rows that see up to `longest` positions; 0 if
/// that overflows.
#[unsafe(no_mangle)]
pub extern "C" fn flexdraft_attention_workspace(q_heads: u64, head_dim: u64, rows: u64, longest: u64) -> u64 {
    operands::attention_workspace(q_heads, head_dim, rows, longest)
}

/// f32 elements of the workspace of sampling; 0 if that overflows.
#[unsafe(no_mangle)]
pub extern "C" fn flexdraft_sample_workspace(rows: u64, vocab: u64, calibrated: i32) -> u64 {
    operands::sample_workspace(rows, vocab, calibrated != 0)
}

/// f32 elements of the workspace of acceptance; 0 if that overflows.
#[unsafe(no_mangle)]
pub extern "C" fn flexdraft_accept_workspace(batch: u64, vocab: u64) -> u64 {
    operands::accept_workspace(batch, vocab)
}

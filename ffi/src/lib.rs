//! A C interface of the kernels: `benches/peers` calls them from Python, on PyTorch's tensors and streams, next to the
//! libraries that they are compared with.
//!
//! Without a GPU the kernels run on the SIMT emulator, on CPU tensors, so that the comparison itself can be tested
//! anywhere.
//!
//! Every function returns null or a nonzero status on failure, and [`flexdraft_error`] returns the reason. Pointers are
//! device addresses unless stated otherwise; streams are `cudaStream_t`s as integers.

mod machine;
mod operands;

use std::ffi::{CStr, CString, c_char};
use std::panic::{AssertUnwindSafe, catch_unwind};

use machine::{Machine, On};
pub use operands::{AcceptOperands, AttentionOperands, PassLayout, SampleOperands, SamplingRule, VerifyRule};

/// The kernels on some runtime, and the error of the last call of the C interface.
pub struct Bridge {
    machine: Box<dyn Machine>,
    error: CString,
}

/// A pass whose tables are on the device, as the C interface hands it out.
pub struct Pass(Box<dyn std::any::Any>);

/// The result of a call of the C interface, or the reason why it failed.
type Outcome<T> = Result<T, Box<dyn std::error::Error>>;

/// Runs a call of the C interface; a panic becomes an error, so that no panic leaves this library.
fn attempt<T>(call: impl FnOnce() -> Outcome<T>) -> Result<T, CString> {
    let text = |text: String| CString::new(text.replace('\0', " ")).unwrap_or_default();
    match catch_unwind(AssertUnwindSafe(call)) {
        Ok(outcome) => outcome.map_err(|error| text(error.to_string())),
        Err(_) => Err(text("the call panicked, which is a bug of flexdraft".into())),
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

/// Loads the kernels for CUDA device `device`, or the SIMT emulator for −1. On failure the result is null and `error`, of
/// `error_bytes` bytes of host memory, gets a C string.
///
/// # Safety
///
/// `error` is valid for writes of `error_bytes` bytes.
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
                // SAFETY: the caller's promise; `len` bytes and the terminating zero fit.
                unsafe {
                    std::ptr::copy_nonoverlapping(bytes.as_ptr().cast(), error, len);
                    error.add(len).write(0);
                }
            }
            std::ptr::null_mut()
        }
    }
}

/// Unloads the kernels that `flexdraft_open` loaded.
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

/// Returns the reason why the last call failed; the text is valid until the next call.
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

/// Uploads the tables of a forward pass to the device, for launches on `stream`. Returns null if the layout is not
/// valid.
///
/// # Safety
///
/// `bridge` is open, `layout` is valid, and the stream belongs to the device's primary context and is alive until the
/// pass is freed.
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

/// Frees a pass that `flexdraft_pass` made.
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

/// Launches joint draft-and-verify attention ([`flexdraft::kernels::attention`]).
///
/// # Safety
///
/// `bridge` is open, `pass` belongs to it and to `stream`, each operand's address is valid for the size that the
/// operands state, and nothing else uses the written memory before the launches have run.
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

/// Launches sampling, of calibrated logits if the operands have a calibrator ([`flexdraft::kernels::sampling`]).
///
/// # Safety
///
/// The conditions of [`flexdraft_attention`], without a pass.
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

/// Launches acceptance ([`flexdraft::kernels::acceptance`]).
///
/// # Safety
///
/// The conditions of [`flexdraft_attention`], without a pass.
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

/// Returns the size in bytes of a struct on the device: a row's sampling parameters (0) or statistics (1), a sequence's
/// verification parameters (2) or verdict (3); 0 for any other number.
#[unsafe(no_mangle)]
pub extern "C" fn flexdraft_bytes(what: i32) -> u64 {
    operands::bytes(what)
}

/// Writes the sampling parameters of `rows` rows, for [`SampleOperands::sampling`].
///
/// # Safety
///
/// `bridge` is open, `rule` is valid, and `out` is host memory for the parameters of `rows` rows.
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

/// Writes the verification parameters of `batch` sequences whose rows follow each other, for
/// [`AcceptOperands::sequences`].
///
/// # Safety
///
/// `bridge` is open, `rule` is valid, and `out` is host memory for the verification of `batch` sequences.
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

/// Returns the size in f32 elements of attention's workspace, for a pass with `rows` rows that see up to `longest`
/// positions; 0 on overflow.
#[unsafe(no_mangle)]
pub extern "C" fn flexdraft_attention_workspace(q_heads: u64, head_dim: u64, rows: u64, longest: u64) -> u64 {
    operands::attention_workspace(q_heads, head_dim, rows, longest)
}

/// Returns the size in f32 elements of sampling's workspace; 0 on overflow.
#[unsafe(no_mangle)]
pub extern "C" fn flexdraft_sample_workspace(rows: u64, vocab: u64, calibrated: i32) -> u64 {
    operands::sample_workspace(rows, vocab, calibrated != 0)
}

/// Returns the size in f32 elements of acceptance's workspace; 0 on overflow.
#[unsafe(no_mangle)]
pub extern "C" fn flexdraft_accept_workspace(batch: u64, vocab: u64) -> u64 {
    operands::accept_workspace(batch, vocab)
}

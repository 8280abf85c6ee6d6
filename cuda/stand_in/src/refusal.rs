//! Refused calls: a code for the caller, and a reason for whoever reads the error.

use std::collections::HashSet;
use std::ffi::{CStr, CString};
use std::sync::{Mutex, PoisonError};

use cudarc::cublaslt::sys::cublasStatus_t as Status;
use cudarc::driver::sys::CUresult;

/// A refused call of the driver or of cuBLASLt.
#[derive(Clone, Debug)]
pub struct Refusal {
    /// The code that the call returns: a `CUresult` or a `cublasStatus_t`.
    pub code: u32,
    pub reason: String,
}

pub type Outcome<T = ()> = Result<T, Refusal>;

/// Returns a refusal with a result code of the driver.
pub fn refused<T>(code: CUresult, reason: impl Into<String>) -> Outcome<T> {
    Err(Refusal { code: code as u32, reason: reason.into() })
}

/// Returns a refusal with a status code of cuBLASLt.
pub fn unsupported<T>(status: Status, reason: impl Into<String>) -> Outcome<T> {
    Err(Refusal { code: status as u32, reason: reason.into() })
}

/// The result codes that the stand-in returns, with the driver's names and descriptions.
const RESULTS: &[(CUresult, &CStr, &CStr)] = &[
    (CUresult::CUDA_SUCCESS, c"CUDA_SUCCESS", c"no error"),
    (CUresult::CUDA_ERROR_INVALID_VALUE, c"CUDA_ERROR_INVALID_VALUE", c"invalid argument"),
    (CUresult::CUDA_ERROR_OUT_OF_MEMORY, c"CUDA_ERROR_OUT_OF_MEMORY", c"out of memory"),
    (CUresult::CUDA_ERROR_NOT_INITIALIZED, c"CUDA_ERROR_NOT_INITIALIZED", c"initialization error"),
    (CUresult::CUDA_ERROR_INVALID_DEVICE, c"CUDA_ERROR_INVALID_DEVICE", c"invalid device ordinal"),
    (CUresult::CUDA_ERROR_INVALID_IMAGE, c"CUDA_ERROR_INVALID_IMAGE", c"device kernel image is invalid"),
    (CUresult::CUDA_ERROR_INVALID_CONTEXT, c"CUDA_ERROR_INVALID_CONTEXT", c"invalid device context"),
    (CUresult::CUDA_ERROR_INVALID_HANDLE, c"CUDA_ERROR_INVALID_HANDLE", c"invalid resource handle"),
    (CUresult::CUDA_ERROR_NOT_FOUND, c"CUDA_ERROR_NOT_FOUND", c"named symbol not found"),
    (CUresult::CUDA_ERROR_NOT_READY, c"CUDA_ERROR_NOT_READY", c"device not ready"),
    (
        CUresult::CUDA_ERROR_ILLEGAL_ADDRESS,
        c"CUDA_ERROR_ILLEGAL_ADDRESS",
        c"an illegal memory access was encountered",
    ),
    (
        CUresult::CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES,
        c"CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES",
        c"too many resources requested for launch",
    ),
    (CUresult::CUDA_ERROR_LAUNCH_FAILED, c"CUDA_ERROR_LAUNCH_FAILED", c"unspecified launch failure"),
    (CUresult::CUDA_ERROR_NOT_SUPPORTED, c"CUDA_ERROR_NOT_SUPPORTED", c"operation not supported"),
    (
        CUresult::CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED,
        c"CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED",
        c"operation not permitted when stream is capturing",
    ),
    (
        CUresult::CUDA_ERROR_STREAM_CAPTURE_INVALIDATED,
        c"CUDA_ERROR_STREAM_CAPTURE_INVALIDATED",
        c"operation failed due to a previous error during capture",
    ),
    (
        CUresult::CUDA_ERROR_STREAM_CAPTURE_UNMATCHED,
        c"CUDA_ERROR_STREAM_CAPTURE_UNMATCHED",
        c"capture was not ended in the same stream as it began",
    ),
    (
        CUresult::CUDA_ERROR_STREAM_CAPTURE_UNJOINED,
        c"CUDA_ERROR_STREAM_CAPTURE_UNJOINED",
        c"capturing stream has unjoined work",
    ),
    (
        CUresult::CUDA_ERROR_STREAM_CAPTURE_ISOLATION,
        c"CUDA_ERROR_STREAM_CAPTURE_ISOLATION",
        c"dependency created on uncaptured work in another stream",
    ),
    (
        CUresult::CUDA_ERROR_STREAM_CAPTURE_IMPLICIT,
        c"CUDA_ERROR_STREAM_CAPTURE_IMPLICIT",
        c"operation would make the legacy stream depend on a capturing blocking stream",
    ),
    (
        CUresult::CUDA_ERROR_CAPTURED_EVENT,
        c"CUDA_ERROR_CAPTURED_EVENT",
        c"operation not permitted on an event last recorded in a capturing stream",
    ),
    (
        CUresult::CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD,
        c"CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD",
        c"attempt to terminate a thread-local capture sequence from another thread",
    ),
    (CUresult::CUDA_ERROR_UNKNOWN, c"CUDA_ERROR_UNKNOWN", c"unknown error"),
];

/// Returns the name of a result code, if the stand-in knows the code.
pub fn name(code: u32) -> Option<&'static CStr> {
    RESULTS.iter().find(|(result, ..)| *result as u32 == code).map(|(_, name, _)| *name)
}

/// The last reason for which each result code was returned. The driver has one text for each code; this text also names
/// the call.
static REASONS: Mutex<Reasons> = Mutex::new(Reasons { last: Vec::new(), texts: None });

struct Reasons {
    last: Vec<(u32, &'static CStr)>,
    /// The texts of reasons, which are never freed, because callers keep pointers to them. Equal texts are one text.
    texts: Option<HashSet<&'static CStr>>,
}

/// Remembers why a call was refused.
pub fn remember(code: u32, text: &str) {
    let mut reasons = REASONS.lock().unwrap_or_else(PoisonError::into_inner);
    let text = CString::new(text.replace('\0', "")).unwrap_or_default();
    let texts = reasons.texts.get_or_insert_default();
    let kept = match texts.get(text.as_c_str()) {
        Some(kept) => *kept,
        None => {
            let kept: &'static CStr = Box::leak(text.into_boxed_c_str());
            texts.insert(kept);
            kept
        }
    };
    reasons.last.retain(|(known, _)| *known != code);
    reasons.last.push((code, kept));
}

/// Returns the description of a result code: the last reason for it, otherwise the driver's own text.
pub fn description(code: u32) -> Option<&'static CStr> {
    let reasons = REASONS.lock().unwrap_or_else(PoisonError::into_inner);
    let reason = reasons.last.iter().find(|(known, _)| *known == code).map(|(_, text)| *text);
    reason.or_else(|| RESULTS.iter().find(|(result, ..)| *result as u32 == code).map(|(.., text)| *text))
}

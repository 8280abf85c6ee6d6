//! The calls of a request's hooks. A hook that fails ends only its own request.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::decode::error::DecodeError;
use crate::decode::hook::{HookError, LogitsHook};
use crate::decode::proposal::{Proposal, Proposer};
use crate::logits::LogitsFault;

/// A row of logits at which a request's hook failed. The row has a fault, which the verification finds.
#[derive(Debug)]
pub(super) struct FailedRow {
    /// Index of the request's verdict among all verdicts of the step.
    pub(super) verdict: usize,
    /// The row's index among the sequence's verified rows: the number of draft tokens before it.
    pub(super) row: usize,
    /// The error of the request, if its output reaches the row.
    pub(super) error: DecodeError,
}

/// Lets `hook` edit the logits after `prefix`. If the hook fails, the logits get a fault, and its error is returned.
pub(super) fn edit(hook: &mut dyn LogitsHook, prefix: &[u32], logits: &mut [f32]) -> Option<DecodeError> {
    // The hook is not called for logits that already have a fault from the target.
    if LogitsFault::of(logits).is_some() {
        return None;
    }
    let reason = match guarded(|| hook.edit(prefix.len(), prefix, logits)) {
        Err(reason) => reason,
        Ok(()) => match LogitsFault::of(logits)? {
            LogitsFault::Forbidden => "it forbids every token".into(),
            fault @ (LogitsFault::Nan | LogitsFault::Infinite) => format!("it leaves {fault} in the logits"),
        },
    };
    logits.fill(f32::NAN);
    Some(DecodeError::Hook { hook: "logits hook", position: prefix.len(), reason })
}

/// Lets `proposer` propose the tokens after `prefix`.
pub(super) fn propose(
    proposer: &mut dyn Proposer,
    prefix: &[u32],
    proposal: &mut Proposal<'_>,
) -> Result<(), DecodeError> {
    let failed = |reason| DecodeError::Hook { hook: "proposer", position: prefix.len(), reason };
    guarded(|| proposer.propose(prefix, proposal)).map_err(failed)
}

/// Calls a hook. The error says why the hook failed: its own error, or its panic.
fn guarded<T>(call: impl FnOnce() -> Result<T, HookError>) -> Result<T, String> {
    // A panic can leave only the hook's own state and its operand half changed, and the operand is not used afterwards.
    match catch_unwind(AssertUnwindSafe(call)) {
        Ok(result) => result.map_err(|error| error.to_string()),
        Err(panic) => Err(format!("it panicked: {}", message(&*panic))),
    }
}

/// Returns the message of a panic.
fn message(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("without a message")
}

//! The calls of a request's hooks. A hook that fails ends only its own request.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::decode::error::DecodeError;
use crate::decode::hook::{HookError, LogitsHook, MaskProvider};
use crate::decode::proposal::{Proposal, Proposer};
use crate::logits::LogitsFault;
use crate::processors::{self, History};

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

/// The masks of the rows of one request's step.
pub(super) struct StepMasks {
    /// The masks `[v + 1, ⌈V / 32⌉]`.
    pub(super) rows: Vec<u32>,
    /// The first row without an allowed id, and the error of the request if its output reaches the row.
    pub(super) failed: Option<(usize, DecodeError)>,
}

/// Lets `provider` fill the masks of the rows after `history`. If the provider fails, no mask allows an id.
pub(super) fn masks(provider: &mut dyn MaskProvider, history: History<'_>, vocab_size: usize) -> StepMasks {
    let History { tokens, prompt_len, draft, .. } = history;
    let (prompt, output) = tokens.split_at(prompt_len);
    let words = vocab_size.div_ceil(32).max(1);
    let mut rows = vec![u32::MAX; (draft.len() + 1) * words];
    let failure = |row: usize, reason| {
        let position = tokens.len() + row;
        (row, DecodeError::Hook { hook: "mask provider", position, reason })
    };
    if let Err(reason) = guarded(|| provider.fill(prompt, output, draft, &mut rows)) {
        rows.fill(0);
        return StepMasks { rows, failed: Some(failure(0, reason)) };
    }
    let allows = |mask: &[u32]| (0..vocab_size as u32).any(|id| processors::allows(mask, id));
    let empty = rows.chunks_exact(words).position(|mask| !allows(mask));
    StepMasks { failed: empty.map(|row| failure(row, "it forbids every token".into())), rows }
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

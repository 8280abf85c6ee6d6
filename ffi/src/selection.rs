//! Selection of the next draft's rows by the accepted lengths, on the device.

use std::ffi::c_void;

use flexdraft::kernels::selection::{Draft, DraftGroups, FollowVerdicts, SelectDrafts};
use flexdraft::layout::GroupSet;
use flexdraft::runtime::Runtime;

use crate::buffer::FlexdraftBuffer;
use crate::pass::FlexdraftPass;
use crate::processor::{Call, FlexdraftKernels, On, launch};
use crate::status::{FlexdraftError, Outcome, Refusal, guard, read, size, versioned, write};

/// Rows of a draft: mask rows of a pass, without logits yet. The first row is the row of slot 0; a group has S rows.
pub const FLEXDRAFT_PASS_SLOTS: u32 = 0;
/// Rows of a draft: rows of logits of every group. The first row is the row of slot 1; a group has S - 1 rows.
pub const FLEXDRAFT_LOGIT_SLOTS: u32 = 1;
/// Rows of a draft: mask rows of a pass whose slots predict the next position, so that slots 0 to S - 2 draft.
pub const FLEXDRAFT_NEXT_SLOTS: u32 = 2;

/// A sequence whose next draft comes from a mask group, in device memory. `flexdraft_draft` makes it.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct FlexdraftDraft {
    /// The library's representation.
    pub words: [u64; 4],
}

const _: () = assert!(size_of::<FlexdraftDraft>() == size_of::<Draft>());
const _: () = assert!(align_of::<FlexdraftDraft>() >= align_of::<Draft>());

/// The mask groups of a sequence, for `flexdraft_draft`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct FlexdraftDraftGroups {
    /// Size of this struct in bytes.
    pub struct_size: u64,
    /// Index of the sequence's verdict.
    pub sequence: u64,
    /// The accepted lengths for which the pass has a mask group, as bits; 0 if its only group follows the verdict.
    pub groups: u64,
    /// The first row of the sequence's first mask group.
    pub first_slot: u64,
    /// Block size S: the number of slots per mask group, 1 to 64.
    pub slots: u64,
    /// The first of the sequence's S - 1 draft rows.
    pub first_draft: u64,
    /// FLEXDRAFT_PASS_SLOTS, FLEXDRAFT_LOGIT_SLOTS or FLEXDRAFT_NEXT_SLOTS.
    pub rows: u32,
    /// Unused; 0.
    pub reserved: u32,
}

/// The operands of `flexdraft_select_drafts`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct FlexdraftSelectDrafts {
    /// Size of this struct in bytes.
    pub struct_size: u64,
    /// The sequences that draft, FLEXDRAFT_DRAFT `[drafts]`. Together they have every draft row once.
    pub drafts: FlexdraftBuffer,
    /// The results of the verification, FLEXDRAFT_VERDICT `[batch]`.
    pub verdicts: FlexdraftBuffer,
    /// Written: the bonus token of each sequence that drafts, i32 `[drafts]`.
    pub bonus: FlexdraftBuffer,
    /// Written: n + a + 1, the position of candidate 0 in the next step, i32 `[drafts]`.
    pub starts: FlexdraftBuffer,
    /// Written: the source of each draft row, i32 `[rows]`; -1 if the accepted length has no mask group.
    pub sources: FlexdraftBuffer,
    /// Written: the row of each draft row's logits, i32 `[rows]`; -1 as in `sources`.
    pub draft_rows: FlexdraftBuffer,
    /// Optional. The device error word, u32 `[1]`.
    pub error_word: FlexdraftBuffer,
}

/// The operands of `flexdraft_follow_verdicts`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct FlexdraftFollowVerdicts {
    /// Size of this struct in bytes.
    pub struct_size: u64,
    /// A drafting pass with one mask group per sequence and no candidates, each laid out for the largest possible
    /// accepted length. Its tables change on the device; the next upload restores them.
    pub pass: *mut FlexdraftPass,
    /// Index of each sequence's verdict, i32 `[batch of the pass]`.
    pub sequences: FlexdraftBuffer,
    /// The results of the verification, FLEXDRAFT_VERDICT `[batch]`.
    pub verdicts: FlexdraftBuffer,
    /// Optional. The device error word, u32 `[1]`.
    pub error_word: FlexdraftBuffer,
}

versioned!(FlexdraftDraftGroups, FlexdraftSelectDrafts, FlexdraftFollowVerdicts);

impl Call for FlexdraftSelectDrafts {
    type Output = ();

    fn run<R: Runtime>(&self, on: &On<'_, R>) -> Outcome<()> {
        let operands = on.operands();
        // SAFETY: the exported function's caller guarantees that operands are valid for their sizes.
        let args = unsafe {
            SelectDrafts {
                drafts: operands.read("drafts", &self.drafts)?,
                verdicts: operands.read("verdicts", &self.verdicts)?,
                bonus: operands.write("bonus", &self.bonus)?,
                starts: operands.write("starts", &self.starts)?,
                sources: operands.write("sources", &self.sources)?,
                draft_rows: operands.write("draft_rows", &self.draft_rows)?,
                error: operands.write_optional("error_word", &self.error_word)?,
            }
        };
        Ok(on.kernels.select_drafts(on.stream, &args)?)
    }
}

impl Call for FlexdraftFollowVerdicts {
    type Output = ();

    fn run<R: Runtime>(&self, on: &On<'_, R>) -> Outcome<()> {
        let operands = on.operands();
        // SAFETY: the exported function's caller guarantees that the pass is open, that no other call uses it, and that
        // operands are valid for their sizes.
        let args = unsafe {
            let pass = self.pass.as_mut().ok_or_else(|| Refusal::null("pass", "an open pass"))?;
            FollowVerdicts {
                pass: pass.changed(on)?,
                sequences: operands.read("sequences", &self.sequences)?,
                verdicts: operands.read("verdicts", &self.verdicts)?,
                error: operands.write_optional("error_word", &self.error_word)?,
            }
        };
        Ok(on.kernels.follow_verdicts(on.stream, args)?)
    }
}

/// Returns the mask groups of a sequence in the kernels' form.
pub(crate) fn draft(groups: &FlexdraftDraftGroups) -> Outcome<Draft> {
    let make = match groups.rows {
        FLEXDRAFT_PASS_SLOTS => Draft::new,
        FLEXDRAFT_LOGIT_SLOTS => Draft::in_logits,
        FLEXDRAFT_NEXT_SLOTS => Draft::predicting_next,
        other => return Err(Refusal::value("rows", other, "0 (pass), 1 (logits) or 2 (next position)")),
    };
    Ok(make(&DraftGroups {
        sequence: size("sequence", groups.sequence)?,
        groups: GroupSet::from_bits(groups.groups),
        first_slot: size("first_slot", groups.first_slot)?,
        slots: size("slots", groups.slots)?,
        first_draft: size("first_draft", groups.first_draft)?,
    })?)
}

/// Writes to `out` a sequence that drafts, in host memory, for the caller to copy to the device.
///
/// Errors: FLEXDRAFT_VALUE for unknown rows, FLEXDRAFT_UNSUPPORTED for a number of slots, FLEXDRAFT_OVERFLOW for an
/// index beyond 2^31.
///
/// # Safety
///
/// `groups`, `out` and `error` are null or valid.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn flexdraft_draft(
    groups: *const FlexdraftDraftGroups,
    out: *mut FlexdraftDraft,
    error: *mut FlexdraftError,
) -> i32 {
    let body = || {
        // SAFETY: the caller upholds the contract of this function.
        let groups = unsafe { read(groups)? };
        let made = draft(&groups)?;
        // SAFETY: as above.
        unsafe { write("out", out, FlexdraftDraft { words: bytemuck::cast(made) }) }
    };
    // SAFETY: the caller upholds the contract of this function.
    unsafe { guard(error, body) }
}

/// Selects, for every sequence that drafts, the rows of the mask group of its accepted length, its bonus token and its
/// start, without a wait of the host.
///
/// Fault in `error_word`: 16 for a draft whose rows or verdict do not exist.
///
/// Errors: as in `flexdraft_joint_attention`.
///
/// # Safety
///
/// The conditions of `flexdraft_joint_attention`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn flexdraft_select_drafts(
    kernels: *const FlexdraftKernels,
    stream: *mut c_void,
    args: *const FlexdraftSelectDrafts,
    error: *mut FlexdraftError,
) -> i32 {
    // SAFETY: the caller upholds the contract of this function.
    unsafe { launch(kernels, stream, args, error) }
}

/// Moves the mask group of every sequence of a drafting pass to the sequence's accepted length, without a wait of the
/// host.
///
/// Fault in `error_word`: 16 for a sequence without a verdict, or with an accepted length beyond its layout.
///
/// Errors: as in `flexdraft_joint_attention`.
///
/// # Safety
///
/// The conditions of `flexdraft_joint_attention`; no other call uses the pass.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn flexdraft_follow_verdicts(
    kernels: *const FlexdraftKernels,
    stream: *mut c_void,
    args: *const FlexdraftFollowVerdicts,
    error: *mut FlexdraftError,
) -> i32 {
    // SAFETY: the caller upholds the contract of this function.
    unsafe { launch(kernels, stream, args, error) }
}

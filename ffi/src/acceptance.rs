//! Acceptance of draft tokens, and the tables of its sequences.

use std::ffi::c_void;

use flexdraft::acceptance::Rule;
use flexdraft::kernels::acceptance::{
    Accept, ChosenRows, DraftDistributions, SampledRows, Verdict, Verify, VerifySequence,
    accept_workspace_len,
};
use flexdraft::kernels::sampling::Logit;
use flexdraft::layout::GroupSet;
use flexdraft::runtime::Runtime;

use crate::buffer::{FlexdraftBuffer, Typed};
use crate::processor::{Call, FlexdraftKernels, On, launch};
use crate::sampling::OnLogits;
use crate::status::{FlexdraftError, Outcome, Refusal, flag, guard, read, size, versioned, write};

/// Acceptance rule: draws the target's token with the random numbers of its position and accepts while drafts match. It
/// is also the rule of greedy sequences.
pub const FLEXDRAFT_MATCH: u32 = 0;
/// Acceptance rule: speculative sampling (arXiv 2211.17192, 2302.01318).
pub const FLEXDRAFT_REJECTION: u32 = 1;
/// Acceptance rule: block verification (arXiv 2403.10444).
pub const FLEXDRAFT_BLOCK: u32 = 2;

/// Distribution of a draft: none, because each draft token is certain, as with the rule match or a lookup.
pub const FLEXDRAFT_DRAFT_CERTAIN: u32 = 0;
/// Distribution of a draft: rows of logits.
pub const FLEXDRAFT_DRAFT_LOGITS: u32 = 1;
/// Distribution of a draft: chosen ids of a draft with a chain.
pub const FLEXDRAFT_DRAFT_CHAINED: u32 = 2;

/// Number of entries per sequence in the committed tokens.
pub const FLEXDRAFT_MAX_COMMITTED: u64 = 64;

/// One sequence whose draft tokens are verified, in device memory. `flexdraft_verify` makes it.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct FlexdraftVerify {
    /// The library's representation.
    pub words: [u64; 6],
}

/// The verification of one sequence, for `flexdraft_verify`. Row `first_target` + i of the target has the distribution
/// of the token after draft token i, for i = 0 to `drafts`. Token `first_token` + i - 1 is draft token i.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct FlexdraftVerifySequence {
    /// Size of this struct in bytes.
    pub struct_size: u64,
    /// Seed of the request's random numbers.
    pub seed: u64,
    /// Position n of candidate 0.
    pub position: u64,
    /// Number v of draft tokens, 0 to 63.
    pub drafts: u64,
    /// The target's row of candidate 0.
    pub first_target: u64,
    /// The row of the first draft token's logits; used with FLEXDRAFT_DRAFT_LOGITS.
    pub first_draft: u64,
    /// The row of the first draft token's statistics, and of its chosen ids; used unless the draft is certain.
    pub first_draft_stats: u64,
    /// Index of the first draft token in `tokens`.
    pub first_token: u64,
    /// The accepted lengths for which the pass has a mask group: bit k stands for accepted length k.
    pub groups: u64,
    /// FLEXDRAFT_MATCH, FLEXDRAFT_REJECTION or FLEXDRAFT_BLOCK; FLEXDRAFT_MATCH at temperature 0.
    pub rule: u32,
    /// FLEXDRAFT_DRAFT_CERTAIN, FLEXDRAFT_DRAFT_LOGITS or FLEXDRAFT_DRAFT_CHAINED.
    pub draft: u32,
}

/// The result of verifying the draft tokens of one sequence, in device memory.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct FlexdraftVerdict {
    /// Number a of accepted draft tokens; -1 if the sequence's rows or tokens do not exist, and no other field is set.
    pub accepted: i32,
    /// The bonus token, at position n + a + 1.
    pub bonus: i32,
    /// Probability of the bonus token in the target's distribution, after warping.
    pub probability: f32,
    /// Rank of mask group a, which makes the next draft, among the groups of the pass; -1 if the pass has no such
    /// group.
    pub group: i32,
    /// n + a + 1: the number of positions whose K and V stay in the cache.
    pub cached_length: i64,
    /// Fault of the target's row a, as in FlexdraftRowStats; after a fault there is no bonus token.
    pub fault: i32,
    /// Unused; 0.
    pub unused: i32,
}

const _: () = {
    use std::mem::offset_of;
    assert!(size_of::<FlexdraftVerify>() == size_of::<Verify>());
    assert!(align_of::<FlexdraftVerify>() >= align_of::<Verify>());
    assert!(size_of::<FlexdraftVerdict>() == size_of::<Verdict>());
    assert!(offset_of!(FlexdraftVerdict, accepted) == offset_of!(Verdict, accepted));
    assert!(offset_of!(FlexdraftVerdict, bonus) == offset_of!(Verdict, bonus));
    assert!(offset_of!(FlexdraftVerdict, probability) == offset_of!(Verdict, probability));
    assert!(offset_of!(FlexdraftVerdict, group) == offset_of!(Verdict, group));
    assert!(offset_of!(FlexdraftVerdict, cached_length) == offset_of!(Verdict, cached_length));
    assert!(offset_of!(FlexdraftVerdict, fault) == offset_of!(Verdict, fault));
};

/// The operands of `flexdraft_accept`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct FlexdraftAccept {
    /// Size of this struct in bytes.
    pub struct_size: u64,
    /// Number of token ids, 1 to 2^20.
    pub vocab: u64,
    /// Elements from one row of logits to the next: a multiple of 8, at least `vocab`.
    pub stride: u64,
    /// FLEXDRAFT_VERIFY `[batch]`.
    pub sequences: FlexdraftBuffer,
    /// Draft tokens of all sequences, i32.
    pub tokens: FlexdraftBuffer,
    /// Logits of the target, f32, bf16 or f16 `[target_rows, stride]`, aligned to 16 bytes.
    pub target: FlexdraftBuffer,
    /// Statistics of the target's rows, FLEXDRAFT_ROW_STATS `[target_rows]`, from `flexdraft_sample`.
    pub target_stats: FlexdraftBuffer,
    /// Optional. The workspace of the `flexdraft_sample` call that wrote `target_stats`, as that call left it. With it,
    /// the kernel skips the parts of the vocabulary in which no id is kept; the result is the same.
    pub target_partials: FlexdraftBuffer,
    /// Optional. Logits of the drafts, of the target's type, `[draft_rows, stride]`, aligned to 16 bytes.
    pub draft: FlexdraftBuffer,
    /// Statistics of the draft rows, FLEXDRAFT_ROW_STATS `[draft_rows]`; absent if every draft is certain.
    pub draft_stats: FlexdraftBuffer,
    /// K: number of chosen ids per row of drafts with a chain, 1 to 32; 0 without a chain.
    pub chosen_count: u64,
    /// The chosen ids, i32 `[draft_rows, K]`; absent without a chain.
    pub chosen_ids: FlexdraftBuffer,
    /// The chained logits of the chosen ids, f32 `[draft_rows, K]`; absent without a chain.
    pub chosen_logits: FlexdraftBuffer,
    /// f32, at least `flexdraft_accept_workspace_len` elements, aligned to 8 bytes; its contents do not matter.
    pub workspace: FlexdraftBuffer,
    /// Counters, u32 `[batch]`, zeros before the first launch; every launch leaves zeros.
    pub arrived: FlexdraftBuffer,
    /// Written: FLEXDRAFT_VERDICT `[batch]`.
    pub verdicts: FlexdraftBuffer,
    /// Written: accepted tokens, bonus token, then -1; i32 `[batch, 64]`.
    pub committed: FlexdraftBuffer,
    /// Optional. The device error word, u32 `[1]`.
    pub error_word: FlexdraftBuffer,
    /// 1 if a sequence has the rule FLEXDRAFT_BLOCK, which needs a second launch.
    pub any_block: u32,
    /// Unused; 0.
    pub reserved: u32,
}

versioned!(FlexdraftVerifySequence, FlexdraftAccept);

impl FlexdraftAccept {
    fn has_chain(&self) -> bool {
        self.chosen_count > 0 || !self.chosen_ids.is_absent() || !self.chosen_logits.is_absent()
    }
}

impl OnLogits for FlexdraftAccept {
    fn run_on<R: Runtime, L: Logit + Typed>(&self, on: &On<'_, R>) -> Outcome<()> {
        let operands = on.operands();
        // SAFETY: the exported function's caller guarantees that operands are valid for their sizes.
        let args = unsafe {
            let chosen = match self.has_chain() {
                true => Some(ChosenRows {
                    count: size("chosen_count", self.chosen_count)?,
                    ids: operands.read("chosen_ids", &self.chosen_ids)?,
                    logits: operands.read("chosen_logits", &self.chosen_logits)?,
                }),
                false => None,
            };
            let logits = operands.read_optional("draft", &self.draft)?;
            let draft = match chosen.is_some() || logits.is_some() || !self.draft_stats.is_absent() {
                true => Some(DraftDistributions {
                    logits,
                    chosen,
                    stats: operands.read("draft_stats", &self.draft_stats)?,
                }),
                false => None,
            };
            Accept::<L> {
                vocab: size("vocab", self.vocab)?,
                stride: size("stride", self.stride)?,
                sequences: operands.read("sequences", &self.sequences)?,
                any_block: flag("any_block", self.any_block)?,
                tokens: operands.read("tokens", &self.tokens)?,
                target: SampledRows {
                    logits: operands.read("target", &self.target)?,
                    stats: operands.read("target_stats", &self.target_stats)?,
                },
                target_partials: operands.read_optional("target_partials", &self.target_partials)?,
                draft,
                workspace: operands.write("workspace", &self.workspace)?,
                arrived: operands.write("arrived", &self.arrived)?,
                verdicts: operands.write("verdicts", &self.verdicts)?,
                committed: operands.write("committed", &self.committed)?,
                error: operands.write_optional("error_word", &self.error_word)?,
            }
        };
        Ok(on.kernels.accept(on.stream, &args)?)
    }
}

impl Call for FlexdraftAccept {
    type Output = ();

    fn run<R: Runtime>(&self, on: &On<'_, R>) -> Outcome<()> {
        self.dispatch("target", &self.target, on)
    }
}

/// Returns the verification of a sequence in the kernels' form.
pub(crate) fn verify(sequence: &FlexdraftVerifySequence) -> Outcome<Verify> {
    let made = |first_draft| -> Outcome<Verify> {
        Ok(Verify::new(&VerifySequence {
            rule: match sequence.rule {
                FLEXDRAFT_MATCH => Rule::Match,
                FLEXDRAFT_REJECTION => Rule::Rejection,
                FLEXDRAFT_BLOCK => Rule::Block,
                other => return Err(Refusal::value("rule", other, "0 (match), 1 (rejection) or 2 (block)")),
            },
            seed: sequence.seed,
            position: size("position", sequence.position)?,
            drafts: size("drafts", sequence.drafts)?,
            first_target: size("first_target", sequence.first_target)?,
            first_draft,
            first_token: size("first_token", sequence.first_token)?,
            groups: GroupSet::from_bits(sequence.groups),
        })?)
    };
    let stats = size("first_draft_stats", sequence.first_draft_stats)?;
    match sequence.draft {
        FLEXDRAFT_DRAFT_CERTAIN => made(None),
        FLEXDRAFT_DRAFT_LOGITS => {
            Ok(made(Some(size("first_draft", sequence.first_draft)?))?.with_draft_stats_at(stats)?)
        }
        FLEXDRAFT_DRAFT_CHAINED => Ok(made(None)?.with_chained_draft_at(stats)?),
        other => Err(Refusal::value("draft", other, "0 (certain), 1 (logits) or 2 (chained)")),
    }
}

/// Writes to `out` the verification of one sequence, in host memory, for the caller to copy to the device.
///
/// Errors: FLEXDRAFT_VALUE for an unknown rule or draft, FLEXDRAFT_UNSUPPORTED for more than 63 draft tokens,
/// FLEXDRAFT_OVERFLOW for an index beyond 2^31.
///
/// # Safety
///
/// `sequence`, `out` and `error` are null or valid.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn flexdraft_verify(
    sequence: *const FlexdraftVerifySequence,
    out: *mut FlexdraftVerify,
    error: *mut FlexdraftError,
) -> i32 {
    let body = || {
        // SAFETY: the caller upholds the contract of this function.
        let sequence = unsafe { read(sequence)? };
        let made = verify(&sequence)?;
        // SAFETY: as above.
        unsafe { write("out", out, FlexdraftVerify { words: bytemuck::cast(made) }) }
    };
    // SAFETY: the caller upholds the contract of this function.
    unsafe { guard(error, body) }
}

/// Writes to `len` the number of f32 elements of workspace that `flexdraft_accept` needs.
///
/// Errors: FLEXDRAFT_OVERFLOW if the number is too large.
///
/// # Safety
///
/// `len` and `error` are null or valid.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn flexdraft_accept_workspace_len(
    batch: u64,
    vocab: u64,
    len: *mut u64,
    error: *mut FlexdraftError,
) -> i32 {
    let body = || {
        let elements = accept_workspace_len(size("batch", batch)?, size("vocab", vocab)?);
        let elements = elements.ok_or_else(|| Refusal::overflow("workspace"))?;
        // SAFETY: the caller upholds the contract of this function.
        unsafe { write("len", len, elements as u64) }
    };
    // SAFETY: the caller upholds the contract of this function.
    unsafe { guard(error, body) }
}

/// Decides for every sequence how many draft tokens are accepted, and which bonus token follows them; one launch, or
/// two with the rule block. The tokens have the target's own distribution.
///
/// Fault in `error_word`: 16 for a sequence whose rows or tokens do not exist.
///
/// Errors: as in `flexdraft_joint_attention`.
///
/// # Safety
///
/// The conditions of `flexdraft_joint_attention`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn flexdraft_accept(
    kernels: *const FlexdraftKernels,
    stream: *mut c_void,
    args: *const FlexdraftAccept,
    error: *mut FlexdraftError,
) -> i32 {
    // SAFETY: the caller upholds the contract of this function.
    unsafe { launch(kernels, stream, args, error) }
}

//! The operands of the C interface: structs of 64-bit fields, declared in the same way by `benches/peers/gpu/ours.py`.

use flexdraft::acceptance::Rule;
use flexdraft::kernels::acceptance::{Verdict, Verify, VerifySequence, accept_workspace_len};
use flexdraft::kernels::attention::{DEFAULT_SPLIT, attention_workspace_len};
use flexdraft::kernels::sampling::{RowSampling, RowStats, workspace_len};
use flexdraft::layout::{AttentionShape, GroupSet};
use flexdraft::random::{Purpose, Stream};
use flexdraft::sampling::SamplingParams;

use crate::Outcome;

/// The layout of a forward pass: sequences of the same shape over a paged cache.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct PassLayout {
    /// Page ids (u32) in host memory, `[batch, pages_each]`.
    pub page_ids: *const u32,
    /// Number of sequences in the batch.
    pub batch: u64,
    /// Number of pages of each sequence.
    pub pages_each: u64,
    /// Number of pages of the KV cache.
    pub pages: u64,
    /// Number of tokens per page.
    pub page_size: u64,
    /// Position n of each sequence's first candidate.
    pub start: u64,
    /// Number of candidate rows of each sequence.
    pub candidates: u64,
    /// Number of mask groups of each sequence, after accepted lengths 0, 1, ….
    pub groups: u64,
    /// Number of mask rows per group.
    pub slots: u64,
}

/// The operands of attention: bf16 tensors, with cache pages laid out as `[page, token, head, dim]`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct AttentionOperands {
    /// Queries, keys and values of the rows, `[rows, (q_heads + 2 kv_heads) · head_dim]`.
    pub qkv: u64,
    /// Cached keys, `[pages, page_size, kv_heads, head_dim]`.
    pub k: u64,
    /// Cached values, `[pages, page_size, kv_heads, head_dim]`.
    pub v: u64,
    /// Output of the rows, `[rows, q_heads · head_dim]`, written.
    pub out: u64,
    /// Workspace, f32, of the size that [`flexdraft_attention_workspace`](crate::flexdraft_attention_workspace)
    /// returns.
    pub workspace: u64,
    /// Number of elements of the workspace.
    pub workspace_len: u64,
    /// Number of query heads.
    pub q_heads: u64,
    /// Number of KV heads.
    pub kv_heads: u64,
    /// Number of elements of a head.
    pub head_dim: u64,
}

/// The operands of sampling, with f32 logits.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct SampleOperands {
    /// Logits, `[rows, stride]`, replaced by the calibrated logits if there is a calibrator.
    pub logits: u64,
    /// Sampling parameters from [`flexdraft_row_sampling`](crate::flexdraft_row_sampling).
    pub sampling: u64,
    /// The calibrator's hidden rows, bf16 `[rows, rank]`.
    pub hidden: u64,
    /// The calibrator's weight W2, bf16 `[vocab, rank]`.
    pub weight: u64,
    /// The calibrator's bias, f32 `[vocab]`.
    pub bias: u64,
    /// Workspace, f32, of the size that [`flexdraft_sample_workspace`](crate::flexdraft_sample_workspace) returns.
    pub workspace: u64,
    /// Number of elements of the workspace.
    pub workspace_len: u64,
    /// Statistics of the rows, written.
    pub stats: u64,
    /// Number of rows of logits.
    pub rows: u64,
    /// Size of the vocabulary: logits per row.
    pub vocab: u64,
    /// Distance from one row of logits to the next, in elements.
    pub stride: u64,
    /// Rank r of the calibrator, or 0 without one.
    pub rank: u64,
}

/// The operands of acceptance, with f32 logits. Rows of the sequences follow each other: `drafts + 1` rows of the
/// target and `drafts` rows of the draft per sequence.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct AcceptOperands {
    /// Verification parameters of the sequences, from [`flexdraft_verify`](crate::flexdraft_verify).
    pub sequences: u64,
    /// Draft tokens, i32 `[batch, drafts]`.
    pub tokens: u64,
    /// Logits of the target, f32.
    pub target: u64,
    /// Statistics of the target's rows, from sampling.
    pub target_stats: u64,
    /// Logits of the draft, f32.
    pub draft: u64,
    /// Statistics of the draft's rows, from sampling.
    pub draft_stats: u64,
    /// Workspace, f32, of the size that [`flexdraft_accept_workspace`](crate::flexdraft_accept_workspace) returns.
    pub workspace: u64,
    /// Number of elements of the workspace.
    pub workspace_len: u64,
    /// Counters of the CTAs that have finished, u32 `[batch]`, initially zero.
    pub arrived: u64,
    /// Verdicts of the sequences, written.
    pub verdicts: u64,
    /// Committed tokens, i32 `[batch, 64]`, written.
    pub committed: u64,
    /// Number of sequences in the batch.
    pub batch: u64,
    /// Number of draft tokens per sequence.
    pub drafts: u64,
    /// Size of the vocabulary: logits per row.
    pub vocab: u64,
    /// Distance from one row of logits to the next, in elements.
    pub stride: u64,
    /// Nonzero if the rule is `block`.
    pub block: u64,
}

/// The sampling parameters of rows; row r draws with the random numbers of slot r.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct SamplingRule {
    /// Seed of the request's random numbers.
    pub seed: u64,
    /// Token position that keys the random numbers.
    pub position: u64,
    /// Temperature, as in [`SamplingParams`].
    pub temperature: f64,
    /// Top-p, as in [`SamplingParams`].
    pub top_p: f64,
    /// Top-k, as in [`SamplingParams`].
    pub top_k: u64,
}

/// The parameters with which sequences are verified.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct VerifyRule {
    /// Acceptance rule: 0 match, 1 rejection, 2 block.
    pub rule: u64,
    /// Seed of the first sequence; each following sequence has the next number.
    pub seed: u64,
    /// Position n of the first candidate of each sequence.
    pub position: u64,
    /// Number of draft tokens per sequence.
    pub drafts: u64,
}

/// Returns the size of a struct on the device, for [`flexdraft_bytes`](crate::flexdraft_bytes).
pub fn bytes(what: i32) -> u64 {
    let sizes = [size_of::<RowSampling>(), size_of::<RowStats>(), size_of::<Verify>(), size_of::<Verdict>()];
    usize::try_from(what).ok().and_then(|what| sizes.get(what)).map_or(0, |&size| size as u64)
}

/// Copies structs for the device to host memory.
///
/// # Safety
///
/// `out` is valid for writes of the size of the items.
unsafe fn write<T: bytemuck::Pod>(items: &[T], out: *mut u8) {
    let bytes: &[u8] = bytemuck::cast_slice(items);
    // SAFETY: the caller's promise.
    unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), out, bytes.len()) };
}

/// Writes sampling parameters, for [`flexdraft_row_sampling`](crate::flexdraft_row_sampling).
pub unsafe fn row_sampling(rule: &SamplingRule, rows: u64, out: *mut u8) -> Outcome<()> {
    let params = SamplingParams {
        temperature: rule.temperature as f32,
        top_k: usize::try_from(rule.top_k)?,
        top_p: rule.top_p as f32,
        min_p: 0.0,
    };
    let position = usize::try_from(rule.position)?;
    let row = |row| {
        let numbers = Stream::new(rule.seed, Purpose::TargetDraw, row, position);
        RowSampling::new(&params, Some(numbers))
    };
    let rows = (0..usize::try_from(rows)?).map(row).collect::<Result<Vec<_>, _>>()?;
    // SAFETY: the caller's promise.
    unsafe { write(&rows, out) };
    Ok(())
}

/// Writes the parameters of a batch's verification to the memory at `out`, for [`flexdraft_verify`](crate::flexdraft_verify).
pub unsafe fn verify(rule: &VerifyRule, batch: u64, out: *mut u8) -> Outcome<()> {
    let (drafts, position) = (usize::try_from(rule.drafts)?, usize::try_from(rule.position)?);
    let kind = match rule.rule {
        0 => Rule::Match,
        1 => Rule::Rejection,
        2 => Rule::Block,
        other => return Err(format!("unknown rule {other}, expected 0, 1 or 2").into()),
    };
    let sequence = |i: usize| {
        Verify::new(&VerifySequence {
            rule: kind,
            seed: rule.seed.wrapping_add(i as u64),
            position,
            drafts,
            first_target: i * (drafts + 1),
            first_draft: Some(i * drafts),
            first_token: i * drafts,
            groups: GroupSet::all(drafts),
        })
    };
    let sequences = (0..usize::try_from(batch)?).map(sequence).collect::<Result<Vec<_>, _>>()?;
    // SAFETY: the caller's promise.
    unsafe { write(&sequences, out) };
    Ok(())
}

fn len(len: Option<usize>) -> u64 {
    len.and_then(|len| u64::try_from(len).ok()).unwrap_or(0)
}

/// Returns the size of attention's workspace, for
/// [`flexdraft_attention_workspace`](crate::flexdraft_attention_workspace).
pub fn attention_workspace(q_heads: u64, head_dim: u64, rows: u64, longest: u64) -> u64 {
    let shape = AttentionShape { q_heads: q_heads as usize, kv_heads: 1, head_dim: head_dim as usize };
    len(attention_workspace_len(shape, rows as usize, longest as usize, DEFAULT_SPLIT))
}

/// Returns the size of sampling's workspace, for [`flexdraft_sample_workspace`](crate::flexdraft_sample_workspace).
pub fn sample_workspace(rows: u64, vocab: u64, calibrated: bool) -> u64 {
    len(workspace_len(rows as usize, vocab as usize, calibrated).ok())
}

/// Returns the size of acceptance's workspace, for [`flexdraft_accept_workspace`](crate::flexdraft_accept_workspace).
pub fn accept_workspace(batch: u64, vocab: u64) -> u64 {
    len(accept_workspace_len(batch as usize, vocab as usize))
}

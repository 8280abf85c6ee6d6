//! What is passed: structs of 64-bit fields, as `benches/peers/ours.py` declares them.

use flexdraft::acceptance::Rule;
use flexdraft::kernels::acceptance::{Verdict, Verify, VerifySequence, accept_workspace_len};
use flexdraft::kernels::attention::{DEFAULT_SPLIT, attention_workspace_len};
use flexdraft::kernels::sampling::{RowSampling, RowStats, workspace_len};
use flexdraft::layout::{AttentionShape, GroupSet};
use flexdraft::random::{Purpose, Stream};
use flexdraft::sampling::SamplingParams;

use crate::Outcome;

/// Sequences of the same shape over a paged cache.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct PassLayout {
    /// Host memory, `[batch, pages_each]` page ids (u32).
    pub page_ids: *const u32,
    /// Sequences.
    pub batch: u64,
    /// Pages of each.
    pub pages_each: u64,
    /// Pages of the cache, and tokens of one.
    pub pages: u64,
    /// Tokens a page.
    pub page_size: u64,
    /// n of each sequence.
    pub start: u64,
    /// Candidate rows of each.
    pub candidates: u64,
    /// Groups of each, after accepted lengths 0, 1, ….
    pub groups: u64,
    /// Mask rows a group.
    pub slots: u64,
}

/// Operands of attention: bf16 tensors, pages as `[page, token, head, dim]`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct AttentionOperands {
    /// `[rows, (q_heads + 2 kv_heads) · head_dim]`.
    pub qkv: u64,
    /// `[pages, page_size, kv_heads, head_dim]`.
    pub k: u64,
    /// As k.
    pub v: u64,
    /// `[rows, q_heads · head_dim]`, written.
    pub out: u64,
    /// f32, [`flexdraft_attention_workspace`](crate::flexdraft_attention_workspace).
    pub workspace: u64,
    /// Elements of it.
    pub workspace_len: u64,
    /// Query heads.
    pub q_heads: u64,
    /// KV heads.
    pub kv_heads: u64,
    /// Elements of a head.
    pub head_dim: u64,
}

/// Operands of sampling: f32 logits.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct SampleOperands {
    /// `[rows, stride]`; calibrated logits take their place.
    pub logits: u64,
    /// Of [`flexdraft_row_sampling`](crate::flexdraft_row_sampling).
    pub sampling: u64,
    /// bf16 `[rows, rank]`.
    pub hidden: u64,
    /// bf16 `[vocab, rank]`.
    pub weight: u64,
    /// f32 `[vocab]`.
    pub bias: u64,
    /// f32.
    pub workspace: u64,
    /// Elements of it.
    pub workspace_len: u64,
    /// Written.
    pub stats: u64,
    /// Rows.
    pub rows: u64,
    /// Ids.
    pub vocab: u64,
    /// Elements from row to row.
    pub stride: u64,
    /// r, or 0 without a calibrator.
    pub rank: u64,
}

/// Operands of acceptance: rows of the sequences follow each other, `drafts + 1` of the target and `drafts` of the
/// draft for each.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct AcceptOperands {
    /// Of [`flexdraft_verify`](crate::flexdraft_verify).
    pub sequences: u64,
    /// i32 `[batch, drafts]`.
    pub tokens: u64,
    /// f32 logits of the target, and their statistics.
    pub target: u64,
    /// As sampling left them.
    pub target_stats: u64,
    /// f32 logits of the draft, and their statistics.
    pub draft: u64,
    /// As sampling left them.
    pub draft_stats: u64,
    /// f32.
    pub workspace: u64,
    /// Elements of it.
    pub workspace_len: u64,
    /// u32 `[batch]`, zeros.
    pub arrived: u64,
    /// Written.
    pub verdicts: u64,
    /// i32 `[batch, 64]`, written.
    pub committed: u64,
    /// Sequences.
    pub batch: u64,
    /// Draft tokens of each.
    pub drafts: u64,
    /// Ids.
    pub vocab: u64,
    /// Elements from row to row.
    pub stride: u64,
    /// Whether the rule is `block`.
    pub block: u64,
}

/// How rows are warped and drawn from: row r with the numbers of slot r.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct SamplingRule {
    /// The request's seed.
    pub seed: u64,
    /// The position that numbers are counted by.
    pub position: u64,
    /// As [`SamplingParams`].
    pub temperature: f64,
    /// As [`SamplingParams`].
    pub top_p: f64,
    /// As [`SamplingParams`].
    pub top_k: u64,
}

/// How sequences are verified.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct VerifyRule {
    /// 0 match, 1 rejection, 2 block.
    pub rule: u64,
    /// The seed of the first sequence; those after it count on.
    pub seed: u64,
    /// n.
    pub position: u64,
    /// Draft tokens.
    pub drafts: u64,
}

/// As [`flexdraft_bytes`](crate::flexdraft_bytes).
pub fn bytes(what: i32) -> u64 {
    let sizes = [size_of::<RowSampling>(), size_of::<RowStats>(), size_of::<Verify>(), size_of::<Verdict>()];
    usize::try_from(what).ok().and_then(|what| sizes.get(what)).map_or(0, |&size| size as u64)
}

/// Copies items to host memory.
///
/// # Safety
///
/// `out` may be written for their size.
unsafe fn write<T: bytemuck::Pod>(items: &[T], out: *mut u8) {
    let bytes: &[u8] = bytemuck::cast_slice(items);
    // SAFETY: the caller's promise.
    unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), out, bytes.len()) };
}

/// As [`flexdraft_row_sampling`](crate::flexdraft_row_sampling).
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

/// As [`flexdraft_verify`](crate::flexdraft_verify).
pub unsafe fn verify(rule: &VerifyRule, batch: u64, out: *mut u8) -> Outcome<()> {
    let (drafts, position) = (usize::try_from(rule.drafts)?, usize::try_from(rule.position)?);
    let kind = match rule.rule {
        0 => Rule::Match,
        1 => Rule::Rejection,
        2 => Rule::Block,
        other => return Err(format!("there is no rule {other}").into()),
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

/// As [`flexdraft_attention_workspace`](crate::flexdraft_attention_workspace).
pub fn attention_workspace(q_heads: u64, head_dim: u64, rows: u64, longest: u64) -> u64 {
    let shape = AttentionShape { q_heads: q_heads as usize, kv_heads: 1, head_dim: head_dim as usize };
    len(attention_workspace_len(shape, rows as usize, longest as usize, DEFAULT_SPLIT))
}

/// As [`flexdraft_sample_workspace`](crate::flexdraft_sample_workspace).
pub fn sample_workspace(rows: u64, vocab: u64, calibrated: bool) -> u64 {
    len(workspace_len(rows as usize, vocab as usize, calibrated).ok())
}

/// As [`flexdraft_accept_workspace`](crate::flexdraft_accept_workspace).
pub fn accept_workspace(batch: u64, vocab: u64) -> u64 {
    len(accept_workspace_len(batch as usize, vocab as usize))
}

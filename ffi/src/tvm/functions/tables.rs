//! Functions that write rows of the kernels' tables on the host, and the limits of the kernels.

use super::super::abi::{Any, BOOL};
use super::super::arguments::Elements::HostStruct;
use super::super::arguments::{Arguments, Found};
use super::super::launch::{ANY, NO_RESULT};
use crate::acceptance::{FlexdraftVerifySequence, verify as verify_row};
use crate::buffer::{FLEXDRAFT_DRAFT, FLEXDRAFT_ROW_SAMPLING, FLEXDRAFT_VERIFY};
use crate::sampling::{FlexdraftSamplingParams, row_sampling as sampling_row};
use crate::selection::{FlexdraftDraftGroups, draft as draft_row};
use crate::status::{FLEXDRAFT_LENGTH, Outcome, Refusal, size};

/// Writes a struct to a row of a table on the host.
fn write_row<T: bytemuck::Pod>(table: &Found<'_>, row: u64, value: T) -> Outcome<Any> {
    if row >= table.buffer.len || table.buffer.data.is_null() {
        let rows = table.buffer.len;
        return Err(Refusal {
            status: FLEXDRAFT_LENGTH,
            text: format!("`row` is {row}, expected below {rows}"),
        });
    }
    let to = table.buffer.data.cast::<T>().wrapping_add(size("row", row)?);
    // SAFETY: the table is on the host, has elements of the size of `T`, and more than `row` elements.
    unsafe { to.write_unaligned(value) };
    Ok(NO_RESULT)
}

/// `row_sampling(out [rows, 40], row, temperature, top_k, top_p, min_p, purpose, seed, slot, position, sequence or
/// −1)`, with `out` on the host; a sequence makes the position relative to its start.
pub(super) fn row_sampling(args: &mut Arguments<'_>) -> Outcome<Any> {
    let out = args.tensor("out", HostStruct(FLEXDRAFT_ROW_SAMPLING, 40), &[ANY])?;
    let row = args.size("row")?;
    let temperature = args.float("temperature")?;
    let top_k = args.size("top_k")?;
    let (top_p, min_p) = (args.float("top_p")?, args.float("min_p")?);
    let purpose = args.choice("purpose")?;
    let seed = args.int("seed")?.cast_unsigned();
    let (slot, position) = (args.size("slot")?, args.size("position")?);
    let sequence = args.int("sequence")?;
    args.end()?;
    let relative = u32::from(sequence >= 0);
    let sequence = u32::try_from(sequence.max(0)).map_err(|_| Refusal::overflow("sequence"))?;
    let params = FlexdraftSamplingParams {
        struct_size: 0,
        temperature,
        top_p,
        min_p,
        purpose,
        top_k,
        seed,
        slot,
        position,
        relative,
        sequence,
    };
    write_row(&out, row, sampling_row(&params)?)
}

/// `verify(out [rows, 48], row, rule, draft, seed, position, drafts, first_target, first_draft, first_draft_stats,
/// first_token, groups)`, with `out` on the host.
pub(super) fn verify(args: &mut Arguments<'_>) -> Outcome<Any> {
    let out = args.tensor("out", HostStruct(FLEXDRAFT_VERIFY, 48), &[ANY])?;
    let row = args.size("row")?;
    let (rule, draft) = (args.choice("rule")?, args.choice("draft")?);
    let seed = args.int("seed")?.cast_unsigned();
    let (position, drafts) = (args.size("position")?, args.size("drafts")?);
    let first_target = args.size("first_target")?;
    let (first_draft, first_draft_stats) = (args.size("first_draft")?, args.size("first_draft_stats")?);
    let first_token = args.size("first_token")?;
    let groups = args.int("groups")?.cast_unsigned();
    args.end()?;
    let sequence = FlexdraftVerifySequence {
        struct_size: 0,
        seed,
        position,
        drafts,
        first_target,
        first_draft,
        first_draft_stats,
        first_token,
        groups,
        rule,
        draft,
    };
    write_row(&out, row, verify_row(&sequence)?)
}

/// `draft(out [rows, 32], row, sequence, groups, first_slot, slots, first_draft, rows)`, with `out` on the host.
pub(super) fn draft(args: &mut Arguments<'_>) -> Outcome<Any> {
    let out = args.tensor("out", HostStruct(FLEXDRAFT_DRAFT, 32), &[ANY])?;
    let (row, sequence) = (args.size("row")?, args.size("sequence")?);
    let groups = args.int("groups")?.cast_unsigned();
    let (first_slot, slots) = (args.size("first_slot")?, args.size("slots")?);
    let (first_draft, rows) = (args.size("first_draft")?, args.choice("rows")?);
    args.end()?;
    let groups = FlexdraftDraftGroups {
        struct_size: 0,
        sequence,
        groups,
        first_slot,
        slots,
        first_draft,
        rows,
        reserved: 0,
    };
    write_row(&out, row, draft_row(&groups)?)
}

/// `supports(q_heads, kv_heads, head_dim, vocab, hidden, intermediate, rank or 0, rank of a chain of the kind hidden or 0)
/// -> True`, or an error that names the limit. The last argument may be missing.
pub(super) fn supports(args: &mut Arguments<'_>) -> Outcome<Any> {
    let mut number = |name: &str| -> Outcome<usize> { size(name, args.size(name)?) };
    let (q_heads, kv_heads, head_dim) = (number("q_heads")?, number("kv_heads")?, number("head_dim")?);
    let attention = flexdraft::layout::AttentionShape { q_heads, kv_heads, head_dim };
    let (vocab, hidden) = (number("vocab")?, number("hidden")?);
    let (intermediate, rank) = (number("intermediate")?, number("rank")?);
    let chain_rank =
        if args.has_more() { size("hidden_chain_rank", args.size("hidden_chain_rank")?)? } else { 0 };
    args.end()?;
    let some = |rank: usize| Some(rank).filter(|&rank| rank > 0);
    let shape = flexdraft::kernels::ModelShape {
        attention,
        vocab,
        hidden,
        intermediate,
        rank: some(rank),
        hidden_chain_rank: some(chain_rank),
    };
    flexdraft::kernels::supports(&shape)?;
    Ok(Any { type_index: BOOL, padding: 0, bits: 1 })
}

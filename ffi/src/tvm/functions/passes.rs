//! Functions on the rows of a pass: its tables, rotary embedding, and attention.

use super::super::abi::{Any, CPU, CUDA, Device};
use super::super::arguments::Elements::{F32, Half, HostI64, I32, Word};
use super::super::arguments::{Arguments, Found};
use super::super::launch::{ANY, NO_RESULT, VERDICT, integer, kernels, launch, run, stream};
use super::super::pass::{self, Contents};
use crate::attention::{FlexdraftAttentionSize, FlexdraftCache, FlexdraftJointAttention};
use crate::buffer::FlexdraftBuffer;
use crate::pass::{FlexdraftSequence, NewPass, Upload, paging};
use crate::processor::FlexdraftHeads;
use crate::rope::{FLEXDRAFT_CANDIDATES, FLEXDRAFT_MASKS, FlexdraftNormRopeAppend, FlexdraftRopeTable};
use crate::selection::FlexdraftFollowVerdicts;
use crate::status::{FLEXDRAFT_LENGTH, Outcome, Refusal, size};

/// `pass_tables(device_type, device_id, max_batch, max_pages) -> object`; a device type of DLPack: 1 for the host (the
/// emulator), 2 for CUDA.
pub(super) fn pass_tables(args: &mut Arguments<'_>) -> Outcome<Any> {
    let kind = args.int("device_type")?;
    let id = args.int("device_id")?;
    let max_batch = size("max_batch", args.size("max_batch")?)?;
    let max_pages = size("max_pages", args.size("max_pages")?)?;
    args.end()?;
    let device = match (i32::try_from(kind), i32::try_from(id)) {
        (Ok(CPU), Ok(0)) => Device { kind: CPU, id: 0 },
        (Ok(CUDA), Ok(id)) if id >= 0 => Device { kind: CUDA, id },
        _ => {
            return Err(Refusal::value(
                "device_type",
                format!("{kind} with the id {id}"),
                "1 (host) with 0, or 2 (CUDA)",
            ));
        }
    };
    let kernels = kernels(device)?;
    let pass = kernels.run(stream(device), &NewPass { max_batch, max_pages })?;
    pass::new(Contents { pass, kernels, device })
}

/// `pass_upload(pass, page_ids [batch, max_pages], sequences [batch, 6] of page count, start, candidates, first group,
/// group bits and slots, pages, page_size)`; both tables are i64 on the host.
pub(super) fn pass_upload(args: &mut Arguments<'_>) -> Outcome<Any> {
    // SAFETY: the caller of the function keeps the object alive during the call, and no other call uses it.
    let pass = unsafe { args.pass("pass")? };
    let ids = args.tensor("page_ids", HostI64, &[ANY, ANY])?;
    let table = args.tensor("sequences", HostI64, &[ids.shape[0], 6])?;
    let (pages, page_size) = (args.size("pages")?, args.size("page_size")?);
    args.end()?;
    // SAFETY: the tensors are on the host, contiguous, and have these shapes.
    let (all_ids, table) = unsafe { (ids.host::<i64>("page_ids")?, table.host::<i64>("sequences")?) };
    let narrow = |&id: &i64| u32::try_from(id).map_err(|_| Refusal::value("page_ids", id, "ids of 32 bits"));
    let all_ids = all_ids.iter().map(narrow).collect::<Outcome<Vec<u32>>>()?;
    let each = size("max_pages", ids.dim(1))?;
    let sequence = |(index, row): (usize, &[i64])| -> Outcome<FlexdraftSequence> {
        // The fifth column has bits; the other columns are numbers from 0 on.
        let column = |column: usize| -> Outcome<u64> {
            u64::try_from(row[column]).map_err(|_| Refusal::value("sequences", row[column], "0 or more"))
        };
        let count = column(0)?;
        if count > each as u64 {
            let text = format!("`sequences` has {count} pages in row {index}, expected at most {each}");
            return Err(Refusal { status: FLEXDRAFT_LENGTH, text });
        }
        Ok(FlexdraftSequence {
            struct_size: 0,
            pages: all_ids[index * each..].as_ptr(),
            page_count: count,
            start: column(1)?,
            candidates: column(2)?,
            first_group: column(3)?,
            groups: row[4].cast_unsigned(),
            slots: column(5)?,
        })
    };
    let sequences = table.chunks_exact(6).enumerate().map(sequence).collect::<Outcome<Vec<_>>>()?;
    // SAFETY: the page ids of every sequence are in `all_ids`.
    let rows = |(index, sequence): (usize, &FlexdraftSequence)| unsafe { sequence.rows(index as u64) };
    let sequences = sequences.iter().enumerate().map(rows).collect::<Outcome<Vec<_>>>()?;
    let rows = flexdraft::layout::Pass { sequences };
    let upload = Upload { pass: &raw mut pass.pass, rows: &rows, paging: paging(pages, page_size)? };
    pass.kernels.run(stream(pass.device), &upload)?;
    Ok(NO_RESULT)
}

/// Returns the number of heads and the cache of k and v tensors `[pages, page_size, kv_heads, head_dim]` with any
/// strides.
fn cache(args: &mut Arguments<'_>, q_heads: u64) -> Outcome<(FlexdraftHeads, FlexdraftCache)> {
    let k = args.strided("k_cache", Half, &[ANY; 4])?;
    let v = args.strided("v_cache", Half, k.shape)?;
    let heads = FlexdraftHeads { q_heads, kv_heads: k.dim(2), head_dim: k.dim(3) };
    let strides = |name: &str, tensor: &Found<'_>| -> Outcome<([u64; 3], u64)> {
        let [_, tokens, heads, dim] = [0, 1, 2, 3].map(|index| tensor.dim(index));
        let dense = [tokens.saturating_mul(heads).saturating_mul(dim), heads.saturating_mul(dim), dim];
        let Some(strides) = tensor.strides else { return Ok((dense, tensor.buffer.len)) };
        if dim > 1 && strides[3] != 1 {
            return Err(Refusal::value(
                name,
                format!("strided by {} within a head", strides[3]),
                "adjacent elements",
            ));
        }
        let mut found = [0; 3];
        let mut last = dim.saturating_sub(1);
        for (index, to) in found.iter_mut().enumerate() {
            let stride = strides[index];
            *to = u64::try_from(stride).map_err(|_| Refusal::value(name, stride, "strides from 0 on"))?;
            last = last.saturating_add(to.saturating_mul(tensor.dim(index).saturating_sub(1)));
        }
        Ok((found, if tensor.buffer.len == 0 { 0 } else { last.saturating_add(1) }))
    };
    let ([k_page_stride, k_token_stride, k_head_stride], k_len) = strides("k_cache", &k)?;
    let ([v_page_stride, v_token_stride, v_head_stride], v_len) = strides("v_cache", &v)?;
    let cache = FlexdraftCache {
        k: FlexdraftBuffer { len: k_len, ..k.buffer },
        v: FlexdraftBuffer { len: v_len, ..v.buffer },
        k_page_stride,
        k_token_stride,
        k_head_stride,
        v_page_stride,
        v_token_stride,
        v_head_stride,
    };
    Ok((heads, cache))
}

/// `joint_attention(pass, qkv [rows, (q_heads + 2 kv_heads) head_dim], k_cache [pages, page_size, kv_heads, head_dim],
/// v_cache, out [rows, q_heads head_dim], lse [rows, q_heads] or None, workspace, q_heads, split or 0, with_masks,
/// error [1] or None)`. With qkv None, four more arguments follow: q [candidates, q_heads head_dim] and mask_q, mask_k
/// and mask_v of the mask rows, each None if there are no such rows; rows may be parts of longer rows. Three more may
/// follow: sinks [q_heads] or None, window or 0, and soft_cap or 0.
pub(super) fn joint_attention(args: &mut Arguments<'_>) -> Outcome<Any> {
    // SAFETY: the caller of the function keeps the object alive during the call, and no other call uses it.
    let pass = &raw const unsafe { args.pass("pass")? }.pass;
    let qkv = args.optional_tensor("qkv", Half, &[ANY, ANY])?;
    let rows = qkv.map_or(ANY, |qkv| qkv.shape[0]);
    let (mut heads, cache) = cache(args, 0)?;
    let out = args.tensor("out", Half, &[rows, ANY])?;
    let lse = args.optional("lse", F32, &[rows, ANY])?;
    let workspace = args.tensor("workspace", F32, &[ANY])?.buffer;
    heads.q_heads = args.size("q_heads")?;
    let (split, with_masks) = (args.size("split")?, args.flag("with_masks")?);
    let error_word = args.optional("error", Word, &[1])?;
    let (columns, kv_columns) = columns(heads);
    let q = args.optional_rows("q", columns)?;
    let mask_q = args.optional_rows("mask_q", columns)?;
    let mask_k = args.optional_rows("mask_k", kv_columns)?;
    let mask_v = args.optional_rows("mask_v", kv_columns)?;
    let mut sinks = FlexdraftBuffer::ABSENT;
    let (mut window, mut soft_cap) = (0, 0.0);
    if args.has_more() {
        sinks = args.optional("sinks", F32, &[ANY])?;
        window = args.size("window")?;
        soft_cap = args.float("soft_cap")?;
    }
    launch(
        args,
        &FlexdraftJointAttention {
            struct_size: 0,
            pass,
            heads,
            qkv: qkv.map_or(FlexdraftBuffer::ABSENT, |qkv| qkv.buffer),
            cache,
            out: out.buffer,
            lse,
            workspace,
            error_word,
            split,
            with_masks,
            reserved: 0,
            q,
            mask_q,
            mask_k,
            mask_v,
            sinks,
            window,
            soft_cap,
            unused: 0,
        },
    )
}

/// Returns the numbers of elements in a row of q heads and in a row of k or v heads.
fn columns(heads: FlexdraftHeads) -> (u64, u64) {
    (heads.q_heads.saturating_mul(heads.head_dim), heads.kv_heads.saturating_mul(heads.head_dim))
}

/// `attention_workspace_len(pass, rows, q_heads, kv_heads, head_dim, split or 0, with_masks) -> int`.
pub(super) fn attention_workspace_len(args: &mut Arguments<'_>) -> Outcome<Any> {
    // SAFETY: as in `joint_attention`.
    let pass = &raw const unsafe { args.pass("pass")? }.pass;
    let rows = args.size("rows")?;
    let q_heads = args.size("q_heads")?;
    let kv_heads = args.size("kv_heads")?;
    let heads = FlexdraftHeads { q_heads, kv_heads, head_dim: args.size("head_dim")? };
    let (split, with_masks) = (args.size("split")?, args.flag("with_masks")?);
    let asked = FlexdraftAttentionSize {
        struct_size: 0,
        pass,
        heads,
        rows,
        longest: 0,
        split,
        with_masks,
        reserved: 0,
    };
    run(args, &asked).map(integer)
}

/// `rope_table(pass, inv_freq [head_dim / 2], cos_sin [rows, head_dim / 2, 2], scale)`.
pub(super) fn rope_table(args: &mut Arguments<'_>) -> Outcome<Any> {
    // SAFETY: as in `joint_attention`.
    let pass = &raw const unsafe { args.pass("pass")? }.pass;
    let inv_freq = args.tensor("inv_freq", F32, &[ANY])?;
    let cos_sin = args.tensor("cos_sin", F32, &[ANY, inv_freq.shape[0], 2])?.buffer;
    let scale = args.float("scale")?;
    let inv_freq = inv_freq.buffer;
    launch(args, &FlexdraftRopeTable { struct_size: 0, pass, inv_freq, cos_sin, scale, reserved: 0 })
}

/// `norm_rope_append(pass, qkv [rows, (q_heads + 2 kv_heads) head_dim], cos_sin [rows, head_dim / 2, 2], q_norm
/// [head_dim] or None, k_norm [head_dim] or None, k_cache [pages, page_size, kv_heads, head_dim], v_cache, q_heads,
/// eps, masks, error [1] or None)`. With qkv None, three more arguments follow: q [rows, q_heads head_dim], k and v [rows,
/// kv_heads head_dim] of the candidate rows or of the mask rows; rows may be parts of longer rows.
pub(super) fn norm_rope_append(args: &mut Arguments<'_>) -> Outcome<Any> {
    // SAFETY: as in `joint_attention`.
    let pass = &raw const unsafe { args.pass("pass")? }.pass;
    let qkv = args.optional_tensor("qkv", Half, &[ANY, ANY])?;
    let rows = qkv.map_or(ANY, |qkv| qkv.shape[0]);
    let cos_sin = args.tensor("cos_sin", F32, &[rows, ANY, 2])?.buffer;
    let q_norm = args.optional("q_norm", F32, &[ANY])?;
    let k_norm = args.optional("k_norm", F32, &[ANY])?;
    let (mut heads, cache) = cache(args, 0)?;
    heads.q_heads = args.size("q_heads")?;
    let eps = args.float("eps")?;
    let kind = if args.flag("masks")? == 1 { FLEXDRAFT_MASKS } else { FLEXDRAFT_CANDIDATES };
    let error_word = args.optional("error", Word, &[1])?;
    let (columns, kv_columns) = columns(heads);
    let q = args.optional_rows("q", columns)?;
    let k = args.optional_rows("k", kv_columns)?;
    let v = args.optional_rows("v", kv_columns)?;
    let qkv = qkv.map_or(FlexdraftBuffer::ABSENT, |qkv| qkv.buffer);
    launch(
        args,
        &FlexdraftNormRopeAppend {
            struct_size: 0,
            pass,
            heads,
            qkv,
            cos_sin,
            q_norm,
            k_norm,
            cache,
            error_word,
            eps,
            kind,
            q,
            k,
            v,
        },
    )
}

/// `follow_verdicts(pass, sequences [batch], verdicts [verdicts, 32], error [1] or None)`.
pub(super) fn follow_verdicts(args: &mut Arguments<'_>) -> Outcome<Any> {
    // SAFETY: as in `joint_attention`.
    let pass = &raw mut unsafe { args.pass("pass")? }.pass;
    let sequences = args.tensor("sequences", I32, &[ANY])?.buffer;
    let verdicts = args.tensor("verdicts", VERDICT, &[ANY])?.buffer;
    let error_word = args.optional("error", Word, &[1])?;
    launch(args, &FlexdraftFollowVerdicts { struct_size: 0, pass, sequences, verdicts, error_word })
}

//! Functions from logits to tokens: sampling, acceptance, chains, and the selection of drafts.

use super::super::abi::Any;
use super::super::arguments::Arguments;
use super::super::arguments::Elements::{F32, Half, I32, Logits, Word};
use super::super::launch::{
    ANY, DRAFT, LOGIT_EDIT, ROW_EDITS, ROW_SAMPLING, ROW_STATS, VERDICT, VERIFY, integer, launch,
};
use crate::acceptance::FlexdraftAccept;
use crate::buffer::FlexdraftBuffer;
use crate::chain::{FlexdraftChainChoose, FlexdraftChainScore, FlexdraftChainWalk};
use crate::sampling::{FlexdraftSample, Partials};
use crate::selection::FlexdraftSelectDrafts;
use crate::status::{Outcome, Refusal, size};

/// `sample(logits [logit_rows, stride], vocab, logit_index [rows] or None, sampling [rows, 40], starts [sequences] or
/// None, draft [rows] or None, hidden [rows, rank] or None, weight [vocab, rank] or None, bias [vocab] or None,
/// workspace, stats [rows, 48], update, error [1] or None)`. Four more arguments may follow: row_edits [rows, 24] or None,
/// edit_offsets [any] or None, edits [any, 16] or None, masks [any] or None, which `edit_rows` makes.
fn sample_operands(args: &mut Arguments<'_>) -> Outcome<FlexdraftSample> {
    let logits = args.tensor("logits", Logits, &[ANY, ANY])?;
    let vocab = args.size("vocab")?;
    let logit_index = args.optional("logit_index", I32, &[ANY])?;
    let sampling = args.tensor("sampling", ROW_SAMPLING, &[ANY])?;
    let rows = sampling.shape[0];
    let starts = args.optional("starts", I32, &[ANY])?;
    let draft = args.optional("draft", I32, &[rows])?;
    let hidden = args.optional_tensor("hidden", Half, &[rows, ANY])?;
    let rank = hidden.map_or(0, |hidden| hidden.shape[1]);
    let columns = i64::try_from(vocab).unwrap_or(i64::MAX);
    let weight = args.optional("weight", Half, &[columns, rank])?;
    let bias = args.optional("bias", F32, &[columns])?;
    let workspace = args.tensor("workspace", F32, &[ANY])?.buffer;
    let stats = args.tensor("stats", ROW_STATS, &[rows])?.buffer;
    let update = args.flag("update")?;
    let error_word = args.optional("error", Word, &[1])?;
    let [mut row_edits, mut edit_offsets, mut edits, mut masks] = [FlexdraftBuffer::ABSENT; 4];
    if args.has_more() {
        row_edits = args.optional("row_edits", ROW_EDITS, &[rows])?;
        edit_offsets = args.optional("edit_offsets", I32, &[ANY])?;
        edits = args.optional("edits", LOGIT_EDIT, &[ANY])?;
        masks = args.optional("masks", Word, &[ANY])?;
    }
    Ok(FlexdraftSample {
        struct_size: 0,
        vocab,
        stride: logits.dim(1),
        logits: logits.buffer,
        logit_index,
        sampling: sampling.buffer,
        starts,
        draft,
        rank: rank.cast_unsigned(),
        hidden: hidden.map_or(FlexdraftBuffer::ABSENT, |hidden| hidden.buffer),
        weight,
        bias,
        workspace,
        stats,
        error_word,
        update,
        reserved: 0,
        row_edits,
        edit_offsets,
        edits,
        masks,
    })
}

pub(super) fn sample(args: &mut Arguments<'_>) -> Outcome<Any> {
    let operands = sample_operands(args)?;
    launch(args, &operands)
}

/// The arguments of `sample`.
pub(super) fn sample_partials(args: &mut Arguments<'_>) -> Outcome<Any> {
    let operands = Partials(sample_operands(args)?);
    launch(args, &operands)
}

/// `sample_workspace_len(rows, vocab, calibrated) -> int`.
pub(super) fn sample_workspace_len(args: &mut Arguments<'_>) -> Outcome<Any> {
    let (rows, vocab) = (size("rows", args.size("rows")?)?, size("vocab", args.size("vocab")?)?);
    let calibrated = args.flag("calibrated")? == 1;
    args.end()?;
    Ok(integer(flexdraft::kernels::sampling::workspace_len(rows, vocab, calibrated)? as u64))
}

/// `accept(vocab, sequences [batch, 48], tokens [tokens], target [target_rows, stride], target_stats [target_rows,
/// 48], target_partials or None, draft [draft_rows, stride] or None, draft_stats [draft_rows, 48] or None, chosen_ids
/// [draft_rows, K] or None, chosen_logits [draft_rows, K] or None, workspace, arrived [batch], verdicts [batch, 32],
/// committed [batch, 64], any_block, error [1] or None)`.
pub(super) fn accept(args: &mut Arguments<'_>) -> Outcome<Any> {
    let vocab = args.size("vocab")?;
    let sequences = args.tensor("sequences", VERIFY, &[ANY])?;
    let batch = sequences.shape[0];
    let tokens = args.tensor("tokens", I32, &[ANY])?.buffer;
    let target = args.tensor("target", Logits, &[ANY, ANY])?;
    let target_stats = args.tensor("target_stats", ROW_STATS, &target.shape[..1])?.buffer;
    let target_partials = args.optional("target_partials", F32, &[ANY])?;
    let draft = args.optional("draft", Logits, &[ANY, target.shape[1]])?;
    let draft_stats = args.optional("draft_stats", ROW_STATS, &[ANY])?;
    let rows = draft_stats.len.cast_signed();
    let chosen_ids = args.optional_tensor("chosen_ids", I32, &[rows, ANY])?;
    let count = chosen_ids.map_or(0, |ids| ids.shape[1]);
    let chosen_logits = args.optional("chosen_logits", F32, &[rows, count])?;
    let workspace = args.tensor("workspace", F32, &[ANY])?.buffer;
    let arrived = args.tensor("arrived", Word, &[batch])?.buffer;
    let verdicts = args.tensor("verdicts", VERDICT, &[batch])?.buffer;
    let committed = args.tensor("committed", I32, &[batch, 64])?.buffer;
    let any_block = args.flag("any_block")?;
    let error_word = args.optional("error", Word, &[1])?;
    launch(
        args,
        &FlexdraftAccept {
            struct_size: 0,
            vocab,
            stride: target.dim(1),
            sequences: sequences.buffer,
            tokens,
            target: target.buffer,
            target_stats,
            target_partials,
            draft,
            draft_stats,
            chosen_count: count.cast_unsigned(),
            chosen_ids: chosen_ids.map_or(FlexdraftBuffer::ABSENT, |ids| ids.buffer),
            chosen_logits,
            workspace,
            arrived,
            verdicts,
            committed,
            error_word,
            any_block,
            reserved: 0,
        },
    )
}

/// `accept_workspace_len(batch, vocab) -> int`.
pub(super) fn accept_workspace_len(args: &mut Arguments<'_>) -> Outcome<Any> {
    let (batch, vocab) = (size("batch", args.size("batch")?)?, size("vocab", args.size("vocab")?)?);
    args.end()?;
    let len = flexdraft::kernels::acceptance::accept_workspace_len(batch, vocab);
    Ok(integer(len.ok_or_else(|| Refusal::overflow("workspace"))? as u64))
}

/// `chain_choose(logits [logit_rows, stride], vocab, logit_index [rows] or None, partials, calibrated, ids [rows, K],
/// chosen [rows, K], error [1] or None)`.
pub(super) fn chain_choose(args: &mut Arguments<'_>) -> Outcome<Any> {
    let logits = args.tensor("logits", Logits, &[ANY, ANY])?;
    let vocab = args.size("vocab")?;
    let logit_index = args.optional("logit_index", I32, &[ANY])?;
    let partials = args.tensor("partials", F32, &[ANY])?.buffer;
    let calibrated = args.flag("calibrated")?;
    let ids = args.tensor("ids", I32, &[ANY, ANY])?;
    let chosen = args.tensor("chosen", F32, ids.shape)?.buffer;
    let error_word = args.optional("error", Word, &[1])?;
    launch(
        args,
        &FlexdraftChainChoose {
            struct_size: 0,
            vocab,
            stride: logits.dim(1),
            count: ids.dim(1),
            logits: logits.buffer,
            logit_index,
            partials,
            ids: ids.buffer,
            chosen,
            error_word,
            calibrated,
            reserved: 0,
        },
    )
}

/// `chain_score(before [drafts + rows K, before_stride], after [rows K, after_stride], owners [rows], scores [rows, K,
/// K], rank, drafts, error [1] or None)`.
pub(super) fn chain_score(args: &mut Arguments<'_>) -> Outcome<Any> {
    let before = args.tensor("before", F32, &[ANY, ANY])?;
    let after = args.tensor("after", Logits, &[ANY, ANY])?;
    let owners = args.tensor("owners", I32, &[ANY])?;
    let scores = args.tensor("scores", F32, &[owners.shape[0], ANY, ANY])?;
    let (rank, drafts) = (args.size("rank")?, args.size("drafts")?);
    let error_word = args.optional("error", Word, &[1])?;
    launch(
        args,
        &FlexdraftChainScore {
            struct_size: 0,
            rank,
            count: scores.dim(2),
            drafts,
            before: before.buffer,
            before_stride: before.dim(1),
            after: after.buffer,
            after_stride: after.dim(1),
            owners: owners.buffer,
            scores: scores.buffer,
            error_word,
        },
    )
}

/// `chain_walk(drafts [drafts, 32], logit_index [rows] or None, sampling [rows, 40], starts [sequences] or None, ids
/// [rows, K], scores [rows, K, K], chosen [rows, K], stats [rows, 48], error [1] or None)`.
pub(super) fn chain_walk(args: &mut Arguments<'_>) -> Outcome<Any> {
    let drafts = args.tensor("drafts", DRAFT, &[ANY])?.buffer;
    let logit_index = args.optional("logit_index", I32, &[ANY])?;
    let sampling = args.tensor("sampling", ROW_SAMPLING, &[ANY])?;
    let rows = sampling.shape[0];
    let starts = args.optional("starts", I32, &[ANY])?;
    let ids = args.tensor("ids", I32, &[rows, ANY])?;
    let count = ids.shape[1];
    let scores = args.tensor("scores", F32, &[rows, count, count])?.buffer;
    let chosen = args.tensor("chosen", F32, &[rows, count])?.buffer;
    let stats = args.tensor("stats", ROW_STATS, &[rows])?.buffer;
    let error_word = args.optional("error", Word, &[1])?;
    launch(
        args,
        &FlexdraftChainWalk {
            struct_size: 0,
            count: count.cast_unsigned(),
            drafts,
            logit_index,
            sampling: sampling.buffer,
            starts,
            ids: ids.buffer,
            scores,
            chosen,
            stats,
            error_word,
        },
    )
}

/// `select_drafts(drafts [drafts, 32], verdicts [batch, 32], bonus [drafts], starts [drafts], sources [rows],
/// draft_rows [rows], error [1] or None)`.
pub(super) fn select_drafts(args: &mut Arguments<'_>) -> Outcome<Any> {
    let drafts = args.tensor("drafts", DRAFT, &[ANY])?;
    let verdicts = args.tensor("verdicts", VERDICT, &[ANY])?.buffer;
    let bonus = args.tensor("bonus", I32, drafts.shape)?.buffer;
    let starts = args.tensor("starts", I32, drafts.shape)?.buffer;
    let sources = args.tensor("sources", I32, &[ANY])?;
    let draft_rows = args.tensor("draft_rows", I32, sources.shape)?.buffer;
    let error_word = args.optional("error", Word, &[1])?;
    launch(
        args,
        &FlexdraftSelectDrafts {
            struct_size: 0,
            drafts: drafts.buffer,
            verdicts,
            bonus,
            starts,
            sources: sources.buffer,
            draft_rows,
            error_word,
        },
    )
}

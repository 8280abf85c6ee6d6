"""From logits to tokens: sampling, acceptance, chains, and the selection of drafts.

Logits are f32, bf16 or f16 ``[rows, stride]``, aligned to 16 bytes, where the stride is a multiple of 8 and at least the
vocabulary's size. Tables are tensors of u8, see ``flexdraft.tables``.
"""

from __future__ import annotations

from ._library import OptionalTensor, Tensor, read, run, write


def _sample(name: str, logits: Tensor, sampling: Tensor, stats: Tensor, workspace: Tensor, vocab: int,
            logit_index: OptionalTensor, starts: OptionalTensor, draft: OptionalTensor, hidden: OptionalTensor,
            weight: OptionalTensor, bias: OptionalTensor, update: bool, error: OptionalTensor,
            row_edits: OptionalTensor, edit_offsets: OptionalTensor, edits: OptionalTensor,
            masks: OptionalTensor) -> None:
    changes = update or row_edits is not None
    run(name, write(logits) if changes else read(logits), vocab, read(logit_index), read(sampling), read(starts),
        read(draft), read(hidden), read(weight), read(bias), write(workspace), write(stats), update, write(error),
        read(row_edits), read(edit_offsets), read(edits), read(masks))


def sample(logits: Tensor, sampling: Tensor, stats: Tensor, workspace: Tensor, *, vocab: int,
           logit_index: OptionalTensor = None, starts: OptionalTensor = None, draft: OptionalTensor = None,
           hidden: OptionalTensor = None, weight: OptionalTensor = None, bias: OptionalTensor = None,
           update: bool = False, error: OptionalTensor = None, row_edits: OptionalTensor = None,
           edit_offsets: OptionalTensor = None, edits: OptionalTensor = None, masks: OptionalTensor = None) -> None:
    """Draws a token from each row of logits, after temperature, top-k, top-p and min-p. With a calibrator, the logits
    become ``logits + weight hidden + bias`` first, rounded to their type. With edits, the edited logits replace the logits
    first.

    The draw is Gumbel-max with one Philox number per id, keyed by seed, purpose, slot and position. A row's result has
    the same bits in any batch. NaN counts as -inf.

    Args:
        logits: ``[logit_rows, stride]``; written with ``update`` and with ``row_edits``.
        sampling: how each row is drawn from, u8 ``[rows, 40]``, from ``row_sampling``.
        stats: written, u8 ``[rows, 48]``; ``row_stats`` reads a field.
        workspace: f32, at least ``sample_workspace_len`` elements.
        vocab: number of token ids, 1 to 2^20.
        logit_index: the row of ``logits`` of each row, i32 ``[rows]``; -1 makes a row padding. Without it, row r has
            logits row r.
        starts: positions from which relative draws count, i32 ``[sequences]``.
        draft: a token per row whose probability is computed, i32 ``[rows]``; -1 for none.
        hidden: the calibrator's hidden layer, bf16 or f16 ``[rows, rank]``, with a rank that is a multiple of 8; of the type
            of the logits, if these have 16 bits.
        weight: the calibrator's weight W2, of the type of ``hidden``, ``[vocab, rank]``.
        bias: the calibrator's bias b2, f32 ``[vocab]``.
        update: whether the calibrated logits replace the logits, which the rules rejection and block need, and rows with
            top-k, top-p or min-p.
        error: the device error word, u32 or i32 ``[1]``: fault 2 for a draft token outside the vocabulary, 4 for a NaN,
            16 for an index out of range, 32 for calibrated logits that were needed a second time but not stored.
        row_edits: the edits of each row, u8 ``[rows, 24]``; not with a calibrator. ``edit_rows`` makes the four tables.
        edit_offsets: the places of edits, i32; present if ``row_edits`` is, as the tables below.
        edits: the edits, u8 ``[any, 16]``.
        masks: the masks of allowed ids, u32 or i32.

    Raises:
        TypeError: an operand has the wrong element type, or is missing.
        ValueError: an operand has the wrong shape, alignment or device, or the workspace is too small.
    """
    _sample("sample", logits, sampling, stats, workspace, vocab, logit_index, starts, draft, hidden, weight, bias,
            update, error, row_edits, edit_offsets, edits, masks)


def sample_partials(logits: Tensor, sampling: Tensor, stats: Tensor, workspace: Tensor, *, vocab: int,
                    logit_index: OptionalTensor = None, starts: OptionalTensor = None, draft: OptionalTensor = None,
                    hidden: OptionalTensor = None, weight: OptionalTensor = None, bias: OptionalTensor = None,
                    update: bool = False, error: OptionalTensor = None, row_edits: OptionalTensor = None,
                    edit_offsets: OptionalTensor = None, edits: OptionalTensor = None,
                    masks: OptionalTensor = None) -> None:
    """Runs only the first half of ``sample``: it calibrates or edits the logits and leaves partial results in
    ``workspace``, which ``chain_choose`` reads. ``stats`` does not change.

    Takes the arguments of ``sample``, and raises its errors."""
    _sample("sample_partials", logits, sampling, stats, workspace, vocab, logit_index, starts, draft, hidden, weight,
            bias, update, error, row_edits, edit_offsets, edits, masks)


def sample_workspace_len(rows: int, vocab: int, *, calibrated: bool = False) -> int:
    """Returns the number of f32 elements of workspace that ``sample`` needs.

    Args:
        rows: number of rows.
        vocab: number of token ids.
        calibrated: whether there is a calibrator.

    Raises:
        ValueError: an argument is negative, or the number is too large.
    """
    return int(run("sample_workspace_len", rows, vocab, calibrated))


def accept(sequences: Tensor, tokens: Tensor, target: Tensor, target_stats: Tensor, verdicts: Tensor,
           committed: Tensor, arrived: Tensor, workspace: Tensor, *, vocab: int, draft: OptionalTensor = None,
           draft_stats: OptionalTensor = None, target_partials: OptionalTensor = None,
           chosen_ids: OptionalTensor = None, chosen_logits: OptionalTensor = None, any_block: bool = False,
           error: OptionalTensor = None) -> None:
    """Decides for every sequence how many draft tokens are accepted, and which bonus token follows them. The tokens
    have the target's own distribution.

    Args:
        sequences: the verifications, u8 ``[batch, 48]``, from ``verify``.
        tokens: draft tokens of all sequences, i32.
        target: logits of the target, ``[target_rows, stride]``.
        target_stats: the output of ``sample`` for these logits, u8 ``[target_rows, 48]``.
        verdicts: written, u8 ``[batch, 32]``; ``verdict`` reads a field.
        committed: written, accepted tokens, bonus token, then -1, i32 ``[batch, 64]``.
        arrived: counters, u32 or i32 ``[batch]``, zeros before the first launch; every launch leaves zeros.
        workspace: f32, at least ``accept_workspace_len`` elements, aligned to 8 bytes.
        vocab: number of token ids.
        draft: logits of the drafts, of the target's type, ``[draft_rows, stride]``.
        draft_stats: statistics of the draft rows, u8 ``[draft_rows, 48]``; absent if every draft is certain.
        target_partials: the workspace of the ``sample`` call that wrote ``target_stats``, as that call left it. With
            it, the kernel skips parts of the vocabulary; the result is the same.
        chosen_ids: the chosen ids of drafts with a chain, i32 ``[draft_rows, K]``.
        chosen_logits: the chained logits of the chosen ids, f32 ``[draft_rows, K]``.
        any_block: whether a sequence has ``Rule.BLOCK``.
        error: the device error word, u32 or i32 ``[1]``; fault 16 for a sequence whose rows or tokens do not exist.

    Raises:
        TypeError: an operand has the wrong element type, or is missing.
        ValueError: an operand has the wrong shape, alignment or device, or the workspace is too small.
    """
    run("accept", vocab, read(sequences), read(tokens), read(target), read(target_stats), read(target_partials),
        read(draft), read(draft_stats), read(chosen_ids), read(chosen_logits), write(workspace), write(arrived),
        write(verdicts), write(committed), any_block, write(error))


def accept_workspace_len(batch: int, vocab: int) -> int:
    """Returns the number of f32 elements of workspace that ``accept`` needs.

    Args:
        batch: number of sequences.
        vocab: number of token ids.

    Raises:
        ValueError: an argument is negative, or the number is too large.
    """
    return int(run("accept_workspace_len", batch, vocab))


def chain_choose(logits: Tensor, partials: Tensor, ids: Tensor, chosen: Tensor, *, vocab: int, calibrated: bool,
                 logit_index: OptionalTensor = None, error: OptionalTensor = None) -> None:
    """Chooses the ids of the K largest logits of each row, ties to the lowest id. K is 1 to 32.

    Args:
        logits: the calibrated logits, ``[logit_rows, stride]``.
        partials: the workspace of ``sample_partials`` or ``sample`` for the same rows, as that call left it: f32,
            exactly ``sample_workspace_len`` elements.
        ids: written, the chosen ids in descending order of their logits, i32 ``[rows, K]``.
        chosen: written, their logits, NaN as -inf, f32 ``[rows, K]``.
        vocab: number of token ids.
        calibrated: whether the call that left ``partials`` had a calibrator.
        logit_index: the row of ``logits`` of each row, i32 ``[rows]``; -1 makes a row padding.
        error: the device error word, u32 or i32 ``[1]``; fault 16 for an index outside the logits.

    Raises:
        TypeError: an operand has the wrong element type.
        ValueError: an operand has the wrong shape, alignment or device.
    """
    run("chain_choose", read(logits), vocab, read(logit_index), read(partials), calibrated, write(ids), write(chosen),
        write(error))


def chain_score(before: Tensor, after: Tensor, owners: Tensor, scores: Tensor, *, rank: int, drafts: int,
                error: OptionalTensor = None) -> None:
    """Computes the scores of all pairs of chosen ids of neighbouring rows, as dot products of factors, with f32 sums
    in a fixed order.

    Args:
        before: factors of the previous tokens: of the bonus token of each draft, then of the chosen ids of each row; f32
            ``[drafts + rows K, before_stride]``, aligned to 16 bytes, with a stride that is a multiple of 8.
        after: factors of the chosen ids as scored tokens, f32, bf16 or f16 ``[rows K, after_stride]``.
        owners: the draft of each row, i32 ``[rows]``; the rows of a draft follow each other.
        scores: written, entry ``[a][b]`` of a row is the score of its id b after id a of the row before; f32 ``[rows,
            K, K]``. The first row of a draft gets only the entries ``[0][b]``, the scores after the bonus token.
        rank: number of elements per factor.
        drafts: number of drafts.
        error: the device error word, u32 or i32 ``[1]``; fault 16 for a row whose draft does not exist.

    Raises:
        TypeError: an operand has the wrong element type.
        ValueError: an operand has the wrong shape, alignment or device.
    """
    run("chain_score", read(before), read(after), read(owners), write(scores), rank, drafts, write(error))


def chain_walk(drafts: Tensor, sampling: Tensor, ids: Tensor, scores: Tensor, chosen: Tensor, stats: Tensor, *,
               logit_index: OptionalTensor = None, starts: OptionalTensor = None,
               error: OptionalTensor = None) -> None:
    """Draws the tokens of each draft row by row, among the chosen ids of the row: the logit of an id, plus its score
    after the previously drawn token.

    Args:
        drafts: the drafts with their rows, u8 ``[drafts, 32]``, from ``draft``.
        sampling: how each row is drawn from, u8 ``[rows, 40]``; top-k counts among the chosen ids.
        ids: the chosen ids, i32 ``[rows, K]``.
        scores: the output of ``chain_score``, f32 ``[rows, K, K]``.
        chosen: logits of the chosen ids, which the chained logits replace, f32 ``[rows, K]``.
        stats: written, u8 ``[rows, 48]``, of logits that are -inf outside the chosen ids.
        logit_index: the operand of ``chain_choose``, i32 ``[rows]``.
        starts: positions from which relative draws count, i32 ``[sequences]``.
        error: the device error word, u32 or i32 ``[1]``; fault 16 for a draft whose rows do not exist, and for a
            sequence without a start.

    Raises:
        TypeError: an operand has the wrong element type.
        ValueError: an operand has the wrong shape, alignment or device.
    """
    run("chain_walk", read(drafts), read(logit_index), read(sampling), read(starts), read(ids), read(scores),
        write(chosen), write(stats), write(error))


def select_drafts(drafts: Tensor, verdicts: Tensor, bonus: Tensor, starts: Tensor, sources: Tensor,
                  draft_rows: Tensor, *, error: OptionalTensor = None) -> None:
    """Selects, for every sequence that drafts, the rows of the mask group of its accepted length, its bonus token and
    its start, without a wait of the host.

    Args:
        drafts: the sequences that draft, u8 ``[drafts, 32]``, from ``draft``. Together they have every draft row once.
        verdicts: the output of ``accept``, u8 ``[batch, 32]``.
        bonus: written, the bonus token of each sequence that drafts, i32 ``[drafts]``.
        starts: written, n + a + 1, the position of candidate 0 in the next step, i32 ``[drafts]``.
        sources: written, the source of each draft row, i32 ``[rows]``; -1 if the accepted length has no mask group.
        draft_rows: written, the row of each draft row's logits, i32 ``[rows]``; -1 as in ``sources``.
        error: the device error word, u32 or i32 ``[1]``; fault 16 for a draft whose rows or verdict do not exist.

    Raises:
        TypeError: an operand has the wrong element type.
        ValueError: an operand has the wrong shape or device.
    """
    run("select_drafts", read(drafts), read(verdicts), write(bonus), write(starts), write(sources), write(draft_rows),
        write(error))

"""Rows of the kernels' tables, which the host writes before the device reads them, and fields of their results.

A table is a tensor of u8 with one row per entry: 40 bytes for the sampling of a row of logits, 48 for its statistics and
for the verification of a sequence, 32 for a verdict and for a draft, 24 for the edits of a row of logits and 16 for an
edit. Write tables on the host, then copy them.
"""

from __future__ import annotations

import sys
from enum import IntEnum
from typing import Any, Iterable, Mapping, Optional, Sequence

from ._dlpack import vector_of_float, vector_of_int64
from ._library import OptionalTensor, Tensor, groups_as_bits, read, run, signed, write

ROW_SAMPLING_BYTES = 40
ROW_STATS_BYTES = 48
VERIFY_BYTES = 48
VERDICT_BYTES = 32
DRAFT_BYTES = 32
ROW_EDITS_BYTES = 24
LOGIT_EDIT_BYTES = 16
MAX_COMMITTED = 64
"""Number of entries per sequence in the committed tokens of ``accept``."""


class Purpose(IntEnum):
    """The purpose of a random number."""

    NONE = 0
    """No random numbers: the token is the id of the largest logit."""
    TARGET = 1
    """A token of the target, or a draft token of the rule match. The position is the token's own; the slot is 0."""
    DRAFT = 2
    """A draft token of the rules rejection and block. The position is that of candidate 0 of the step that verifies the
    draft; the slot is the draft token's own, from 1 on."""


class Rule(IntEnum):
    """Acceptance rules."""

    MATCH = 0
    """Draws the target's token and accepts while drafts match; the rule of greedy sequences too."""
    REJECTION = 1
    """Speculative sampling (arXiv 2211.17192, 2302.01318)."""
    BLOCK = 2
    """Block verification (arXiv 2403.10444)."""


class DraftKind(IntEnum):
    """The known distribution of a draft."""

    CERTAIN = 0
    """None: each draft token is certain, as with the rule match or a lookup."""
    LOGITS = 1
    """Rows of logits."""
    CHAINED = 2
    """Chosen ids of a draft with a chain."""


class DraftRows(IntEnum):
    """The rows from which a draft comes."""

    PASS_SLOTS = 0
    """Mask rows of a pass; the first row is that of slot 0, and a group has S rows."""
    LOGIT_SLOTS = 1
    """Rows of logits of every group; the first row is that of slot 1, and a group has S - 1 rows."""
    NEXT_SLOTS = 2
    """Mask rows of a pass whose slots predict the next position, so that slots 0 to S - 2 draft."""


def row_sampling(out: Tensor, row: int, *, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0,
                 min_p: float = 0.0, purpose: int = Purpose.NONE, seed: int = 0, slot: int = 0, position: int = 0,
                 sequence: Optional[int] = None) -> None:
    """Writes the sampling parameters of one row of logits.

    Args:
        out: u8 ``[rows, 40]`` on the host.
        row: the row of ``out``.
        temperature: 0 is greedy.
        top_k: number of largest logits to keep; 0 keeps all.
        top_p: probability mass to keep, above 0 and at most 1; 1 keeps all.
        min_p: smallest probability to keep, relative to the largest, from 0 and below 1.
        purpose: the purpose of the random number, see ``Purpose``.
        seed: seed of the request's random numbers, of 64 bits.
        slot: slot that keys the random numbers, below 65536.
        position: position that keys the random numbers, or what is added to the start of ``sequence``.
        sequence: index in the operand ``starts`` of ``sample`` from which ``position`` counts; None: it is absolute.

    Raises:
        TypeError: ``out`` has the wrong element type.
        ValueError: a parameter is out of its range, or ``out`` has the wrong shape or is not on the host.
    """
    run("row_sampling", write(out), row, temperature, top_k, top_p, min_p, int(purpose), signed(seed), slot, position,
        -1 if sequence is None else sequence)


def verify(out: Tensor, row: int, *, rule: int, draft: int, position: int, drafts: int, first_target: int,
           first_token: int, seed: int = 0, first_draft: int = 0, first_draft_stats: int = 0,
           groups: Iterable[int] = ()) -> None:
    """Writes the verification of one sequence. Row ``first_target + i`` of the target has the distribution of the
    token after draft token i; token ``first_token + i - 1`` is draft token i.

    Args:
        out: u8 ``[batch, 48]`` on the host.
        row: the row of ``out``.
        rule: see ``Rule``; ``Rule.MATCH`` at temperature 0.
        draft: see ``DraftKind``.
        position: position n of candidate 0.
        drafts: number v of draft tokens, 0 to 63.
        first_target: the target's row of candidate 0.
        first_token: index of the first draft token in ``tokens``.
        seed: seed of the request's random numbers, of 64 bits.
        first_draft: the row of the first draft token's logits; used with ``DraftKind.LOGITS``.
        first_draft_stats: the row of the first draft token's statistics; used unless the draft is certain.
        groups: the accepted lengths for which the pass has a mask group.

    Raises:
        TypeError: ``out`` has the wrong element type.
        ValueError: a parameter is out of its range, or ``out`` has the wrong shape or is not on the host.
    """
    run("verify", write(out), row, int(rule), int(draft), signed(seed), position, drafts, first_target, first_draft,
        first_draft_stats, first_token, groups_as_bits(groups))


def draft(out: Tensor, row: int, *, sequence: int, first_slot: int, slots: int, first_draft: int,
          groups: Iterable[int] = (), rows: int = DraftRows.PASS_SLOTS) -> None:
    """Writes a sequence whose next draft comes from a mask group.

    Args:
        out: u8 ``[drafts, 32]`` on the host.
        row: the row of ``out``.
        sequence: index of the sequence's verdict.
        first_slot: the first row of the sequence's first mask group.
        slots: block size S: the number of slots per mask group, 1 to 64.
        first_draft: the first of the sequence's S - 1 draft rows.
        groups: the accepted lengths for which the pass has a mask group; none if its only group follows the verdict.
        rows: see ``DraftRows``.

    Raises:
        TypeError: ``out`` has the wrong element type.
        ValueError: a parameter is out of its range, or ``out`` has the wrong shape or is not on the host.
    """
    run("draft", write(out), row, sequence, groups_as_bits(groups), first_slot, slots, first_draft, int(rows))


def edit_rows(row_edits: Tensor, edit_offsets: Tensor, edits: Tensor, masks: Tensor, used: Tensor, *, vocab: int,
              first_row: int, draft_rows: int = 0, tokens: Sequence[int] = (), prompt_len: int = 0,
              draft: Sequence[int] = (), stop_ids: Sequence[int] = (), min_tokens: int = 0,
              repetition_penalty: float = 1.0, frequency_penalty: float = 0.0, presence_penalty: float = 0.0,
              logit_bias: Optional[Mapping[int, float]] = None, bad_words: Sequence[Sequence[int]] = (),
              allowed: OptionalTensor = None, allowed_by_row: OptionalTensor = None) -> None:
    """Adds the changes that one sequence's logit processors make to its rows of logits to tables for ``sample``.

    Call it once per sequence of a step, also for a sequence without edits, then copy the tables to the device. The
    processors act in this order: penalties, bias, forbidden ids, masks. Row i of the target follows draft token i, and its
    penalties count the draft tokens before it. All tables are on the host.

    Args:
        row_edits: written, u8 ``[rows, 24]``, a row per row of ``sample``.
        edit_offsets: written, i32; a sequence with edits adds ceil(vocab / 1024) + 1 entries.
        edits: written, u8 ``[any, 16]``; a sequence adds at most one row per token, draft token, bias and stop id, and
            one per bad word and row.
        masks: written, u32 or i32; a sequence with a mask adds ceil(vocab / 32) words, and with masks by row as many per
            row.
        used: i64 ``[3]``, the numbers of used entries of ``edit_offsets``, ``edits`` and ``masks``, which the call raises;
            zeros before the first sequence.
        vocab: number of token ids, 1 to 2^20.
        first_row: the sequence's first row.
        draft_rows: 0 for the ``len(draft) + 1`` rows of the target; 1 to 64 for this number of rows of a draft, on which
            only bias, bad words of one id and masks act.
        tokens: ids of the prompt and of the output, up to the newest token.
        prompt_len: the number of ids of the prompt.
        draft: the draft tokens that the step verifies.
        stop_ids: ids that ``min_tokens`` forbids.
        min_tokens: number of output tokens before which the stop ids are forbidden.
        repetition_penalty: divides positive logits of the ids before a row, and multiplies negative logits of these ids;
            1 is off.
        frequency_penalty: subtracted from an id's logit for each of its occurrences in the output.
        presence_penalty: subtracted from the logits of ids that occur in the output.
        logit_bias: numbers that are added to the logits of ids.
        bad_words: sequences of ids that may not occur; an id that would complete one is forbidden.
        allowed: the allowed ids, u32 or i32 ``[ceil(vocab / 32)]``: bit ``id % 32`` of word ``id // 32``.
        allowed_by_row: the allowed ids of each row, u32 or i32 ``[rows, ceil(vocab / 32)]``.

    Raises:
        TypeError: a tensor has the wrong element type.
        ValueError: a parameter is out of its range, a table has no room for the entries, or a tensor has the wrong
            shape or is not on the host. The tables are then unchanged.
    """
    bias = dict(logit_bias or {})
    words = [list(word) for word in bad_words]
    run("edit_rows", write(row_edits), write(edit_offsets), write(edits), write(masks), write(used), vocab, first_row,
        draft_rows, vector_of_int64(tokens), prompt_len, vector_of_int64(draft), vector_of_int64(stop_ids), min_tokens,
        repetition_penalty, frequency_penalty, presence_penalty, vector_of_int64(bias), vector_of_float(bias.values()),
        vector_of_int64(id for word in words for id in word), vector_of_int64(map(len, words)), read(allowed),
        read(allowed_by_row))


def supports(*, q_heads: int, kv_heads: int, head_dim: int, vocab: int, hidden: int, intermediate: int,
             rank: int = 0, hidden_chain_rank: int = 0) -> bool:
    """Returns True if the kernels support the shapes of a model and its drafter.

    Args:
        q_heads: number of query heads.
        kv_heads: number of KV heads.
        head_dim: elements per head.
        vocab: number of token ids.
        hidden: elements in a row of the residual stream.
        intermediate: elements in a row of the MLP's activation.
        rank: rank of the drafter's calibrator; 0 without a calibrator.
        hidden_chain_rank: rank of the drafter's chain, if its scores depend on hidden rows (the kind ``hidden``); 0 for
            another chain, and without a chain.

    Raises:
        ValueError: a quantity is beyond its limit; the message names the first such quantity and its limit.
    """
    return bool(run("supports", q_heads, kv_heads, head_dim, vocab, hidden, intermediate, rank, hidden_chain_rank))


# The element type and the index of each field in a row, in elements of that type.
_STATS = {name: ("float32", index) for index, name in enumerate(
    ["token", "max", "log_sum", "probability", "confidence", "token_logit", "draft_probability", "inverse_temperature",
     "cut_score", "cut_id", "kept", "fault"])}
_STATS.update({name: ("int32", _STATS[name][1]) for name in ("token", "cut_id", "kept", "fault")})
_VERDICT = {"accepted": ("int32", 0), "bonus": ("int32", 1), "probability": ("float32", 2), "group": ("int32", 3),
            "cached_length": ("int64", 2), "fault": ("int32", 6)}


def _field(table: Any, fields: dict[str, tuple[str, int]], name: str, kind: str) -> Any:
    if name not in fields:
        raise ValueError(f"{kind} have no field {name!r}, expected {', '.join(fields)}")
    dtype, index = fields[name]
    framework = sys.modules[type(table).__module__.partition(".")[0]]
    return table.view(getattr(framework, dtype))[..., index]


def row_stats(stats: Any, name: str) -> Any:
    """Returns a field of the statistics that ``sample`` and ``chain_walk`` write, as a view of their memory.

    An id's score is ``(logit - max) * inverse_temperature``. An id is kept if its score is above ``cut_score``, or equal
    to it with an id of at most ``cut_id``; its probability is ``exp(score - log_sum)``.

    Args:
        stats: u8 ``[rows, 48]``, a tensor of PyTorch or an array of NumPy.
        name: ``token`` (i32; the token that was drawn), ``max``, ``log_sum``, ``probability`` (of the token),
            ``confidence`` (the largest probability at temperature 1), ``token_logit``, ``draft_probability``,
            ``inverse_temperature``, ``cut_score`` (f32), ``cut_id``, ``kept``, ``fault`` (i32).

    Returns:
        A view ``[rows]`` of the field's element type.

    Raises:
        ValueError: the table has no field of this name.
    """
    return _field(stats, _STATS, name, "row statistics")


def verdict(verdicts: Any, name: str) -> Any:
    """Returns a field of the verdicts that ``accept`` writes, as a view of their memory.

    Args:
        verdicts: u8 ``[batch, 32]``, a tensor of PyTorch or an array of NumPy.
        name: ``accepted`` (i32; the number a of accepted draft tokens), ``bonus`` (i32; the token at position n + a +
            1), ``probability`` (f32; of the bonus token), ``group`` (i32; the rank of mask group a among the groups of
            the pass, -1 without such a group), ``cached_length`` (i64; n + a + 1), ``fault`` (i32).

    Returns:
        A view ``[batch]`` of the field's element type.

    Raises:
        ValueError: the table has no field of this name.
    """
    return _field(verdicts, _VERDICT, name, "verdicts")

"""Kernels of FlexDraft, lossless parallel speculative decoding (arXiv 2605.20022), on any DLPack tensor.

A call with CUDA tensors launches the kernel on the framework's current stream. A call with host tensors runs an
emulator of the kernels, which is meant for tests. All tensors of a call are on one device. Nothing is copied or
allocated: every operand is an argument, including outputs and workspaces. Unless a function says otherwise, tensors are
contiguous.

Launches are asynchronous, and the package keeps no tensor after a call. A PyTorch tensor may be dropped at once if it was
allocated for the current stream, because PyTorch gives its memory only to later work of this stream; for a tensor of
another stream, call ``tensor.record_stream`` first. Tensors of another framework may be dropped if the framework frees
memory in the order of the stream; otherwise, wait for the stream. ``PassTables`` may be dropped at any time. A call with
host tensors returns after the kernel has run.

Errors: ``TypeError`` for a wrong type of an argument, ``ValueError`` for a wrong shape, device or value,
``RuntimeError`` if the driver fails. After an error nothing was launched. Faults that only the device can detect, such
as an index out of range, are bits in the operand ``error``.

``flexdraft.torch`` defines the launches as PyTorch custom operators.
"""

from .logits import (
    accept, accept_workspace_len, chain_choose, chain_score, chain_walk, sample, sample_partials, sample_workspace_len,
    select_drafts,
)
from .passes import (
    PassTables, SequenceRows, attention_workspace_len, follow_verdicts, joint_attention, norm_rope_append, rope_table,
)
from .rows import add, embed, gather, rms_norm, silu_add, silu_mul
from .tables import (
    DRAFT_BYTES, LOGIT_EDIT_BYTES, MAX_COMMITTED, ROW_EDITS_BYTES, ROW_SAMPLING_BYTES, ROW_STATS_BYTES, VERDICT_BYTES,
    VERIFY_BYTES, DraftKind, DraftRows, Purpose, Rule, draft, edit_rows, row_sampling, row_stats, supports, verdict, verify,
)

__all__ = [
    "DRAFT_BYTES", "DraftKind", "DraftRows", "LOGIT_EDIT_BYTES", "MAX_COMMITTED", "PassTables", "Purpose",
    "ROW_EDITS_BYTES", "ROW_SAMPLING_BYTES",
    "ROW_STATS_BYTES", "Rule", "SequenceRows", "VERDICT_BYTES", "VERIFY_BYTES", "accept", "accept_workspace_len", "add",
    "attention_workspace_len", "chain_choose", "chain_score", "chain_walk", "draft", "edit_rows", "embed", "follow_verdicts",
    "gather", "joint_attention", "norm_rope_append", "rms_norm", "rope_table", "row_sampling", "row_stats", "sample",
    "sample_partials", "sample_workspace_len", "select_drafts", "silu_add", "silu_mul", "supports", "verdict", "verify",
]

"""The launches as PyTorch custom operators, for ``torch.compile``: ``torch.ops.flexdraft.*``.

The functions take the same arguments as the functions of the same names in ``flexdraft``. The operators declare which
tensors they write, have no gradients, and run on the device of their tensors. Write tables, query workspace lengths,
and upload passes outside compiled code.
"""

from __future__ import annotations

import itertools
import weakref
from typing import Any, Optional

import torch
from torch import Tensor

from . import logits, passes, rows
from .passes import SequenceRows

__all__ = ["PassTables", "SequenceRows"]


class PassTables(passes.PassTables):
    """The tables of a pass, as ``flexdraft.PassTables``, for operators.

    Operators identify the tables by a number. The tensor ``state`` represents their contents on the device: an operator
    that changes the tables declares that it writes the tensor, so a compiler keeps the order of the operators.
    """

    _numbers = itertools.count()
    _alive: "weakref.WeakValueDictionary[int, PassTables]" = weakref.WeakValueDictionary()

    def __init__(self, device: Any = "cpu", *, max_batch: int, max_pages: int):
        super().__init__(device, max_batch=max_batch, max_pages=max_pages)
        self.state = torch.zeros(1, dtype=torch.uint8, device=device)
        self.number = next(self._numbers)
        self._alive[self.number] = self


def _tables(number: int) -> PassTables:
    found = PassTables._alive.get(number)
    if found is None:
        raise ValueError(f"there are no pass tables with the number {number}, expected tables that are still in use")
    return found


_SAMPLE = (
    "(Tensor(a!) logits, Tensor sampling, Tensor(b!) stats, Tensor(c!) workspace, SymInt vocab, "
    "Tensor? logit_index=None, Tensor? starts=None, Tensor? draft=None, Tensor? hidden=None, Tensor? weight=None, "
    "Tensor? bias=None, bool update=False, Tensor(d!)? error=None, Tensor? row_edits=None, Tensor? edit_offsets=None, "
    "Tensor? edits=None, Tensor? masks=None) -> ()"
)
_SCHEMAS = {
    rows.embed: "(Tensor ids, Tensor table, Tensor(a!) out, Tensor(b!)? error=None) -> ()",
    rows.gather: "(Tensor indices, Tensor x, Tensor(a!) out, Tensor(b!)? error=None) -> ()",
    rows.rms_norm: "(Tensor(a!) x, Tensor weight, Tensor(b!) out, float eps, Tensor? delta=None) -> ()",
    rows.add: "(Tensor(a!) x, Tensor delta) -> ()",
    rows.silu_mul: "(Tensor x, Tensor(a!) out) -> ()",
    rows.silu_add: "(Tensor(a!) x, Tensor bonus, Tensor owner, Tensor(b!)? error=None) -> ()",
    logits.sample: _SAMPLE,
    logits.sample_partials: _SAMPLE,
    logits.accept: (
        "(Tensor sequences, Tensor tokens, Tensor target, Tensor target_stats, Tensor(a!) verdicts, "
        "Tensor(b!) committed, Tensor(c!) arrived, Tensor(d!) workspace, SymInt vocab, Tensor? draft=None, "
        "Tensor? draft_stats=None, Tensor? target_partials=None, Tensor? chosen_ids=None, Tensor? chosen_logits=None, "
        "bool any_block=False, Tensor(e!)? error=None) -> ()"
    ),
    logits.chain_choose: (
        "(Tensor logits, Tensor partials, Tensor(a!) ids, Tensor(b!) chosen, SymInt vocab, bool calibrated, "
        "Tensor? logit_index=None, Tensor(c!)? error=None) -> ()"
    ),
    logits.chain_score: (
        "(Tensor before, Tensor after, Tensor owners, Tensor(a!) scores, SymInt rank, SymInt drafts, "
        "Tensor(b!)? error=None) -> ()"
    ),
    logits.chain_walk: (
        "(Tensor drafts, Tensor sampling, Tensor ids, Tensor scores, Tensor(a!) chosen, Tensor(b!) stats, "
        "Tensor? logit_index=None, Tensor? starts=None, Tensor(c!)? error=None) -> ()"
    ),
    logits.select_drafts: (
        "(Tensor drafts, Tensor verdicts, Tensor(a!) bonus, Tensor(b!) starts, Tensor(c!) sources, "
        "Tensor(d!) draft_rows, Tensor(e!)? error=None) -> ()"
    ),
    passes.rope_table: (
        "(SymInt tables, Tensor state, Tensor inv_freq, Tensor(a!) cos_sin, float scale=1.0) -> ()"
    ),
    passes.norm_rope_append: (
        "(SymInt tables, Tensor state, Tensor(a!)? qkv, Tensor cos_sin, Tensor(b!) k_cache, Tensor(c!) v_cache, "
        "SymInt q_heads, bool masks, Tensor? q_norm=None, Tensor? k_norm=None, float eps=1e-06, Tensor(d!)? q=None, "
        "Tensor(e!)? k=None, Tensor? v=None, Tensor(f!)? error=None) -> ()"
    ),
    passes.joint_attention: (
        "(SymInt tables, Tensor state, Tensor? qkv, Tensor k_cache, Tensor v_cache, Tensor(a!) out, "
        "Tensor(b!) workspace, SymInt q_heads, Tensor(c!)? lse=None, SymInt split=0, bool masks=True, "
        "Tensor? q=None, Tensor? mask_q=None, Tensor? mask_k=None, Tensor? mask_v=None, Tensor? sinks=None, "
        "SymInt window=0, float soft_cap=0.0, Tensor(d!)? error=None) -> ()"
    ),
    passes.follow_verdicts: (
        "(SymInt tables, Tensor(a!) state, Tensor sequences, Tensor verdicts, Tensor(b!)? error=None) -> ()"
    ),
}


def _arguments(schema: str) -> list[tuple[str, bool]]:
    """Returns the names of a schema's arguments, and whether they are written."""
    arguments = schema[schema.index("(") + 1:schema.rindex(") ->")].split(",")
    return [(argument.split("=")[0].split()[-1], "!)" in argument) for argument in arguments]


def _fake(*values: Any, **options: Any) -> None:
    """The fake implementation. The operators return nothing, and fake tensors have no elements to write. A compiler learns
    here that tensors are on several devices; shapes and types are checked when the operator runs."""
    devices = {str(value.device) for value in (*values, *options.values()) if isinstance(value, Tensor)}
    if len(devices) > 1:
        raise ValueError(f"tensors of one call are on {' and '.join(sorted(devices))}, expected one device")


def _define(function: Any, schema: str) -> Any:
    """Defines the operator of a function. PyTorch requires tensors among the positional arguments."""
    arguments = _arguments(schema)
    names = [name for name, _ in arguments]

    def body(*values: Any) -> None:
        options = dict(zip(names, values))
        if "state" in options:
            del options["state"]
            options["tables"] = _tables(options["tables"])
        function(**options)

    written = [name for name, is_written in arguments if is_written]
    operator = torch.library.custom_op(f"flexdraft::{function.__name__}", body, mutates_args=written, schema=schema)
    operator.register_fake(_fake)
    return getattr(torch.ops.flexdraft, function.__name__)


for _function, _schema in _SCHEMAS.items():
    globals()[_function.__name__] = _define(_function, _schema)
    __all__.append(_function.__name__)


# The functions on passes take the tables; their operators take a number and a tensor instead.


def rope_table(tables: PassTables, inv_freq: Tensor, cos_sin: Tensor, *, scale: float = 1.0) -> None:
    """Calls the operator ``rope_table``; see ``flexdraft.rope_table``."""
    torch.ops.flexdraft.rope_table(tables.number, tables.state, inv_freq, cos_sin, scale=scale)


def norm_rope_append(tables: PassTables, qkv: Optional[Tensor], cos_sin: Tensor, k_cache: Tensor, v_cache: Tensor, *,
                     q_heads: int, masks: bool, q_norm: Optional[Tensor] = None, k_norm: Optional[Tensor] = None,
                     eps: float = 1e-6, q: Optional[Tensor] = None, k: Optional[Tensor] = None,
                     v: Optional[Tensor] = None, error: Optional[Tensor] = None) -> None:
    """Calls the operator ``norm_rope_append``; see ``flexdraft.norm_rope_append``."""
    torch.ops.flexdraft.norm_rope_append(
        tables.number, tables.state, qkv, cos_sin, k_cache, v_cache, q_heads=q_heads, masks=masks, q_norm=q_norm,
        k_norm=k_norm, eps=eps, q=q, k=k, v=v, error=error)


def joint_attention(tables: PassTables, qkv: Optional[Tensor], k_cache: Tensor, v_cache: Tensor, out: Tensor,
                    workspace: Tensor, *, q_heads: int, lse: Optional[Tensor] = None, split: int = 0,
                    masks: bool = True, q: Optional[Tensor] = None, mask_q: Optional[Tensor] = None,
                    mask_k: Optional[Tensor] = None, mask_v: Optional[Tensor] = None, sinks: Optional[Tensor] = None,
                    window: int = 0, soft_cap: float = 0.0, error: Optional[Tensor] = None) -> None:
    """Calls the operator ``joint_attention``; see ``flexdraft.joint_attention``."""
    torch.ops.flexdraft.joint_attention(
        tables.number, tables.state, qkv, k_cache, v_cache, out, workspace, q_heads=q_heads, lse=lse, split=split,
        masks=masks, q=q, mask_q=mask_q, mask_k=mask_k, mask_v=mask_v, sinks=sinks, window=window, soft_cap=soft_cap,
        error=error)


def follow_verdicts(tables: PassTables, sequences: Tensor, verdicts: Tensor, *,
                    error: Optional[Tensor] = None) -> None:
    """Calls the operator ``follow_verdicts``; see ``flexdraft.follow_verdicts``."""
    torch.ops.flexdraft.follow_verdicts(tables.number, tables.state, sequences, verdicts, error=error)

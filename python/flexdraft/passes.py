"""The rows of a forward pass: their tables, rotary embedding, and joint attention.

A pass has candidate rows, which are verified, and mask rows, which draft. Candidate i of a sequence is at position
``start + i``. Slot j of the mask group of accepted length k is at position ``start + k + 1 + j``. The rows of a pass are
the candidates of every sequence in order, then the mask rows of every sequence, groups in ascending order.

Heads, caches and outputs are bf16 or f16; all tensors of a call have the same type.
"""

from __future__ import annotations

import sys
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Iterable, Sequence

import tvm_ffi

from ._dlpack import table_of_int64
from ._library import OptionalTensor, Tensor, groups_as_bits, read, run, write

_HOST, _CUDA = 1, 2  # DLPack's device types


@dataclass(frozen=True)
class SequenceRows:
    """The rows of one sequence in a pass."""

    pages: Sequence[int]
    """Page ids of the cache: position p is in page ``pages[p // page_size]``. They cover every cached position."""
    start: int
    """Position n of candidate 0; the positions 0 to n - 1 are cached."""
    candidates: int
    """Number of candidate rows; 0 in a drafting pass."""
    groups: Iterable[int] = ()
    """Accepted lengths that have a mask group, within 64 of the smallest."""
    slots: int = 1
    """Block size S: the number of slots per mask group, 1 to 64; ignored without groups."""


def _device_numbers(device: Any) -> tuple[int, int]:
    kind, _, number = str(device).partition(":")
    if kind not in ("cpu", "cuda") or not (number == "" or number.isdigit()):
        raise ValueError(f"device is {device}, expected cpu or cuda:N")
    return (_HOST, 0) if kind == "cpu" else (_CUDA, int(number or 0))


class PassTables:
    """The tables of a pass on a device. Make them once for the largest batch, upload the rows of each step, and use
    the tables in every layer.

    Launches that use the tables, and uploads, go to the stream that was current when the tables were made. Dropping
    the object waits for the work on the device.

    Args:
        device: ``"cpu"`` for the emulator, ``"cuda:N"``, or a ``torch.device``.
        max_batch: the largest number of sequences.
        max_pages: the largest number of pages of one sequence.

    Raises:
        ValueError: the device is neither a CPU nor a CUDA device, or the tables would have more than 2^31 entries.
        RuntimeError: the device does not exist, or the library has no code for GPUs.
    """

    def __init__(self, device: Any = "cpu", *, max_batch: int, max_pages: int):
        self._kind, self._number = _device_numbers(device)
        self._max_pages = max_pages
        with self._stream():
            self._object = run("pass_tables", self._kind, self._number, max_batch, max_pages)

    def _stream(self) -> Any:
        """Returns a context in which the launches of a call without tensors on the device use PyTorch's stream."""
        torch = sys.modules.get("torch")
        if self._kind != _CUDA or torch is None or not torch.cuda.is_available():
            return nullcontext()
        stream = torch.cuda.current_stream(self._number).cuda_stream
        return tvm_ffi.use_raw_stream(tvm_ffi.device(f"cuda:{self._number}"), stream)

    def upload(self, sequences: Sequence[SequenceRows], *, pages: int, page_size: int) -> None:
        """Checks the rows of a step and copies them to the tables, after the earlier work on the stream.

        Sequences may share pages that they read; no two candidates may be written to one token of a page. A captured
        graph must not contain an upload. After an error the tables hold the earlier pass.

        Args:
            sequences: the sequences in batch order.
            pages: number of pages of the cache; page ids are smaller.
            page_size: tokens per page: 1 to 15, or a multiple of 16. With 1, page ids are slots of tokens.

        Raises:
            ValueError: a sequence is invalid; the message names the sequence, the value and the limit.
        """
        ids, table = [], []
        for sequence in sequences:
            lengths = list(sequence.groups)
            first = min(lengths, default=0)
            padding = [0] * max(0, self._max_pages - len(sequence.pages))
            # The library refuses a sequence with more pages than a row has.
            ids.append([*sequence.pages[:self._max_pages], *padding])
            table.append([len(sequence.pages), sequence.start, sequence.candidates, first,
                          groups_as_bits(lengths, first), sequence.slots])
        with self._stream():
            run("pass_upload", self._object, table_of_int64(ids, self._max_pages), table_of_int64(table, 6), pages,
                page_size)


def attention_workspace_len(tables: PassTables, rows: int, *, q_heads: int, kv_heads: int, head_dim: int,
                            split: int = 0, masks: bool = True) -> int:
    """Returns the number of f32 elements of workspace that ``joint_attention`` needs for the uploaded pass.

    Args:
        tables: the tables of the uploaded pass.
        rows: the number of rows of the operands, with padding.
        q_heads: number of query heads.
        kv_heads: number of KV heads.
        head_dim: elements per head.
        split: as in ``joint_attention``.
        masks: as in ``joint_attention``.

    Raises:
        ValueError: the kernels do not support the heads.
    """
    return int(run("attention_workspace_len", tables._object, rows, q_heads, kv_heads, head_dim, split, masks))


def rope_table(tables: PassTables, inv_freq: Tensor, cos_sin: Tensor, *, scale: float = 1.0) -> None:
    """Computes the cosine and sine of every row's rotation angles (position times frequency), once per step.

    Args:
        tables: the tables of the pass, whose positions give the angles.
        inv_freq: inverse frequencies in radians per position, f32 ``[head_dim / 2]``.
        cos_sin: written, f32 ``[rows, head_dim / 2, 2]``, aligned to 8 bytes; zeros for rows after the pass.
        scale: the factor of cosine and sine, which is 1 for most models.

    Raises:
        TypeError: an operand has the wrong element type.
        ValueError: an operand has the wrong shape, alignment or device.
    """
    run("rope_table", tables._object, read(inv_freq), write(cos_sin), scale)


def norm_rope_append(tables: PassTables, qkv: OptionalTensor, cos_sin: Tensor, k_cache: Tensor, v_cache: Tensor, *,
                     q_heads: int, masks: bool, q_norm: OptionalTensor = None, k_norm: OptionalTensor = None,
                     eps: float = 1e-6, q: OptionalTensor = None, k: OptionalTensor = None, v: OptionalTensor = None,
                     error: OptionalTensor = None) -> None:
    """Applies the norms, if there are weights, and the rotation to q and k of the candidate rows or of the mask rows,
    and appends the candidates' k and v to the cache.

    Args:
        tables: the tables of the pass.
        qkv: q, k and v heads of every row, ``[rows, (q_heads + 2 kv_heads) head_dim]``, aligned to 16 bytes; q,
            and the k of mask rows, change in place. None if ``q``, ``k`` and ``v`` are present.
        cos_sin: the output of ``rope_table``, f32 ``[rows, head_dim / 2, 2]``.
        k_cache: written, the keys of the layer, ``[pages, page_size, kv_heads, head_dim]`` with any strides that
            are multiples of 8 and adjacent elements within a head.
        v_cache: written, the values of the layer, as ``k_cache``.
        q_heads: number of query heads.
        masks: True to process the mask rows, with the drafter's norms, and False to process the candidate rows.
        q_norm: RMSNorm weight of a q head, f32 ``[head_dim]``; with it, ``k_norm`` is present too.
        k_norm: RMSNorm weight of a k head, f32 ``[head_dim]``.
        eps: epsilon, which the norms add to the mean of squares.
        q: q heads of only the rows of this kind, ``[rows, q_heads head_dim]``, in place of ``qkv``: row 0 is the
            first candidate row or the first mask row. Rows may be parts of longer rows.
        k: k heads, ``[rows, kv_heads head_dim]``, with ``q``.
        v: v heads, ``[rows, kv_heads head_dim]``, with ``q``.
        error: the device error word, u32 or i32 ``[1]``; fault 1 for a page id out of range.

    Raises:
        TypeError: an operand has the wrong element type, or one norm is absent.
        ValueError: an operand has the wrong shape, alignment or device.
    """
    run("norm_rope_append", tables._object, write(qkv), read(cos_sin), read(q_norm), read(k_norm), write(k_cache),
        write(v_cache), q_heads, eps, masks, write(error), write(q), write(k), read(v))


def joint_attention(tables: PassTables, qkv: OptionalTensor, k_cache: Tensor, v_cache: Tensor, out: Tensor,
                    workspace: Tensor, *, q_heads: int, lse: OptionalTensor = None, split: int = 0,
                    masks: bool = True, q: OptionalTensor = None, mask_q: OptionalTensor = None,
                    mask_k: OptionalTensor = None, mask_v: OptionalTensor = None, sinks: OptionalTensor = None,
                    window: int = 0, soft_cap: float = 0.0, error: OptionalTensor = None) -> None:
    """Computes ``softmax(q K^T / sqrt(head_dim)) V`` over the keys that each row of the pass sees, for one layer.

    Candidate i sees the cached positions 0 to n + i. A slot of group k sees the cached positions 0 to n + k, and all
    slots of its group. Products have bf16 or f16 operands and f32 sums. A row's bits do not depend on the other rows of
    the batch.

    Args:
        tables: the tables of the pass.
        qkv: q, k and v heads of every row after ``norm_rope_append``, ``[rows, (q_heads + 2 kv_heads)
            head_dim]``, aligned to 16 bytes. The kernel reads the k and v of mask rows here, and the k and v of
            candidates in the cache. None if ``q`` or ``mask_q`` is present.
        k_cache: the keys of the layer, as in ``norm_rope_append``.
        v_cache: the values of the layer.
        out: written, ``[rows, q_heads head_dim]``, aligned to 16 bytes; zeros for rows after the pass.
        workspace: f32, at least ``attention_workspace_len`` elements, aligned to 8 bytes.
        q_heads: number of query heads, 1 to 16 for each KV head.
        lse: written, the natural logarithm of the sum of exp(score), f32 ``[rows, q_heads]``.
        split: keys per split of a long sequence, a multiple of 64, or 0 for 512.
        masks: whether mask rows take part; False below the tail layers.
        q: q heads of the candidate rows, ``[candidates, q_heads head_dim]``, in place of ``qkv``; None if the pass
            has no candidates. Rows may be parts of longer rows.
        mask_q: q heads of the mask rows, ``[mask rows, q_heads head_dim]``; None if no mask rows take part.
        mask_k: k heads of the mask rows, ``[mask rows, kv_heads head_dim]``, with ``mask_q``.
        mask_v: v heads of the mask rows, ``[mask rows, kv_heads head_dim]``, with ``mask_q``.
        sinks: a score for each query head, f32 ``[q_heads]``, that joins the softmax of every row without a value.
        window: the number of positions that a row sees up to its own (sliding window), at least 65; 0 for no window. A
            mask row sees all slots of its group.
        soft_cap: the cap c, 1 to 1000, by which a score s becomes ``c tanh(s / c)``; 0 for no cap.
        error: the device error word, u32 or i32 ``[1]``; fault 1 for a page id out of range, 8 for a sequence that is
            longer than the workspace allows.

    Raises:
        TypeError: an operand has the wrong element type.
        ValueError: an operand has the wrong shape, alignment or device, or the kernels do not support the heads.
    """
    run("joint_attention", tables._object, read(qkv), read(k_cache), read(v_cache), write(out), write(lse),
        write(workspace), q_heads, split, masks, write(error), read(q), read(mask_q), read(mask_k), read(mask_v),
        read(sinks), window, float(soft_cap))


def follow_verdicts(tables: PassTables, sequences: Tensor, verdicts: Tensor, *, error: OptionalTensor = None) -> None:
    """Moves the mask group of every sequence of a drafting pass to the sequence's accepted length, without a wait of
    the host.

    Args:
        tables: changed until the next upload: a pass with one mask group per sequence and no candidates, each group
            laid out for the largest possible accepted length.
        sequences: index of each sequence's verdict, i32 ``[batch of the pass]``.
        verdicts: the output of ``accept``, u8 ``[batch, 32]``.
        error: the device error word, u32 or i32 ``[1]``; fault 16 for a sequence without a verdict.

    Raises:
        TypeError: an operand has the wrong element type.
        ValueError: an operand has the wrong shape or device.
    """
    run("follow_verdicts", tables._object, read(sequences), read(verdicts), write(error))

"""Operations on rows of the residual stream.

Rows are bf16 or f16; all rows of a call have the same type, are aligned to 16 bytes and have a multiple of 8 columns.
"""

from __future__ import annotations

from ._library import OptionalTensor, Tensor, read, run, write


def embed(ids: Tensor, table: Tensor, out: Tensor, *, error: OptionalTensor = None) -> None:
    """Copies the embeddings of token ids: ``out[r] = table[ids[r]]``.

    Args:
        ids: token ids, i32 ``[rows]``. An id outside the table gives zeros and the fault 2.
        table: the embedding table, ``[vocab, cols]``.
        out: written, ``[rows, cols]``.
        error: the device error word, u32 or i32 ``[1]``, to which faults are added as bits.

    Raises:
        TypeError: an operand has the wrong element type.
        ValueError: an operand has the wrong shape, alignment or device.
    """
    run("embed", read(ids), read(table), write(out), write(error))


def gather(indices: Tensor, x: Tensor, out: Tensor, *, error: OptionalTensor = None) -> None:
    """Copies rows by index: ``out[r] = x[indices[r]]``.

    Args:
        indices: row indices, i32 ``[rows]``. -1 gives zeros; another index outside ``x`` gives zeros and the fault 16.
        x: the rows to gather from, ``[x_rows, cols]``.
        out: written, ``[rows, cols]``.
        error: the device error word, u32 or i32 ``[1]``.

    Raises:
        TypeError: an operand has the wrong element type.
        ValueError: an operand has the wrong shape, alignment or device.
    """
    run("gather", read(indices), read(x), write(out), write(error))


def rms_norm(x: Tensor, weight: Tensor, out: Tensor, eps: float, *, delta: OptionalTensor = None) -> None:
    """Computes ``x / sqrt(mean(x^2) + eps) * weight`` for each row (arXiv 1910.07467, equation 4).

    Args:
        x: the residual stream, ``[rows, cols]``; with ``delta`` it becomes ``x + delta``, rounded to its type, first.
        weight: the norm's weight, f32 ``[cols]``.
        out: written, ``[rows, cols]``.
        eps: epsilon, which is added to the mean of squares.
        delta: the values to add to ``x`` before the norm, ``[rows, cols]``.

    Raises:
        TypeError: an operand has the wrong element type.
        ValueError: an operand has the wrong shape, alignment or device.
    """
    changed = read(x) if delta is None else write(x)
    run("rms_norm", changed, read(delta), read(weight), write(out), eps)


def add(x: Tensor, delta: Tensor) -> None:
    """Adds ``delta`` to ``x`` in place, with each sum rounded to its type.

    Args:
        x: written, ``[rows, cols]``.
        delta: the values to add, ``[rows, cols]``.

    Raises:
        TypeError: an operand has the wrong element type.
        ValueError: an operand has the wrong shape, alignment or device.
    """
    run("add", write(x), read(delta))


def silu_mul(x: Tensor, out: Tensor) -> None:
    """Computes the MLP's activation ``silu(gate) * up``, where ``silu(z) = z / (1 + exp(-z))``.

    Args:
        x: gate and up projection side by side, ``[rows, 2 cols]``.
        out: written, ``[rows, cols]``.

    Raises:
        TypeError: an operand has the wrong element type.
        ValueError: an operand has the wrong shape, alignment or device.
    """
    run("silu_mul", read(x), write(out))


def silu_add(x: Tensor, bonus: Tensor, owner: Tensor, *, error: OptionalTensor = None) -> None:
    """Computes the hidden layer of the bonus-guided calibrator in place: ``x[r] = silu(x[r] + bonus[owner[r]])``.

    Args:
        x: the draft slots' half of the hidden layer, ``[rows, rank]``, which its activation replaces.
        bonus: the bonus tokens' half, ``[bonus_rows, rank]``.
        owner: the row of ``bonus`` for each row, i32 ``[rows]``. With -1 the row does not change; with another index
            outside ``bonus`` it does not change either, and the fault is 16.
        error: the device error word, u32 or i32 ``[1]``.

    Raises:
        TypeError: an operand has the wrong element type.
        ValueError: an operand has the wrong shape, alignment or device.
    """
    run("silu_add", write(x), read(bonus), read(owner), write(error))

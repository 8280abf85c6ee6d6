"""Plain NumPy versions of the operations, and random operands. bf16 arrays are arrays of uint16 with the bits."""

import numpy as np

ROW_SAMPLING = np.dtype([
    ("seed", "u8"), ("position", "u8"), ("inverse_temperature", "f4"), ("top_p", "f4"), ("min_score", "f4"),
    ("top_k", "i4"), ("purpose_and_slot", "u4"), ("sequence", "i4")])
VERIFY = np.dtype([
    ("seed", "u8"), ("groups", "u8"), ("position", "i8"), ("rule", "i4"), ("drafts", "i4"), ("first_target", "i4"),
    ("first_draft", "i4"), ("rest", "V8")])
DRAFT = np.dtype([
    ("groups", "u8"), ("sequence", "i4"), ("first_slot", "i4"), ("slots", "i4"), ("first_draft", "i4"),
    ("in_logits", "i4"), ("rest", "V4")])
VERDICT = np.dtype([
    ("accepted", "i4"), ("bonus", "i4"), ("probability", "f4"), ("group", "i4"), ("cached_length", "i8"),
    ("fault", "i4"), ("unused", "i4")])


def to_bf16(values):
    """Returns the bits of the nearest bf16 numbers, ties to even."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)


def rounded(values, kind):
    """Returns numbers as f32 (float32), f16 (float16) or bf16 (uint16)."""
    return to_bf16(values) if kind == np.uint16 else np.ascontiguousarray(values, kind)


def to_float(numbers):
    """Returns numbers of f32, f16 or bf16 as f32."""
    if numbers.dtype != np.uint16:
        return numbers.astype(np.float32)
    return (numbers.astype(np.uint32) << 16).view(np.float32)


def bf16s(random, *shape):
    """Returns random bf16 numbers."""
    return to_bf16(random.standard_normal(shape, np.float32))


def halves(random, kind, *shape):
    """Returns random numbers of f16 (float16) or bf16 (uint16)."""
    return rounded(random.standard_normal(shape, np.float32), kind)


def floats(random, *shape):
    """Returns random f32 numbers."""
    return random.standard_normal(shape, np.float32)


def silu(x):
    return x / (1 + np.exp(-x))


def rms_norm(x, weight, eps):
    x = x.astype(np.float64)
    return x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + eps) * weight


def rotated(x, angles):
    """Rotates the halves of heads `[..., head_dim]` by angles `[..., head_dim / 2]`."""
    low, high = np.split(x.astype(np.float64), 2, axis=-1)
    cos, sin = np.cos(angles), np.sin(angles)
    return np.concatenate([low * cos - high * sin, high * cos + low * sin], axis=-1)


def attention(q, k, v, sink=-np.inf, soft_cap=np.inf):
    """Returns attention's output and log-sum of one row: q `[head_dim]`, k and v `[keys, head_dim]`."""
    scores = k.astype(np.float64) @ q.astype(np.float64) / np.sqrt(q.shape[-1])
    if soft_cap < np.inf:
        scores = soft_cap * np.tanh(scores / soft_cap)
    largest = max(scores.max(), sink)
    weights = np.exp(scores - largest)
    total = weights.sum() + np.exp(sink - largest)
    return weights @ v / total, largest + np.log(total)

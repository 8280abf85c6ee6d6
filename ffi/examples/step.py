#!/usr/bin/env python3
"""Runs the step of ffi/examples/step.c through TVM-FFI, with NumPy's arrays, and prints what the C program prints.

    pip install apache-tvm-ffi numpy
    cargo build --workspace
    python ffi/examples/step.py target/debug/libflexdraft_ffi.so

Tensors of bf16 are NumPy's arrays of uint16 behind a DLPack capsule, because NumPy has no bf16.
"""

import ctypes
import sys

import numpy as np
import tvm_ffi

Q_HEADS, KV_HEADS, HEAD_DIM, PAGES, PAGE_SIZE = 2, 1, 64, 3, 16
QKV_COLS, HIDDEN = (Q_HEADS + 2 * KV_HEADS) * HEAD_DIM, Q_HEADS * HEAD_DIM
START, DRAFTS, SLOTS, VOCAB, STRIDE, RANK = 20, 2, 4, 50, 56, 8
CANDIDATES, GROUPS, NEXT = DRAFTS + 1, DRAFTS + 1, SLOTS - 1
ROWS = CANDIDATES + GROUPS * SLOTS
TARGET_DRAW, DRAFT_DRAW = 1, 2
REJECTION, DRAFT_LOGITS, PASS_SLOTS = 1, 1, 0
SAMPLING_BYTES, STATS_BYTES, VERIFY_BYTES, VERDICT_BYTES, DRAFT_BYTES = 40, 48, 48, 32, 32
HOST = (1, 0)  # DLPack's device type and number


class DLTensor(ctypes.Structure):
    _fields_ = [("data", ctypes.c_void_p), ("device_type", ctypes.c_int32), ("device_id", ctypes.c_int32),
                ("ndim", ctypes.c_int32), ("code", ctypes.c_uint8), ("bits", ctypes.c_uint8), ("lanes", ctypes.c_uint16),
                ("shape", ctypes.POINTER(ctypes.c_int64)), ("strides", ctypes.c_void_p), ("byte_offset", ctypes.c_uint64)]


class DLManagedTensor(ctypes.Structure):
    _fields_ = [("tensor", DLTensor), ("context", ctypes.c_void_p), ("deleter", ctypes.c_void_p)]


class Bf16:
    """An array of uint16 as a DLPack tensor of bf16. The array and the tensor live as long as the program."""

    kept = []

    def __init__(self, array: np.ndarray):
        self.array = array

    def __dlpack_device__(self):
        return HOST

    def __dlpack__(self, **_):
        shape = (ctypes.c_int64 * self.array.ndim)(*self.array.shape)
        tensor = DLTensor(self.array.ctypes.data, *HOST, self.array.ndim, 4, 16, 1, shape, None, 0)
        managed = DLManagedTensor(tensor, None, None)
        self.kept.append((self.array, shape, managed))
        capsule = ctypes.pythonapi.PyCapsule_New
        capsule.restype, capsule.argtypes = ctypes.py_object, [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]
        return capsule(ctypes.addressof(managed), b"dltensor", None)


def tensor(array: np.ndarray):
    """Returns an array as a tensor of TVM-FFI over the same memory."""
    return tvm_ffi.from_dlpack(Bf16(array) if array.dtype == np.uint16 else array)


def aligned(shape, dtype) -> np.ndarray:
    """Returns zeros at an address that is a multiple of 64."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    memory = np.zeros(size + 64, np.uint8)
    start = -memory.ctypes.data % 64
    return memory[start:start + size].view(dtype).reshape(shape)


class Noise:
    """The generator of step.c: numbers from -2 to 2 that bf16 holds exactly."""

    def __init__(self):
        self.state = 1

    def floats(self, *shape) -> np.ndarray:
        out = aligned(shape, np.float32)
        flat = out.reshape(-1)
        for i in range(flat.size):
            self.state = (self.state * 1664525 + 1013904223) % 2**32
            flat[i] = ((self.state >> 24) - 128) / 64
        return out

    def bf16s(self, *shape) -> np.ndarray:
        return to_bf16(self.floats(*shape))


def to_bf16(values: np.ndarray) -> np.ndarray:
    bits = values.view(np.uint32)
    out = aligned(values.shape, np.uint16)
    out[:] = (bits + 0x7FFF + (bits >> 16 & 1)) >> 16
    return out


def to_float(values: np.ndarray) -> np.ndarray:
    return (values.astype(np.uint32) << 16).view(np.float32)


def product(x: np.ndarray, weight: np.ndarray, stride: int) -> np.ndarray:
    """Returns the product of rows with the rows of a weight, with f32 sums in the order of step.c."""
    out = aligned((x.shape[0], stride), np.float32)
    left, right = to_float(x), to_float(weight)
    total = np.zeros((x.shape[0], weight.shape[0]), np.float32)
    for i in range(x.shape[1]):
        total += left[:, i:i + 1] * right[None, :, i]
    out[:, :weight.shape[0]] = total / np.float32(8)
    return out


def fnv(array: np.ndarray) -> str:
    value = 14695981039346656037
    for byte in array.tobytes():
        value = (value ^ byte) * 1099511628211 % 2**64
    return f"{value:016x}"


def main():
    kernels = tvm_ffi.load_module(sys.argv[1])
    noise = Noise()
    groups = (1 << GROUPS) - 1
    passes = kernels.pass_tables(*HOST, 1, 2)
    page_ids = np.array([[2, 0]], np.int64)
    sequences = np.array([[2, START, CANDIDATES, 0, groups, SLOTS]], np.int64)
    kernels.pass_upload(passes, tensor(page_ids), tensor(sequences), PAGES, PAGE_SIZE)

    qkv = noise.bf16s(ROWS, QKV_COLS)
    k, v = (noise.bf16s(PAGES, PAGE_SIZE, KV_HEADS, HEAD_DIM) for _ in "kv")
    inv_freq = aligned((HEAD_DIM // 2,), np.float32)
    inv_freq[:] = [np.float32(1) / np.float32(1 + i) for i in range(HEAD_DIM // 2)]
    cos_sin = aligned((ROWS, HEAD_DIM // 2, 2), np.float32)
    kernels.rope_table(passes, tensor(inv_freq), tensor(cos_sin), 1.0)
    for masks in (False, True):
        kernels.norm_rope_append(passes, tensor(qkv), tensor(cos_sin), None, None, tensor(k), tensor(v), Q_HEADS, 1e-6,
                                 masks, None)
    elements = kernels.attention_workspace_len(passes, ROWS, Q_HEADS, KV_HEADS, HEAD_DIM, 0, True)
    out, workspace = aligned((ROWS, HIDDEN), np.uint16), aligned((elements,), np.float32)
    kernels.joint_attention(passes, tensor(qkv), tensor(k), tensor(v), tensor(out), None, tensor(workspace), Q_HEADS, 0,
                            True, None)
    print("attention", fnv(out))

    def sample(logits, purpose, rows, calibrator=(None, None, None)):
        """Samples rows of logits; `rows` has their slots and positions. Returns the tokens and the statistics."""
        sampling, stats = aligned((len(rows), SAMPLING_BYTES), np.uint8), aligned((len(rows), STATS_BYTES), np.uint8)
        for row, (slot, position) in enumerate(rows):
            kernels.row_sampling(tensor(sampling), row, 0.9, 0, 1.0, 0.0, purpose, 7, slot, position, -1)
        calibrated = calibrator[0] is not None
        workspace = aligned((kernels.sample_workspace_len(len(rows), VOCAB, calibrated),), np.float32)
        operands = [tensor(operand) if operand is not None else None for operand in calibrator]
        kernels.sample(tensor(logits), VOCAB, None, tensor(sampling), None, None, *operands, tensor(workspace),
                       tensor(stats), calibrated, None)
        return stats.view(np.int32)[:, 0], stats

    head = noise.bf16s(VOCAB, HIDDEN)
    draft = noise.floats(DRAFTS, STRIDE)
    tokens, draft_stats = sample(draft, DRAFT_DRAW, [(j + 1, START) for j in range(DRAFTS)])
    target = product(out[:CANDIDATES], head, STRIDE)
    _, target_stats = sample(target, TARGET_DRAW, [(0, START + i + 1) for i in range(CANDIDATES)])
    verify, verdict = aligned((1, VERIFY_BYTES), np.uint8), aligned((1, VERDICT_BYTES), np.uint8)
    kernels.verify(tensor(verify), 0, REJECTION, DRAFT_LOGITS, 7, START, DRAFTS, 0, 0, 0, 0, groups)
    workspace = aligned((kernels.accept_workspace_len(1, VOCAB),), np.float32)
    committed, arrived = aligned((1, 64), np.int32), aligned((1,), np.uint32)
    ordered = aligned((DRAFTS,), np.int32)
    ordered[:] = tokens
    kernels.accept(VOCAB, tensor(verify), tensor(ordered), tensor(target), tensor(target_stats), None, tensor(draft),
                   tensor(draft_stats), None, None, tensor(workspace), tensor(arrived), tensor(verdict), tensor(committed),
                   False, None)
    accepted, bonus = verdict.view(np.int32)[0, :2]
    print(f"accepted {accepted} of {DRAFTS}, bonus {bonus}, cached {verdict.view(np.int64)[0, 2]}")
    print("committed", *committed[0, :accepted + 1])

    next_draft = aligned((1, DRAFT_BYTES), np.uint8)
    kernels.draft(tensor(next_draft), 0, 0, groups, CANDIDATES, SLOTS, 0, PASS_SLOTS)
    bonus, start = aligned((1,), np.int32), aligned((1,), np.int32)
    sources, draft_rows = aligned((NEXT,), np.int32), aligned((NEXT,), np.int32)
    kernels.select_drafts(tensor(next_draft), tensor(verdict), tensor(bonus), tensor(start), tensor(sources),
                          tensor(draft_rows), None)
    slots, embedding = aligned((NEXT, HIDDEN), np.uint16), aligned((1, HIDDEN), np.uint16)
    kernels.gather(tensor(sources), tensor(out), tensor(slots), None)
    kernels.embed(tensor(bonus), tensor(head), tensor(embedding), None)
    w1, w2, b2 = noise.bf16s(2, RANK, HIDDEN), noise.bf16s(VOCAB, RANK), noise.floats(VOCAB)
    of_bonus, hidden = to_bf16(product(embedding, w1[0], RANK)), to_bf16(product(slots, w1[1], RANK))
    kernels.silu_add(tensor(hidden), tensor(of_bonus), tensor(aligned((NEXT,), np.int32)), None)
    following = product(slots, head, STRIDE)
    tokens, _ = sample(following, DRAFT_DRAW, [(j + 1, int(start[0])) for j in range(NEXT)], (hidden, w2, b2))
    print("calibrated", fnv(following))
    print("next draft", *tokens)


if __name__ == "__main__":
    main()

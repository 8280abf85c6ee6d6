"""Runs operations on CUDA tensors, which are capsules over memory of the driver, and compares them with the emulator.

    python on_cuda.py      prints "the same bits"; needs libcuda.so, which may be the stand-in for the driver
"""

import ctypes
import os

import flexdraft
import numpy as np
import tvm_ffi
from flexdraft._dlpack import HostTensor
from oracles import bf16s, floats

driver = ctypes.CDLL("libcuda.so")


def call(name, *arguments):
    status = getattr(driver, name)(*arguments)
    if status != 0:
        raise RuntimeError(f"{name} returned {status}")


class Pool:
    """Memory of the device that goes to the next tensor of its size as soon as a tensor is dropped, whether launches on
    it have run or not. PyTorch's allocator does this among the tensors of one stream."""

    def __init__(self):
        self.free, self.allocated = {}, []

    def take(self, size):
        if self.free.get(size):
            return self.free[size].pop()
        memory = ctypes.c_uint64()
        call("cuMemAlloc_v2", ctypes.byref(memory), ctypes.c_size_t(size))
        self.allocated.append(memory.value)
        return memory.value

    def close(self):
        for address in self.allocated:
            call("cuMemFree_v2", ctypes.c_uint64(address))


pool = Pool()


class Memory:
    """Memory of the pool, which gets it back when the last reference goes."""

    def __init__(self, size):
        self.size, self.address = size, pool.take(size)

    def __del__(self):
        pool.free.setdefault(self.size, []).append(self.address)


class Tensor(HostTensor):
    """An array's copy on the device, made on a stream; bf16 is uint16."""

    device = (2, 0)

    def __init__(self, array, stream):
        array = np.ascontiguousarray(array)
        code = 4 if array.dtype == np.uint16 else 2
        strides = tuple(stride // array.itemsize for stride in array.strides)
        memory = Memory(array.nbytes)
        # The driver has read the array when the call returns, because the array's memory is not page-locked.
        call("cuMemcpyHtoDAsync_v2", ctypes.c_uint64(memory.address), array.ctypes.data_as(ctypes.c_void_p),
             ctypes.c_size_t(array.nbytes), stream)
        self.like, self.stream = array, stream
        super().__init__(memory.address, array.shape, strides, code, 8 * array.itemsize, memory)

    def host(self):
        """Waits for the stream, and returns the elements."""
        found = np.empty_like(self.like)
        to = found.ctypes.data_as(ctypes.c_void_p)
        call("cuMemcpyDtoHAsync_v2", to, ctypes.c_uint64(self.address), ctypes.c_size_t(found.nbytes), self.stream)
        call("cuStreamSynchronize", self.stream)
        return found


def refused(words, function, *arguments):
    try:
        function(*arguments)
    except ValueError as error:
        assert words in str(error), error
    else:
        raise AssertionError(f"expected a ValueError with {words!r}")


def is_stand_in_with_late_streams():
    """Returns whether work on a stream runs only when something waits for it."""
    name = ctypes.create_string_buffer(64)
    call("cuDeviceGetName", name, 64, 0)
    return b"stand-in" in name.value and os.environ.get("FLEXDRAFT_STAND_IN_STREAMS") == "late"


ROWS = [flexdraft.SequenceRows([1, 0], start=20, candidates=2, groups=[1], slots=3)]
Q_HEADS, KV_HEADS, HEAD_DIM, PAGES, PAGE_SIZE = 2, 1, 64, 2, 16


class Pass:
    """A pass through one layer: a norm, the rotation of all rows, and attention."""

    def __init__(self, random):
        columns = (Q_HEADS + 2 * KV_HEADS) * HEAD_DIM
        self.x, self.weight = bf16s(random, 5, columns), floats(random, columns)
        self.inv_freq = (0.9 ** np.arange(HEAD_DIM // 2)).astype(np.float32)
        self.cache = [bf16s(random, PAGES, PAGE_SIZE, KV_HEADS, HEAD_DIM) for _ in "kv"]

    def run(self, device, tensor):
        """Launches the pass on tensors that `tensor` makes of arrays. Returns attention's output and the tables of the
        pass; all other tensors are dropped while the launches may still wait on the stream."""
        x, weight, inv_freq = tensor(self.x), tensor(self.weight), tensor(self.inv_freq)
        k_cache, v_cache = (tensor(part) for part in self.cache)
        qkv, cos_sin = tensor(np.zeros_like(self.x)), tensor(np.zeros((5, HEAD_DIM // 2, 2), np.float32))
        out = tensor(np.zeros((5, Q_HEADS * HEAD_DIM), np.uint16))
        tables = flexdraft.PassTables(device, max_batch=1, max_pages=2)
        # The upload waits for the stream, and the launches do not.
        tables.upload(ROWS, pages=PAGES, page_size=PAGE_SIZE)
        length = flexdraft.attention_workspace_len(tables, 5, q_heads=Q_HEADS, kv_heads=KV_HEADS, head_dim=HEAD_DIM)
        workspace = tensor(np.zeros(length, np.float32))
        flexdraft.rms_norm(x, weight, qkv, 1e-6)
        flexdraft.rope_table(tables, inv_freq, cos_sin)
        for masks in (False, True):
            flexdraft.norm_rope_append(tables, qkv, cos_sin, k_cache, v_cache, q_heads=Q_HEADS, masks=masks)
        flexdraft.joint_attention(tables, qkv, k_cache, v_cache, out, workspace, q_heads=Q_HEADS)
        return out, tables


def tensors_are_dropped_while_in_flight(a_pass, streams):
    """Launches a pass on the first stream, drops its tensors, and writes to their memory before the launches have run."""
    expected, _ = a_pass.run("cpu", np.copy)
    assert expected.any()

    def output(writer, before=lambda: None):
        """Returns the output if the stream `writer` writes to the memory of the dropped tensors."""
        out, tables = a_pass.run("cuda:0", lambda array: Tensor(array, streams[0]))
        # The package keeps no operand after a call: of the memory of the tensors, only the output's is in use.
        free = [(address, size) for size, addresses in pool.free.items() for address in addresses]
        assert len(free) == len(pool.allocated) - 1
        before()
        for address, size in free:
            call("cuMemsetD8Async", ctypes.c_uint64(address), ctypes.c_ubyte(0x3F), ctypes.c_size_t(size), writer)
        if writer is not streams[0]:
            call("cuStreamSynchronize", writer)
        # The tables' memory belongs to the library, which waits for the launches before it frees the memory.
        del tables
        return out.host()

    # A tensor may be dropped if its memory is used again on the stream of the launch.
    np.testing.assert_array_equal(output(streams[0]), expected)

    def wait():
        event = ctypes.c_void_p()
        call("cuEventCreate", ctypes.byref(event), 2)
        call("cuEventRecord", event, streams[0])
        call("cuStreamWaitEvent", streams[1], event, 0)
        call("cuEventDestroy_v2", event)

    # Another stream has to wait for the launch first.
    np.testing.assert_array_equal(output(streams[1], wait), expected)
    # Without the wait, the launches read what the other stream wrote: the comparisons above can fail.
    if is_stand_in_with_late_streams():
        assert (output(streams[1]) != expected).any()


def main():
    context, streams = ctypes.c_void_p(), [ctypes.c_void_p(), ctypes.c_void_p()]
    call("cuInit", 0)
    call("cuDevicePrimaryCtxRetain", ctypes.byref(context), 0)
    call("cuCtxSetCurrent", context)
    for stream in streams:
        call("cuStreamCreate", ctypes.byref(stream), 1)
    random = np.random.default_rng(6)
    device = tvm_ffi.device("cuda:0")
    with tvm_ffi.use_raw_stream(device, streams[0].value):
        tensors_are_dropped_while_in_flight(Pass(random), streams)
        tables = flexdraft.PassTables("cuda:0", max_batch=1, max_pages=2)
        tables.upload(ROWS, pages=PAGES, page_size=PAGE_SIZE)
    inv_freq, cos_sin = (Tensor(np.ones(shape, np.float32), streams[0]) for shape in ((2,), (5, 2, 2)))
    with tvm_ffi.use_raw_stream(device, streams[1].value):
        refused("stream", flexdraft.rope_table, tables, inv_freq, cos_sin)
    x = bf16s(random, 3, 64)
    refused("CUDA device 0", flexdraft.add, x, Tensor(x, streams[0]))

    del tables
    pool.close()
    for stream in streams:
        call("cuStreamDestroy_v2", stream)
    call("cuDevicePrimaryCtxRelease_v2", 0)
    print("the same bits")


if __name__ == "__main__":
    main()

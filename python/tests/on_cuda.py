"""Runs operations on CUDA tensors, which are capsules over memory of the driver, and compares them with the emulator.

    python on_cuda.py      prints "the same bits"; needs libcuda.so, which may be the stand-in for the driver
"""

import ctypes

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


class Tensor(HostTensor):
    """An array's copy on the device; bf16 is uint16."""

    device = (2, 0)

    def __init__(self, array, stream):
        code = 4 if array.dtype == np.uint16 else 2
        strides = tuple(stride // array.itemsize for stride in array.strides)
        self.memory = ctypes.c_uint64()
        call("cuMemAlloc_v2", ctypes.byref(self.memory), ctypes.c_size_t(array.nbytes))
        call("cuMemcpyHtoDAsync_v2", self.memory, array.ctypes.data_as(ctypes.c_void_p), ctypes.c_size_t(array.nbytes), stream)
        call("cuStreamSynchronize", stream)
        self.array, self.stream = array, stream
        super().__init__(self.memory.value, array.shape, strides, code, 8 * array.itemsize, self)

    def host(self):
        """Waits for the stream, and returns the elements."""
        found = np.empty_like(self.array)
        to = found.ctypes.data_as(ctypes.c_void_p)
        call("cuMemcpyDtoHAsync_v2", to, self.memory, ctypes.c_size_t(found.nbytes), self.stream)
        call("cuStreamSynchronize", self.stream)
        return found


def refused(words, function, *arguments):
    try:
        function(*arguments)
    except ValueError as error:
        assert words in str(error), error
    else:
        raise AssertionError(f"expected a ValueError with {words!r}")


def main():
    context, streams = ctypes.c_void_p(), [ctypes.c_void_p(), ctypes.c_void_p()]
    call("cuInit", 0)
    call("cuDevicePrimaryCtxRetain", ctypes.byref(context), 0)
    call("cuCtxSetCurrent", context)
    for stream in streams:
        call("cuStreamCreate", ctypes.byref(stream), 1)
    random = np.random.default_rng(6)
    x, weight, out = bf16s(random, 3, 64), floats(random, 64), np.zeros((3, 64), np.uint16)
    inv_freq, cos_sin = np.array([1, 0.5], np.float32), np.zeros((3, 2, 2), np.float32)
    rows = [flexdraft.SequenceRows([0], start=5, candidates=3)]

    def run(device, tensors):
        """Runs a norm and the rope table of a pass. Returns the tables."""
        x, weight, out, inv_freq, cos_sin = tensors
        flexdraft.rms_norm(x, weight, out, 1e-6)
        tables = flexdraft.PassTables(device, max_batch=1, max_pages=1)
        tables.upload(rows, pages=1, page_size=16)
        flexdraft.rope_table(tables, inv_freq, cos_sin)
        return tables

    host = (x, weight, out, inv_freq, cos_sin)
    tensors = [Tensor(array, streams[0]) for array in (x, weight, np.zeros_like(out), inv_freq, np.zeros_like(cos_sin))]
    run("cpu", host)
    device = tvm_ffi.device("cuda:0")
    with tvm_ffi.use_raw_stream(device, streams[0].value):
        tables = run("cuda:0", tensors)
    np.testing.assert_array_equal(tensors[2].host(), out)
    np.testing.assert_array_equal(tensors[4].host(), cos_sin)
    assert out.any() and cos_sin.any()
    with tvm_ffi.use_raw_stream(device, streams[1].value):
        refused("stream", flexdraft.rope_table, tables, tensors[3], tensors[4])
    refused("CUDA device 0", flexdraft.add, x, tensors[0])

    del tables
    for tensor in tensors:
        call("cuMemFree_v2", tensor.memory)
    for stream in streams:
        call("cuStreamDestroy_v2", stream)
    call("cuDevicePrimaryCtxRelease_v2", 0)
    print("the same bits")


if __name__ == "__main__":
    main()

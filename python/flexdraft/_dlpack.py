"""NumPy arrays and host memory as DLPack tensors, without copies.

NumPy refuses to export read-only arrays and has no bf16, so this module makes the capsules itself. The structs are those
of dlpack.h 1.x.
"""

from __future__ import annotations

import ctypes
import sys
from array import array
from typing import Any, Iterable

_INT, _UINT, _FLOAT, _BFLOAT = 0, 1, 2, 4  # DLPack's codes of element types
_CPU = (1, 0)  # DLPack's device type and number of host memory


class _DLTensor(ctypes.Structure):
    _fields_ = [
        ("data", ctypes.c_void_p), ("device_type", ctypes.c_int32), ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32), ("code", ctypes.c_uint8), ("bits", ctypes.c_uint8), ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)), ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    ]


class _DLManagedTensor(ctypes.Structure):
    _fields_ = [("tensor", _DLTensor), ("context", ctypes.c_void_p), ("deleter", ctypes.c_void_p)]


# What a capsule's consumer still uses, by the address of the capsule's struct.
_lent: dict[int, tuple[Any, ...]] = {}


def _give_back(managed: int) -> None:
    _lent.pop(managed, None)


_deleter = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(_give_back)

_new_capsule = ctypes.pythonapi.PyCapsule_New
_new_capsule.restype, _new_capsule.argtypes = ctypes.py_object, [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]


class HostTensor:
    """A DLPack tensor over host memory, which `owner` keeps alive. Strides are in elements."""

    device = _CPU

    def __init__(self, address: int, shape: tuple[int, ...], strides: tuple[int, ...], code: int, bits: int,
                 owner: Any):
        self.address, self.shape, self.strides, self.code, self.bits = address, shape, strides, code, bits
        self.owner = owner

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.device

    def __dlpack__(self, **_: Any) -> Any:
        sizes = ctypes.c_int64 * len(self.shape)
        shape, strides = sizes(*self.shape), sizes(*self.strides)
        tensor = _DLTensor(self.address, *self.device, len(self.shape), self.code, self.bits, 1, shape, strides, 0)
        managed = _DLManagedTensor(tensor, None, ctypes.cast(_deleter, ctypes.c_void_p))
        address = ctypes.addressof(managed)
        _lent[address] = (managed, shape, strides, self.owner)
        return _new_capsule(address, b"dltensor", None)


def table_of_int64(rows: list[list[int]], columns: int) -> HostTensor:
    """Returns rows of integers as a tensor of i64 on the host, `[len(rows), columns]`."""
    try:
        memory = array("q", [number for row in rows for number in row])
    except OverflowError as error:
        raise ValueError(f"a number does not fit 64 bits: {error}") from None
    return HostTensor(memory.buffer_info()[0], (len(rows), columns), (columns, 1), _INT, 64, memory)


def vector_of_int64(numbers: Iterable[int]) -> HostTensor:
    """Returns integers as a tensor of i64 on the host, `[len(numbers)]`."""
    numbers = list(numbers)
    table = table_of_int64([numbers], len(numbers))
    return HostTensor(table.address, (len(numbers),), (1,), _INT, 64, table.owner)


def vector_of_float(numbers: Iterable[float]) -> HostTensor:
    """Returns numbers as a tensor of f32 on the host, `[len(numbers)]`."""
    memory = array("f", numbers)
    return HostTensor(memory.buffer_info()[0], (len(memory),), (1,), _FLOAT, 32, memory)


def _of_numpy(values: Any, write: bool) -> HostTensor:
    dtype = values.dtype
    if write and not values.flags.writeable:
        raise ValueError("a read-only NumPy array is an output, expected a writable array")
    if dtype.name in ("bfloat16", "uint16"):
        code = _BFLOAT
    elif dtype.kind in "iuf":
        code = {"i": _INT, "u": _UINT, "f": _FLOAT}[dtype.kind]
    else:
        raise TypeError(f"a NumPy array has elements of {dtype}, expected numbers")
    if not dtype.isnative:
        raise TypeError(f"a NumPy array has elements of {dtype}, expected the machine's byte order")
    if any(stride % dtype.itemsize for stride in values.strides):
        raise ValueError(f"a NumPy array has the strides {values.strides} in bytes, expected whole elements")
    strides = tuple(stride // dtype.itemsize for stride in values.strides)
    return HostTensor(values.ctypes.data, values.shape, strides, code, 8 * dtype.itemsize, values)


def operand(tensor: Any, write: bool) -> Any:
    """Returns what TVM-FFI takes for a tensor: the tensor itself, unless it is a NumPy array."""
    numpy = sys.modules.get("numpy")
    if numpy is not None and isinstance(tensor, numpy.ndarray):
        return _of_numpy(tensor, write)
    return tensor

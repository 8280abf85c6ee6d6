"""The library of the kernels, loaded through TVM-FFI."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any, Optional, Protocol

import tvm_ffi

from ._dlpack import operand


class Tensor(Protocol):
    """A tensor of any framework that exports DLPack tensors, or a NumPy array."""

    def __dlpack__(self, **options: Any) -> Any: ...

    def __dlpack_device__(self) -> tuple[int, int]: ...


OptionalTensor = Optional[Tensor]


@lru_cache(maxsize=None)
def _functions() -> Any:
    path = Path(__file__).with_name("libflexdraft_ffi.so")
    if not path.exists():
        raise ImportError(f"{path} is missing, expected it next to the package: install a wheel of flexdraft")
    return tvm_ffi.load_module(str(path))


@lru_cache(maxsize=None)
def _function(name: str) -> Any:
    return _functions()[name]


def read(tensor: OptionalTensor) -> Any:
    """Returns the operand for a tensor that a kernel reads."""
    return operand(tensor, write=False)


def write(tensor: OptionalTensor) -> Any:
    """Returns the operand for a tensor that a kernel writes."""
    return operand(tensor, write=True)


def run(name: str, *arguments: Any) -> Any:
    """Calls a function of the library."""
    return _function(name)(*arguments)


def groups_as_bits(groups: Any, first: int = 0) -> int:
    """Returns accepted lengths as bits from `first` on, as the signed integer of 64 bits with these bits."""
    bits = 0
    for length in groups:
        if not 0 <= length - first < 64:
            raise ValueError(f"a mask group has the accepted length {length}, expected {first} to {first + 63}")
        bits |= 1 << (length - first)
    return signed(bits)


def signed(value: int) -> int:
    """Returns an unsigned integer of 64 bits as the signed integer with the same bits."""
    return value - 2**64 if value >= 2**63 else value

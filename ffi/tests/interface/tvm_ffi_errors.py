"""Calls functions of the library with wrong arguments through the real TVM-FFI, and prints the errors that it raises.

    python tvm_ffi_errors.py libflexdraft_ffi.so
"""

import sys

import numpy as np
import tvm_ffi

kernels = tvm_ffi.load_module(sys.argv[1])
floats = tvm_ffi.from_dlpack(np.zeros((2, 8), np.float32))
passes = kernels.pass_tables(1, 0, 1, 1)
CALLS = [
    ("supports", 32, 8, 96, 100, 64, 64, 0),
    ("supports", 32, 8),
    ("add", 1, 2),
    ("sample_workspace_len", -1, 8, False),
    ("rms_norm", floats, None, floats, floats, 1e-6),
    ("rope_table", floats, floats, floats, 1.0),
    ("rope_table", passes, floats, floats, 1.0),
    ("pass_tables", 3, 0, 1, 1),
]
for name, *arguments in CALLS:
    try:
        kernels[name](*arguments)
        print(f"{name}: no error")
    except (TypeError, ValueError, RuntimeError) as error:
        print(f"{type(error).__name__}: {str(error).splitlines()[0]}")
# The object outlives the last use of the module, and is freed without a fault.
del passes

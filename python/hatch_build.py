"""Build hook of the wheel: adds the library of the crate `ffi`, and the platform tag that its glibc needs.

With the variable FLEXDRAFT_LIBRARY the hook takes that library; otherwise it builds the library with Cargo, in the
profile `release`. The library has code for GPUs if nvcc is there when it is built.

Not maturin: maturin compiles the crate for itself, so that a wheel around the library that the tests have just tested
would need a second compilation, and its only mode for a plain shared library adds the package cffi.
"""

import os
import platform
import re
import subprocess
from pathlib import Path

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

REPOSITORY = Path(__file__).resolve().parent.parent


def built() -> Path:
    """Builds the library with Cargo, and returns its path."""
    target = REPOSITORY / "target"
    command = ["cargo", "build", "--release", "--locked", "-p", "flexdraft-ffi", "--target-dir", str(target)]
    subprocess.run(command, cwd=REPOSITORY, check=True)
    return target / "release" / "libflexdraft_ffi.so"


def platform_tag(library: Path) -> str:
    """Returns the platform tag of PEP 600 for a library, from the newest symbols of glibc that the library needs."""
    needed = [int(minor) for minor in re.findall(rb"GLIBC_2\.(\d+)\b", library.read_bytes())]
    if not needed:
        raise RuntimeError(f"{library} needs no symbol of glibc, expected a shared library for Linux with glibc")
    return f"manylinux_2_{max(needed)}_{platform.machine()}"


class LibraryHook(BuildHookInterface):
    """Adds the library to a wheel. The library has no Python ABI, so the wheel fits every Python 3."""

    def initialize(self, version: str, build_data: dict) -> None:
        given = os.environ.get("FLEXDRAFT_LIBRARY")
        library = Path(given).resolve() if given else built()
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-{platform_tag(library)}"
        build_data["force_include"][str(library)] = "flexdraft/libflexdraft_ffi.so"

#!/usr/bin/env bash
# Installs NVIDIA's CUDA compiler, and the disassembler that cuda/check_device_code.py uses, from the Python
# package index: into .cuda at the root of the repository, or into the folder given as argument. Needs no GPU,
# no driver and no root rights. Does nothing if the packages are installed already.
#
# Prints the single line `NVCC=<path>`, so that this command sets the variable for the build:
#     export "$(cuda/install_nvcc.sh)"
set -euo pipefail

folder=${1:-$(dirname "$0")/../.cuda}
# The Python package index has no disassembler of version 13.0; newer versions read code of 13.0.
packages='nvidia-cuda-nvcc==13.0.*
nvidia-nvvm==13.0.*
nvidia-cuda-crt==13.0.*
nvidia-cuda-cccl==13.0.*
nvidia-cuda-runtime==13.0.*
nvidia-cuda-cuobjdump==13.2.*
nvidia-cuda-nvdisasm==13.2.*'

fail() { printf '%s: %s\n' "$(basename "$0")" "$1" >&2; exit 1; }

command -v python3 >/dev/null || fail 'python3 is needed'
python3 -c 'import ensurepip, venv' 2>/dev/null ||
  fail "Python's venv module is needed; on Debian and Ubuntu it is the package python3-venv"
# nvcc runs the host's compiler as its preprocessor.
command -v g++ >/dev/null || [ -n "${NVCC_CCBIN:-}" ] || fail 'g++ is needed (or NVCC_CCBIN)'

mkdir -p "$folder"
folder=$(cd "$folder" && pwd -P)
# The list of packages is written last, so that an interrupted installation does not count as complete.
stamp=$folder/packages.txt
if [ "$(cat "$stamp" 2>/dev/null)" != "$packages" ]; then
  echo "installing nvcc into $folder" >&2
  python3 -m venv "$folder"
  # shellcheck disable=SC2086 # one argument per package
  "$folder/bin/python" -m pip install --quiet --disable-pip-version-check $packages >&2
fi

nvcc=$(find "$folder" -path '*/nvidia/cu13/bin/nvcc' -type f | head -n 1)
[ -n "$nvcc" ] || fail "the packages brought no nvcc into $folder"
# Compiles an empty kernel, so that a missing part (cicc, ptxas, headers) shows now and not in the build.
trial=$(mktemp -d)
trap 'rm -rf "$trial"' EXIT
echo '__global__ void empty() {}' > "$trial/empty.cu"
"$nvcc" -arch=sm_80 -cubin -o "$trial/empty.cubin" "$trial/empty.cu" >&2 || fail "$nvcc does not work"
echo "$packages" > "$stamp"
echo "NVCC=$nvcc"

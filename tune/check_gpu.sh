#!/usr/bin/env bash
# Type-checks and lints the crate flexdraft-tune under its features `cuda` and `nccl`, and the crate flexdraft-candle under
# its feature `cuda`, on a machine without a GPU and without the CUDA toolkit. Further arguments are passed to clippy.
#
# candle compiles its kernels when it is built with CUDA, and flexdraft its emulator. That takes many minutes and does not
# check the code of these crates, so a script stands in for nvcc and for the C++ compiler: it prints a version and writes
# empty files. The result can be neither linked nor run, so it has its own target folder: otherwise cargo would take it for
# a usable build.
set -euo pipefail
cd "$(dirname "$0")/.."

target=${CARGO_TARGET_DIR:-target}/check-gpu
mkdir -p "$target/nvcc"
# The build of cudarc reads CUDA's version from the fourth line that `nvcc --version` prints.
cat > "$target/nvcc/nvcc" <<'NVCC'
#!/usr/bin/env bash
set -euo pipefail
if [ "${1:-}" = --version ]; then
  printf '%s\n' "A stand-in that compiles nothing" "" "" "Cuda compilation tools, release 13.0, V13.0.0"
  exit
fi
output='' folder='' source=''
while [ $# -gt 0 ]; do
  case $1 in
    -o) output=$2; shift ;;
    --output-directory) folder=$2; shift ;;
    *.cu) source=$1 ;;
  esac
  shift
done
[ -z "$folder" ] || output=$folder/$(basename "${source%.cu}").ptx
[ -n "$output" ]
: > "$output"
NVCC
chmod +x "$target/nvcc/nvcc"
PATH=$(cd "$target/nvcc" && pwd):$PATH
export PATH
# With these variables, the builds of candle and flexdraft would find another nvcc than the stand-in. The
# stand-in lets flexdraft build without its kernels.
unset NVCC CUDA_HOME CUDA_PATH
export CUDA_COMPUTE_CAP=90
CXX=$(command -v nvcc)
export CXX

# The crates are checked in one call, so that each dependency is checked once.
for feature in cuda nccl; do
  cargo clippy -p flexdraft-tune -p flexdraft-candle --all-targets --features "flexdraft-tune/$feature,flexdraft-candle/cuda" \
    --target-dir "$target" --locked "$@" -- -D warnings
done

#!/usr/bin/env bash
# Builds a folder that tests and times the kernels on a machine with a GPU and without Rust: stripped test and benchmark
# binaries, the command, the scripts that compare with other libraries, and run.sh, which runs everything. Also packs
# the folder as DIRECTORY.tar.xz. Needs nvcc (see cuda/install_nvcc.sh).
#
#   benches/gpu/bundle.sh DIRECTORY [CARRIED...]
#
# The bundle does not contain the released pair: run.sh takes it from the repository, which is carried with the bundle.
# Fails if the archive is larger than 12 MiB, or if the repository, the archive and the files and folders CARRIED are
# together larger than 60 MiB.
set -euo pipefail
out=${1:?"usage: benches/gpu/bundle.sh DIRECTORY [CARRIED...]"}
shift
carried=()
for path in "$@"; do
  carried+=("$(realpath "$path")")
done
# An earlier bundle is replaced; any other folder with contents is not touched.
if [ -n "$(ls -A "$out" 2> /dev/null)" ] && [ ! -f "$out/commit" ]; then
  echo "$out has contents and is no bundle; name another folder" >&2
  exit 2
fi
rm -rf "$out"
mkdir -p "$out"
out=$(cd "$out" && pwd)
cd "$(dirname "$0")/../.."

archive_mib=12
together_mib=60

export FLEXDRAFT_REQUIRE_NVCC=1
# cudarc takes the names of the CUDA libraries that it loads from this CUDA version, not from the toolkit on this
# machine.
export CUDARC_CUDA_VERSION=13000
messages=$(mktemp)
trap 'rm -f "$messages"' EXIT
# One call of cargo builds all programs: dependencies then get the features of all targets and are compiled once.
cargo build --profile bundle --locked --message-format=json-render-diagnostics -p flexdraft -p flexdraft-cli \
  -p flexdraft-ffi --lib --bin flexdraft --test kernels --test gpu_device --test golden_vectors --bench kernels > "$messages"
executable() { # KIND NAME: prints the path of a test or a benchmark
  sed -n "s|.*\"kind\":\[\"$1\"\],[^{}]*\"name\":\"$2\".*\"executable\":\"\([^\"]*\)\".*|\1|p" "$messages"
}
strip -o "$out/kernel_tests" "$(executable test kernels)"
strip -o "$out/device_tests" "$(executable test gpu_device)"
strip -o "$out/golden_vectors" "$(executable test golden_vectors)"
strip -o "$out/kernels" "$(executable bench kernels)"
strip -o "$out/flexdraft" "$(sed -n 's|.*"executable":"\([^"]*/flexdraft\)".*|\1|p' "$messages")"
mkdir -p "$out/peers/gpu"
library=$(sed -n 's|.*"\(/[^"]*/libflexdraft_ffi\.so\)".*|\1|p' "$messages" | head -n 1)
strip -o "$out/peers/gpu/libflexdraft_ffi.so" "$library"
cp benches/peers/gpu/*.py "$out/peers/gpu"
# The scripts that time decode steps in PyTorch, with the modules that they import.
for script in benches/peers/step*.py; do
  [ ! -e "$script" ] || cp "$script" "$out/peers"
done
cp benches/gpu/{run.sh,summary.py,fold.py} "$out"
git rev-parse HEAD > "$out/commit"

# xz compresses all files in one window, because all binaries contain the same device code.
archive=$out.tar.xz
tar -C "$(dirname "$out")" -c "$(basename "$out")" | xz -9e -T 1 > "$archive"
(cd "$out" && du -ak . | sort -rn)
bytes() { # the size of the files whose names, each ended by a NUL, are on standard input
  du -bc --files0-from=- 2> /dev/null | tail -n 1 | cut -f 1
}
mib() { printf '%d.%d MiB' $(($1 >> 20)) $((($1 & 1048575) * 10 >> 20)); }
size=$(stat -c %s "$archive")
tree=$(git ls-files -z --cached --others --exclude-standard | bytes)
others=0
[ "${#carried[@]}" -eq 0 ] || others=$(printf '%s\0' "${carried[@]}" | bytes)
together=$((size + tree + others))
echo "$archive: $(mib "$size"), $(du -sm "$out" | cut -f 1) unpacked"
echo "carried together: $(mib "$together"), with the repository ($(mib "$tree")) and other files ($(mib "$others"))"
if [ "$size" -gt $((archive_mib << 20)) ]; then
  echo "the archive has $(mib "$size"), expected at most $archive_mib MiB" >&2
  exit 1
fi
if [ "$together" -gt $((together_mib << 20)) ]; then
  echo "all that is carried together has $(mib "$together"), expected at most $together_mib MiB" >&2
  exit 1
fi

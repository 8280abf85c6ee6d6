#!/usr/bin/env bash
# Builds a folder that checks and times the kernels on a machine with a GPU and no Rust: stripped test and benchmark
# binaries, the command, the scripts that compare with other libraries, a small model, and run.sh, which runs all of it.
# Packs it as DIRECTORY.tar.xz too. Needs nvcc (see cuda/install_nvcc.sh).
#
#   benches/gpu/bundle.sh DIRECTORY
set -euo pipefail
out=${1:?"usage: benches/gpu/bundle.sh DIRECTORY"}
mkdir -p "$out"
out=$(cd "$out" && pwd)
cd "$(dirname "$0")/../.."

# What the archive may take: what carries it may hold 64 MiB, of which the repository itself is 40.
limit_mib=20

export FLEXDRAFT_REQUIRE_NVCC=1
# Libraries are looked for by the names of this CUDA, not of whichever this machine's PATH leads to.
export CUDARC_CUDA_VERSION=13000
messages=$(mktemp)
trap 'rm -f "$messages"' EXIT
# Everything at once, as dependencies get the features that all of it needs and are compiled once.
cargo build --release --locked --message-format=json -p flexdraft -p flexdraft-cli -p flexdraft-bridge --lib \
  --bin flexdraft --test on_gpu --test golden_vectors --bench kernels > "$messages"
for name in on_gpu golden_vectors kernels; do
  binary=$(sed -n "s|.*\"executable\":\"\([^\"]*/$name-[0-9a-f]*\)\".*|\1|p" "$messages")
  strip -o "$out/$name" "$binary"
done
strip -o "$out/flexdraft" "$(sed -n 's|.*"executable":"\([^"]*/flexdraft\)".*|\1|p' "$messages")"
mkdir -p "$out/peers/gpu"
library=$(sed -n 's|.*"\(/[^"]*/libflexdraft_bridge\.so\)".*|\1|p' "$messages" | head -n 1)
strip -o "$out/peers/gpu/libflexdraft_bridge.so" "$library"
cp benches/peers/gpu/*.py "$out/peers/gpu"
# PyTorch's steps, with the modules that they are made of.
for script in benches/peers/step*.py; do
  [ ! -e "$script" ] || cp "$script" "$out/peers"
done
for part in target drafter; do
  mkdir -p "$out/demo/tiny/$part"
  cp demo/tiny/$part/* "$out/demo/tiny/$part"
done
cp benches/gpu/{run.sh,summary.py,fold.py} "$out"
git rev-parse HEAD > "$out/commit"

# One window for all files, as all binaries hold the same device code.
archive=$out.tar.xz
tar -C "$(dirname "$out")" -c "$(basename "$out")" | xz -9 -T 1 > "$archive"
size=$(du -m "$archive" | cut -f 1)
echo "$archive: $size MiB, $(du -sm "$out" | cut -f 1) unpacked"
if [ "$size" -gt "$limit_mib" ]; then
  echo "the archive may have $limit_mib MiB" >&2
  exit 1
fi

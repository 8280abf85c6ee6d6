#!/usr/bin/env bash
# Builds a folder that checks and times the kernels on a machine with a GPU and no Rust: stripped test and
# benchmark binaries, and a script that runs them. Needs nvcc (see cuda/install_nvcc.sh).
#
#   benches/gpu/bundle.sh DIRECTORY
set -euo pipefail
out=${1:?"usage: benches/gpu/bundle.sh DIRECTORY"}
mkdir -p "$out"
out=$(cd "$out" && pwd)
cd "$(dirname "$0")/../.."

# What a bundle may take, as some ways to a GPU allow no more.
limit_mib=55

export FLEXDRAFT_REQUIRE_NVCC=1
messages=$(mktemp)
trap 'rm -f "$messages"' EXIT
cargo test --release --locked --no-run --message-format=json \
  --test on_gpu --test golden_vectors --bench kernels > "$messages"
for name in on_gpu golden_vectors kernels; do
  binary=$(sed -n "s|.*\"executable\":\"\([^\"]*/$name-[0-9a-f]*\)\".*|\1|p" "$messages")
  strip -o "$out/$name" "$binary"
done
cp benches/gpu/run.sh "$out/run.sh"
git rev-parse HEAD > "$out/commit"

size=$(du -sm "$out" | cut -f 1)
echo "bundle: $size MiB"
if [ "$size" -gt "$limit_mib" ]; then
  echo "the bundle may have $limit_mib MiB" >&2
  exit 1
fi

#!/usr/bin/env bash
# Builds a folder that checks the kernels on a machine with a GPU and no Rust: stripped test binaries and a
# script that runs them. Needs nvcc (see cuda/install_nvcc.sh).
#
#   benches/gpu/bundle.sh DIRECTORY
set -euo pipefail
out=${1:?"usage: benches/gpu/bundle.sh DIRECTORY"}
mkdir -p "$out"
out=$(cd "$out" && pwd)
cd "$(dirname "$0")/../.."

export FLEXDRAFT_REQUIRE_NVCC=1
tests=(on_gpu)
for test in "${tests[@]}"; do
  binary=$(cargo test --release --locked --test "$test" --no-run --message-format=json |
    sed -n 's/.*"executable":"\([^"]*\)".*/\1/p' | tail -n 1)
  strip -o "$out/$test" "$binary"
done
cp benches/gpu/run.sh "$out/run.sh"
git rev-parse HEAD > "$out/commit"
du -sh "$out" | sed 's/\t.*//; s/^/bundle: /'

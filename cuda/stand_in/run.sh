#!/usr/bin/env bash
# Runs a command on the stand-in for the CUDA driver and cuBLASLt.
#
#   cuda/stand_in/run.sh COMMAND...                builds the stand-in first
#   cuda/stand_in/run.sh --built DIR COMMAND...    takes the one in DIR, such as target/debug/deps after `cargo test`
#
# docs/testing.md lists the policies.
set -euo pipefail
root=$(cd "$(dirname "$0")/../.." && pwd)
target=${CARGO_TARGET_DIR:-$root/target}
if [ "${1:-}" = --built ]; then
  built=$(cd "$2" && pwd)
  shift 2
else
  (cd "$root" && cargo build --release --locked -p flexdraft-stand-in)
  built=$target/release
fi
libraries=$target/stand_in
mkdir -p "$libraries"
for name in libcuda.so libcublasLt.so; do
  ln -sf "$built/libflexdraft_stand_in.so" "$libraries/$name"
done
LD_LIBRARY_PATH=$libraries${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH} exec "$@"

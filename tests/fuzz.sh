#!/usr/bin/env bash
# Reads randomly damaged model files: configurations, tensors, tokenizers with their additional files, templates, GGUF.
# A panic fails, and so does memory or time beyond the limits of tests/support/bounds.rs.
#
#   tests/fuzz.sh [CASES]     CASES inputs over all readers (default: 1000000); writes benches/results/fuzz.md
set -euo pipefail
cd "$(dirname "$0")/.."
cases=${1:-1000000}
# Every input is some files; a file system in memory takes a fraction of the time of a disk.
[ ! -d /dev/shm ] || export TMPDIR=/dev/shm
result=benches/results/fuzz.md

# Each of these properties damages a file, and runs PROPTEST_CASES cases.
run() { cargo test --workspace --test loading --locked --quiet -- "$@" damage; }
readers=$(run --list | sed -n 's/: test$//p')
count=$(wc -l <<< "$readers")
each=$(((cases + count - 1) / count))
commit=$(git describe --always --dirty --abbrev=12 2>/dev/null || echo 'no repository')
start=$SECONDS
PROPTEST_CASES=$each run
{
  echo "# Damaged model files"
  echo
  echo "$((each * count)) randomly damaged inputs were read in $((SECONDS - start)) seconds on $(nproc) hardware threads"
  echo "($(sed -n 's/^model name.*: //p' /proc/cpuinfo | head -n 1)), on $(date -u +%F), at commit $commit. Each input was read, or refused with"
  echo "a typed error: no panic, and no memory or time beyond the limits of \`tests/support/bounds.rs\`. Each of these properties of the test"
  echo "program \`loading\` had $each of the inputs:"
  echo
  sed 's/.*/- `&`/' <<< "$readers"
} > "$result"

#!/usr/bin/env bash
# Runs tests of the GPU device for much longer than an ordinary test run does: steps without growth of memory on the
# stand-in for the driver, sampled steps on the emulator, and rows of attention beside other rows over long contexts.
#
#   tests/soak.sh     writes benches/results/soak.md
set -euo pipefail
cd "$(dirname "$0")/.."
result=benches/results/soak.md
commit=$(git describe --always --dirty --abbrev=12 2>/dev/null || echo 'no repository')

# run EFFORT PROGRAM TEST: runs a test, and keeps the lines that end with a full stop.
run() {
  FLEXDRAFT_TEST_EFFORT=$1 cargo test --workspace --locked --quiet --test "$2" -- "$3" --nocapture \
    | grep '^[^#].* .*\.$' | sed 's/^/- /'
}
start=$SECONDS
growth=$(run 5000 stand_in an_engine_keeps_nothing_from_request_to_request)
law=$(run 2000 gpu_device chained_drafts_are_lossless_on_the_emulator)
rows=$(run 200 kernels a_candidate_has_its_bits_beside_any_number_of_others)
{
  echo "# Long runs of the GPU device"
  echo
  echo "\`tests/soak.sh\` ran in $((SECONDS - start)) seconds on $(nproc) hardware threads"
  echo "($(sed -n 's/^model name.*: //p' /proc/cpuinfo | head -n 1)), on $(date -u +%F), at commit $commit."
  echo
  echo "Memory of an engine on the stand-in for the driver, with each mode in turn:"
  echo
  echo "$growth"
  echo
  echo "Sampled tokens on the emulator against their exact law:"
  echo
  echo "$law"
  echo
  echo "Bits of attention rows on the emulator:"
  echo
  echo "$rows"
} > "$result"

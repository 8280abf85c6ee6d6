#!/usr/bin/env bash
# Serves random requests on small engines for a long time: arrivals, cancellations, faults, hooks, masks, penalties,
# proposals, shared prefixes, small caches. Wrong tokens, lost pages and growing memory fail.
#
#   tests/serving.sh [REQUESTS]     REQUESTS requests (default: 10000); writes benches/results/serving.md
set -euo pipefail
cd "$(dirname "$0")/.."
requests=${1:-10000}
result=benches/results/serving.md

cargo test --workspace --test serving --locked --no-run
start=$SECONDS
lines=$(FLEXDRAFT_SERVING_REQUESTS=$requests cargo test --workspace --test serving --locked --quiet -- --nocapture \
  | grep ' .*\.$' | grep -v '^test ')
{
  echo "# Random serving"
  echo
  echo "\`tests/serving.sh $requests\` ran in $((SECONDS - start)) seconds on $(nproc) hardware threads"
  echo "($(sed -n 's/^model name.*: //p' /proc/cpuinfo | head -n 1)), on $(date -u +%F), at commit $(git rev-parse --short HEAD)."
  echo
  echo "$lines"
} > "$result"

#!/bin/sh
# Runs `auto` and `ar` on this machine, greedily, at batch sizes 1, 8 and 32, with and without arriving prompts: 9 pairs
# of runs each, or the number that is given. Needs the files that demo/smollm2.sh and demo/smollm2-drafter/prompts.sh
# fetch.
#
#   replay/paired.sh [REPETITIONS] > replay/results/paired.txt
set -eu
cd "$(dirname "$0")/.."

repetitions=${1:-9}
paired() {
    cargo run --quiet --release -p flexdraft-replay -- paired "$@"
}
echo "$(date -u +%Y-%m-%d), commit $(git rev-parse --short HEAD), $repetitions pairs of runs each"
echo
echo "bundled pair"
paired demo/tiny/target demo/tiny/drafter demo/tiny/unseen.jsonl "$repetitions"
echo
echo "SmolLM2"
paired demo/models/SmolLM2-135M-Instruct.Q4_1.gguf demo/smollm2-drafter demo/models/prompts/mtbench.jsonl "$repetitions" chat

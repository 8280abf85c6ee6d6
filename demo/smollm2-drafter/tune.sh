#!/bin/sh
# Makes SmolLM2-135M-Instruct's drafter with the settings in tune.json, into DIR (default: demo/models/smollm2-run).
# The target writes requests and answers them, and the drafter learns to guess the answers. A stopped run resumes when
# the script is run again. To train longer, set more steps in tune.json, or a larger COUNT of transcripts and a new DIR.
# continue.sh trains the drafter in this folder further.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
cd "$here/../.."
out=${1:-demo/models/smollm2-run}
target=demo/models/SmolLM2-135M-Instruct.Q4_1.gguf
[ -e "$target" ] || demo/smollm2.sh
[ -e demo/models/prompts/mtbench.jsonl ] || demo/smollm2-drafter/prompts.sh

# The environment variables are the same as in demo/tiny/pretrain.sh, which explains them.
export RUSTFLAGS="-C target-cpu=native" CANDLE_NUM_THREADS="${CANDLE_NUM_THREADS:-1}"
export MALLOC_MMAP_THRESHOLD_=33554432 MALLOC_TRIM_THRESHOLD_=8589934592
tune() { cargo run --release --package flexdraft-tune -- "$@"; }

tune data --target "$target" --dtype bf16 --count "${COUNT:-1300}" --max-response 256 --max-message 128 --out "$out/data"
tune tune --target "$target" --data "$out/data" --out "$out" --config demo/smollm2-drafter/tune.json
for prompts in humaneval mtbench; do
    tune eval --target "$target" --draft "$out/drafter" --mode sequential \
        --prompts "demo/models/prompts/$prompts.jsonl"
done

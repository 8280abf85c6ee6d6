#!/bin/sh
# Trains this drafter further, together with a chain, with the settings in continue.json, into DIR (default:
# demo/models/smollm2-continued), and evaluates it. It learns from transcripts that it has not learned from before. A stopped
# run resumes when the script is run again. DATA names a folder of transcripts to go on from; COUNT is their total number
# (default: 6500).
set -eu

here=$(cd "$(dirname "$0")" && pwd)
cd "$here/../.."
out=${1:-demo/models/smollm2-continued}
data=${DATA:-$out/data}
target=demo/models/SmolLM2-135M-Instruct.Q4_1.gguf
[ -e "$target" ] || demo/smollm2.sh
[ -e demo/models/prompts/mtbench.jsonl ] || demo/smollm2-drafter/prompts.sh

# The environment variables are the same as in demo/tiny/pretrain.sh, which explains them.
export RUSTFLAGS="-C target-cpu=native" CANDLE_NUM_THREADS="${CANDLE_NUM_THREADS:-1}"
export MALLOC_MMAP_THRESHOLD_=33554432 MALLOC_TRIM_THRESHOLD_=8589934592
tune() { cargo run --release --package flexdraft-tune -- "$@"; }

tune data --target "$target" --dtype bf16 --count "${COUNT:-6500}" --max-response 256 --max-message 128 --out "$data"
mkdir -p "$out/unseen"
sed '1,1300d' "$data/train.jsonl" >"$out/unseen/train.jsonl"
cp "$data/heldout.jsonl" "$out/unseen/heldout.jsonl"
tune tune --target "$target" --data "$out/unseen" --out "$out" --config demo/smollm2-drafter/continue.json
for prompts in humaneval mtbench; do
    tune eval --target "$target" --draft "$out/drafter" --mode sequential \
        --prompts "demo/models/prompts/$prompts.jsonl"
done

#!/bin/sh
# Makes the tiny target's drafter with the settings in tune.json, into DIR (default: demo/tiny/run), and a chain for the
# drafter with the settings in chain.json, into DIR/chained. The target continues windows of the text that fetch.sh
# fetched, and the drafter learns to guess these continuations. A stopped run resumes when the script is run again.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
cd "$here/../.."
out=${1:-demo/tiny/run}
target=demo/tiny/target
text=demo/tiny/text

# The environment variables are the same as in pretrain.sh, which explains them.
export RUSTFLAGS="-C target-cpu=native" CANDLE_NUM_THREADS="${CANDLE_NUM_THREADS:-1}"
export MALLOC_MMAP_THRESHOLD_=33554432 MALLOC_TRIM_THRESHOLD_=8589934592
tune() { cargo run --release --package flexdraft-tune -- "$@"; }

for part in train heldout; do cat "$text/$part"/*.txt >"$text/$part.txt"; done
tune data --target "$target" --continue "$text/train.txt" --window 32 --count 1600 --held-out 0 \
    --max-response 192 --out "$out/data"
tune data --target "$target" --continue "$text/heldout.txt" --window 32 --count 64 --held-out 1 \
    --max-response 192 --out "$out/unseen"
cp "$out/unseen/heldout.jsonl" "$out/data/heldout.jsonl"
tune tune --target "$target" --data "$out/data" --out "$out" --config demo/tiny/tune.json
tune chain --target "$target" --draft "$out/drafter" --data "$out/data" --out "$out/chained" --config demo/tiny/chain.json
for drafter in "$out/drafter" "$out/chained/drafter"; do
    tune eval --target "$target" --draft "$drafter" --prompts demo/tiny/unseen.jsonl --raw
done
# What bounds the acceptance length: the oracle's, and that of counted trigrams.
tune data --target "$target" --prompts demo/tiny/unseen.jsonl --raw --held-out 1 --max-response 128 --out "$out/prompts"
tune headroom --target "$target" --draft "$out/chained/drafter" --transcripts "$out/prompts/heldout.jsonl" \
    --counted "$out/data/train.jsonl"

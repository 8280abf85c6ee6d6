#!/bin/sh
# Makes every run of docs/claims.md, on demo/tiny's target, into DIR (default: docs/claims/runs), and collects the
# numbers in docs/claims/results.json. Needs the text of demo/tiny/fetch.sh. A finished run is not made again; a stopped
# run resumes. Settings: SEEDS ("0 1 2"), JOBS (2, the runs at a time) and RUNS, a pattern of grep -E for the names of
# the runs to make; the other runs keep their numbers.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
cd "$here/../.."
out=${1:-docs/claims/runs}
target=demo/tiny/target
text=demo/tiny/text
RUNS=${RUNS:-.*}
mkdir -p "$out"

export RUSTFLAGS="${RUSTFLAGS:--C target-cpu=native}"
cargo build --quiet --release --package flexdraft-tune
TUNE=${CARGO_TARGET_DIR:-target}/release/flexdraft-tune
# Two concurrent tuning runs with one thread each lose less time waiting than one run with two threads.
export TUNE out target CANDLE_NUM_THREADS=1 RAYON_NUM_THREADS=1
export MALLOC_MMAP_THRESHOLD_=33554432 MALLOC_TRIM_THRESHOLD_=8589934592

# Three sets of transcripts: the target's continuations of training text, the training text's own words, and the
# target's continuations of unseen text, as in demo/tiny/tune.sh.
for part in train heldout; do cat "$text/$part"/*.txt >"$text/$part.txt"; done
data() { "$TUNE" data --target "$target" --window 32 --max-response 192 "$@"; }
data --continue "$text/train.txt" --count 1600 --held-out 0 --out "$out/on-policy"
data --continue "$text/train.txt" --count 1600 --held-out 0 --as-written --out "$out/as-written"
data --continue "$text/heldout.txt" --count 64 --held-out 1 --out "$out/unseen"
for of in on-policy as-written; do cp "$out/unseen/heldout.jsonl" "$out/$of/heldout.jsonl"; done

# Prints one line per tuning run: its name, its transcripts, and its options that differ from base.json.
runs() {
    for seed in ${SEEDS:-0 1 2}; do
        echo "base-$seed on-policy --seed $seed"
        echo "no-calibrator-$seed on-policy --seed $seed --rank 0"
        echo "whole-tail-$seed on-policy --seed $seed --whole-tail true"
        for layers in 1 2 3; do echo "tail-$layers-$seed on-policy --seed $seed --tail-layers $layers"; done
        echo "block-4-$seed on-policy --seed $seed --block-size 4 --gamma 2"
        echo "block-16-$seed on-policy --seed $seed --block-size 16 --gamma 7"
        echo "as-written-$seed as-written --seed $seed"
        echo "calibrator-rate-4-$seed on-policy --seed $seed --calibrator-rate 4"
        echo "shortlist-768-$seed on-policy --seed $seed --shortlist 768"
        # The runs steps-of-* have the same totals of anchors and evaluations as the others, with half or twice
        # the anchors per step.
        echo "steps-of-32-$seed on-policy --seed $seed --anchors 4 --steps 480 --evaluate-every 160"
        echo "steps-of-128-$seed on-policy --seed $seed --anchors 16 --steps 120 --evaluate-every 40"
    done
}
chosen() { grep -E -- "^($RUNS)-[0-9]+ " || true; }
runs | chosen | xargs -r -P "${JOBS:-2}" -L 1 sh -c '
    name=$1 data=$2
    shift 2
    [ -e "$out/$name/done" ] && exit 0
    "$TUNE" tune --target "$target" --data "$out/$data" --out "$out/$name" --config docs/claims/base.json "$@" \
        2>"$out/$name.log" || exit 255
    rm -f "$out/$name/checkpoint.safetensors"
    touch "$out/$name/done"
' run

# Prints one line per run that trains a chain for the bundled drafter, with the options that differ from chain.json.
chains() {
    for seed in ${SEEDS:-0 1 2}; do
        for kind in pair hidden; do
            echo "chain-$kind-$seed --seed $seed --kind $kind"
            echo "chain-$kind-bonus-only-$seed --seed $seed --kind $kind --bonus-only true"
        done
    done
}
# The chains learn from 256 of the continuations of training text, and are measured on the bundled pair's unseen prompts.
if [ -n "$(chains | chosen)" ]; then
    "$TUNE" data --target "$target" --prompts demo/tiny/unseen.jsonl --raw --held-out 1 --max-response 128 --out "$out/prompts"
    mkdir -p "$out/chained"
    head -n 256 "$out/on-policy/train.jsonl" >"$out/chained/train.jsonl"
    cp "$out/prompts/heldout.jsonl" "$out/chained/heldout.jsonl"
    [ -e "$out/chained/headroom.json" ] || {
        "$TUNE" headroom --target "$target" --draft demo/tiny/drafter --transcripts "$out/chained/heldout.jsonl" --limit 40 \
            --counted "$out/chained/train.jsonl" --json >"$out/chained/headroom.json.new"
        mv "$out/chained/headroom.json.new" "$out/chained/headroom.json"
    }
fi
chains | chosen | xargs -r -P "${JOBS:-2}" -L 1 sh -c '
    name=$1
    shift
    [ -e "$out/$name/done" ] && exit 0
    "$TUNE" chain --target "$target" --draft demo/tiny/drafter --data "$out/chained" --out "$out/$name" \
        --config docs/claims/chain.json "$@" 2>"$out/$name.log" || exit 255
    rm -f "$out/$name/checkpoint.safetensors"
    touch "$out/$name/done"
' run

# Prints one line per evaluation, which decodes prompts with a drafter.
evaluations() {
    for seed in ${SEEDS:-0 1 2}; do
        # Sequential drafting is cheaper on a CPU; its drafts are the same, as the evaluation `parallel` shows.
        greedy="--mode sequential --draft $out/base-$seed/drafter"
        for threshold in 0 0.003 0.01 0.03 0.1 0.3; do
            echo "threshold-$threshold-$seed $greedy --confidence-threshold $threshold"
        done
        echo "parallel-$seed --mode parallel --draft $out/base-$seed/drafter"
        echo "without-calibrator-$seed --mode sequential --draft $out/no-calibrator-$seed/drafter"
        # The results in results.json are from the bundled drafter before it had a chain.
        for rule in rejection block match independent-match; do
            echo "rule-$rule-$seed --mode sequential --draft demo/tiny/drafter --temperature 1 --rule $rule --seed ${seed}000"
        done
    done
}
evaluations | chosen | xargs -r -P "${JOBS:-2}" -L 1 sh -c '
    name=$1
    shift
    [ -e "$out/$name.json" ] && exit 0
    "$TUNE" eval --target "$target" --threads 1 --prompts demo/tiny/unseen.jsonl --raw --limit 40 --json "$@" \
        >"$out/$name.json.new" 2>"$out/$name.log" || exit 255
    mv "$out/$name.json.new" "$out/$name.json"
' run

"${PYTHON:-python3}" docs/claims/gather.py "$out" docs/claims/results.json

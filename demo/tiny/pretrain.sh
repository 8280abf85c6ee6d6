#!/bin/sh
# Pretrains the tiny target on the text that fetch.sh fetched, with the settings in pretrain.json, into DIR
# (default: demo/tiny/run/target, which git ignores). A stopped run resumes when the script is run again.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
cd "$here/../.."

# Two cores are enough for the matrix products; candle's own threads for sums would only wait for one another.
# The two MALLOC thresholds make glibc keep the memory of one step for the next step.
export RUSTFLAGS="-C target-cpu=native" CANDLE_NUM_THREADS="${CANDLE_NUM_THREADS:-1}"
export MALLOC_MMAP_THRESHOLD_=33554432 MALLOC_TRIM_THRESHOLD_=8589934592

cargo run --release --package flexdraft-tune -- pretrain --config demo/tiny/pretrain.json \
    --text demo/tiny/text/train --heldout demo/tiny/text/heldout --out "${1:-demo/tiny/run/target}"

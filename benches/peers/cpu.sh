#!/usr/bin/env bash
# Compares flexdraft with llama.cpp and transformers on this CPU: installs them into .venv-peers (6 GB, built in some
# minutes), downloads SmolLM2, builds flexdraft, and runs cpu.py with the given arguments.
set -euo pipefail
cd "$(dirname "$0")/../.."
[ -d .venv-peers ] || python3 -m venv .venv-peers
.venv-peers/bin/pip install --quiet --disable-pip-version-check --requirement benches/peers/requirements.txt
cargo build --release --package flexdraft-cli
model=$(demo/smollm2.sh)
.venv-peers/bin/python benches/peers/cpu.py "$model" "$@"

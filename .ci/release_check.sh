#!/usr/bin/env bash
# Checks that the crates and the wheel could be released: licences and sources of dependencies, a dry run of publishing
# every crate in order, and the wheel's tag.
#
#   .ci/release_check.sh [--no-verify]      --no-verify does not build the packaged crates
#
# Needs cargo-deny (`cargo install cargo-deny`), Python with venv, and the index of crates.io. Uploads nothing.
set -euo pipefail
cd "$(dirname "$0")/.."

cargo deny --workspace check licenses bans sources

# Cargo publishes dependencies first, and builds each crate against the packages that it would upload.
cargo publish --workspace --dry-run --locked "$@"

out=target/release_check
rm -rf "$out"
python3 -m venv "$out/venv"
"$out/venv/bin/python" -m pip install --quiet --disable-pip-version-check auditwheel==6.8.2
"$out/venv/bin/python" -m pip wheel --quiet --disable-pip-version-check --no-deps --wheel-dir "$out" ./python
tag=$(basename "$out"/*.whl .whl)
"$out/venv/bin/python" -m auditwheel show "$out"/*.whl | grep -F "\"${tag##*-}\""

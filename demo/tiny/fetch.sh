#!/bin/sh
# Fetches the text that the tiny target is pretrained on, using only cargo: the documented functions of the
# crate core_arch (MIT OR Apache-2.0), Rust's SIMD intrinsics. Writes demo/tiny/text/train/ and
# demo/tiny/text/heldout/, one file per source file. PYTHON names the interpreter (default: python3).
set -eu

crate=core_arch
version=0.1.5
python=${PYTHON:-python3}
here=$(cd "$(dirname "$0")" && pwd)

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
trap 'exit 1' HUP INT TERM

# An otherwise empty package has core_arch as its one dependency, so that `cargo vendor` fetches its sources.
mkdir "$work/src"
: >"$work/src/lib.rs"
cat >"$work/Cargo.toml" <<MANIFEST
[package]
name = "text"
version = "0.0.0"
edition = "2021"

[dependencies]
$crate = "=$version"

[workspace]
MANIFEST
(cd "$work" && cargo vendor --quiet vendor >/dev/null)

"$python" "$here/functions.py" "$work/vendor/$crate/src" "$here/text"

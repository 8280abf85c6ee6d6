#!/usr/bin/env bash
# Builds the bundle of test and benchmark programs and runs all of it on this machine, without a GPU: the kernels on the
# SIMT emulator, steps on the CPU. A run on a GPU should then fail only because of the GPU. Without the build, the
# rehearsal took 4 minutes on two busy cores.
#
#   benches/gpu/rehearse.sh [DIRECTORY]
#
# DIRECTORY (default target/rehearsal) gets the bundle and its report. FLEXDRAFT_BUNDLE names an existing bundle, which
# is then not built. The part with PyTorch is skipped if PyTorch is missing, the part with compute-sanitizer without a
# GPU.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
directory=${1:-$here/../../target/rehearsal}
rm -rf "$directory"
mkdir -p "$directory"
directory=$(cd "$directory" && pwd)
cd "$here/../.."

bundle=${FLEXDRAFT_BUNDLE:-$directory/bundle}
if [ -z "${FLEXDRAFT_BUNDLE:-}" ]; then
  [ -n "${NVCC:-}" ] || export "$(cuda/install_nvcc.sh)"
  benches/gpu/bundle.sh "$bundle"
  # The archive is unpacked and tested, because the archive is the file that is copied to a GPU's machine; it is
  # unpacked without xz, which that machine may lack.
  rm -rf "$bundle"
  python3 -m tarfile -e "$bundle.tar.xz" "$directory"
fi

export FLEXDRAFT_REHEARSE=1 FLEXDRAFT_SECONDS=5400
failed=0
for number in 1 2; do
  FLEXDRAFT_PARTS= "$bundle/run.sh" "$directory/report-$number" "$number" || failed=1
done

# Copies the report's results into a temporary repository, as a user of fold.py copies them into the real repository.
mkdir -p "$directory/root/benches/results" "$directory/root/tests/fixtures"
python3 benches/gpu/fold.py "$directory"/report-{1,2}/report.tgz --root "$directory/root"
python3 - "$directory/root/benches/results/gpu-no-gpu.json" <<'PYTHON' || failed=1
import json, sys

report = json.load(open(sys.argv[1]))
wrong = [f"{run['run']}: {run['status']}" for run in report["runs"]
         if run["status"] != 0 and "skipped" not in run and "advisory" not in run]
expected = {"skipped": {"peers", "sanitizers"}}
wrong += [f"{run['run']}: skipped, {run['skipped']}" for run in report["runs"]
          if "skipped" in run and run["run"] not in expected["skipped"]]
kernels = report["launches"].get("kernels", {})
wrong += [f"{name}: {found}" for name, found in kernels.items() if isinstance(found, str)]
if len(kernels) < 25:
    wrong.append(f"only {len(kernels)} kernels were launched")
for model in ("qwen3-8b", "smollm2-135m"):
    steps = report["steps"].get(model, {}).get("steps", [])
    modes = {step["mode"] for step in steps if step.get("step_seconds", 0) > 0}
    if not {"ar", "parallel"} <= modes:
        wrong.append(f"steps of {model}: {sorted(modes)}")
print("\n".join(wrong) or f"the rehearsal passed: {len(report['runs'])} runs, {len(kernels)} kernels")
sys.exit(bool(wrong))
PYTHON
exit "$failed"

#!/usr/bin/env bash
# Runs a bundle on a machine with a GPU: every test by itself, with a time limit of its own, the benchmark of
# each kernel family, then the tests under compute-sanitizer where there is one. Writes a line of JSON a run to
# report.jsonl as it goes, and a line a measured case to kernels-FAMILY.jsonl, so that a run that is cut short
# still reports; each run's output beside them, and what the GPU made of single instructions in ptx.json.
#
#   run.sh [REPORT_DIRECTORY]
set -uo pipefail
here=$(cd "$(dirname "$0")" && pwd)
out=${1:-$here/report}
mkdir -p "$out"

# libcuda comes with the driver; cuBLASLt from a toolkit or from Python wheels.
folders=$(python3 - <<'PYTHON' 2>/dev/null
import glob, site, sys
roots = site.getsitepackages() + [site.getusersitepackages()]
found = [f for r in roots for f in glob.glob(r + "/nvidia/*/lib")]
print(":".join(found))
PYTHON
)
export LD_LIBRARY_PATH="$folders:/usr/local/cuda/lib64:${LD_LIBRARY_PATH:-}"
find_library() {
  for folder in ${LD_LIBRARY_PATH//:/ } /usr/lib/x86_64-linux-gnu /usr/lib64 /usr/lib/aarch64-linux-gnu; do
    compgen -G "$folder/$1*" > /dev/null && return 0
  done
  ldconfig -p 2> /dev/null | grep -q "$1"
}
for library in libcuda.so libcublasLt.so; do
  if ! find_library "$library"; then
    echo "$library cannot be found" >&2
    exit 1
  fi
done

device=$(nvidia-smi --query-gpu=name,driver_version --format=csv,noheader | head -n 1)
commit=$(cat "$here/commit")
export FLEXDRAFT_REQUIRE_GPU=1
failed=0

# run NAME SECONDS COMMAND...
run() {
  local name=$1 limit=$2 start status
  shift 2
  start=$(date +%s.%N)
  timeout "$limit" "$@" > "$out/$name.log" 2>&1
  status=$?
  python3 - "$name" "$status" "$start" "$device" "$commit" >> "$out/report.jsonl" <<'PYTHON'
import json, sys, time
name, status, start, device, commit = sys.argv[1:]
print(json.dumps({"run": name, "status": int(status), "seconds": round(time.time() - float(start), 3),
                  "device": device, "commit": commit}))
PYTHON
  echo "$name: status $status"
  [ "$status" -eq 0 ] || { failed=1; tail -n 15 "$out/$name.log"; }
}

tests=(glue attention sampling_and_acceptance selection capture decoding)
for test in "${tests[@]}"; do
  run "$test" 120 "$here/on_gpu" --exact "$test"
done
run instructions 60 env FLEXDRAFT_GOLDEN_RESULTS="$out" \
  "$here/golden_vectors" --exact a_gpu_agrees_with_the_models
for family in attention sampling acceptance glue; do
  run "bench-$family" 240 env FLEXDRAFT_BENCH_RESULTS="$out" CRITERION_HOME="$out/criterion" \
    "$here/kernels" --bench "^$family/"
done
if command -v compute-sanitizer > /dev/null; then
  for tool in memcheck racecheck synccheck initcheck; do
    for test in glue attention sampling_and_acceptance selection; do
      run "$test-$tool" 180 compute-sanitizer --tool "$tool" --error-exitcode 9 "$here/on_gpu" --exact "$test"
    done
  done
else
  echo "there is no compute-sanitizer on the PATH" >&2
fi
exit "$failed"

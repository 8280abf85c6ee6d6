#!/usr/bin/env bash
# Runs a bundle on a machine with a GPU, in parts that share one deadline:
#
#   correct      every test of the kernels and the decode loop, PTX instructions, a real decode
#   steps        whole decode steps beside their floors, then the same steps in PyTorch
#   kernels      each family of kernels beside its floor
#   peers        the kernels beside PyTorch, FlashInfer and FlashAttention
#   sanitizers   the kernels' tests under compute-sanitizer
#
#   run.sh [REPORT_DIRECTORY]
#
# FLEXDRAFT_PARTS=correct,steps chooses parts and their order; FLEXDRAFT_SECONDS (540) is the deadline. No run gets more
# time than is left, one that is cut by the deadline says so, and what does not get its turn is reported as skipped;
# neither fails the whole. After every run REPORT_DIRECTORY/report.tgz holds all there is so far: a line of JSON a run
# in report.jsonl, a line a measured case in the other .jsonl files, each run's output. benches/gpu/fold.py reads it.
set -uo pipefail
export LC_ALL=C
here=$(cd "$(dirname "$0")" && pwd)
out=${1:-$here/report}
parts=${FLEXDRAFT_PARTS:-correct,steps,kernels,peers,sanitizers}
deadline=$((SECONDS + ${FLEXDRAFT_SECONDS:-540}))
mkdir -p "$out"
out=$(cd "$out" && pwd)
for part in ${parts//,/ }; do
  case $part in
    correct | steps | kernels | peers | sanitizers) ;;
    *) echo "there is no part $part" >&2; exit 2 ;;
  esac
done

# libcuda comes with the driver; cuBLASLt from a toolkit or from Python wheels.
wheels=$(for python in python3 /opt/torch/.venv/bin/python3; do
  command -v "$python" > /dev/null && "$python" - <<'PYTHON' 2> /dev/null
import glob, site
roots = site.getsitepackages() + [site.getusersitepackages()]
print(*(folder for root in roots for folder in glob.glob(root + "/nvidia/*/lib")), sep=":", end=":")
PYTHON
done)
export LD_LIBRARY_PATH="$wheels/usr/local/cuda/lib64:/usr/local/nvidia/lib64${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"
find_library() {
  local folder
  for folder in ${LD_LIBRARY_PATH//:/ } /usr/lib/x86_64-linux-gnu /usr/lib64 /usr/lib/aarch64-linux-gnu; do
    compgen -G "$folder/$1*" > /dev/null && return 0
  done
  # Not a pipe: grep -q ends before ldconfig has written everything, which is an error of the pipe.
  grep -qF "$1" <<< "$(ldconfig -p 2> /dev/null)"
}
if ! find_library libcuda.so; then
  echo "libcuda.so cannot be found" >&2
  exit 1
fi
find_library libcublasLt.so || echo "libcublasLt.so was not found; whatever multiplies matrices will fail" >&2

# Everything is written here, so that the report is one file, whatever may come back of a machine.
scratch=$(mktemp -d)
report=$scratch/report
mkdir "$report"
pack() {
  # 1 says that a file grew meanwhile; what was there is packed.
  tar --warning=no-file-changed -czf "$scratch/report.tgz" -C "$report" . || [ $? -eq 1 ] || return
  cp "$scratch/report.tgz" "$out/.report.tgz" && mv "$out/.report.tgz" "$out/report.tgz"
}
finish() {
  local running
  running=$(jobs -rp)
  [ -z "$running" ] || kill $running 2> /dev/null
  pack
  rm -rf "$scratch"
}
trap finish EXIT
trap 'exit 143' TERM INT

PATH=$PATH:/usr/local/nvidia/bin:/usr/local/cuda/bin
device=$(nvidia-smi --query-gpu=name,driver_version --format=csv,noheader 2> /dev/null)
device=${device%%$'\n'*}
device=${device:-unknown}
commit=$(cat "$here/commit")
date=$(date -u +%Y-%m-%dT%H:%M:%SZ)
export FLEXDRAFT_REQUIRE_GPU=1
export TORCHINDUCTOR_CACHE_DIR=$scratch/inductor TRITON_CACHE_DIR=$scratch/triton PYTHONUNBUFFERED=1

# line NAME FIELDS: a line of the report.
line() {
  printf '{"run": "%s", %s, "device": "%s", "commit": "%s", "date": "%s"}\n' "$1" "$2" "$device" "$commit" "$date" \
    >> "$report/report.jsonl"
}
skip() { # NAME REASON
  line "$1" "\"status\": null, \"seconds\": 0, \"skipped\": \"$2\""
  echo "$1: skipped, $2"
}
left() { echo $((deadline - SECONDS)); }
allowed() { # CAP: the seconds that a run may take
  local left
  left=$(left)
  echo $(($1 < left ? $1 : left))
}
# A run with less time than this says nothing.
least=5

# run NAME CAP COMMAND...: with `advisory` set its failure fails nothing, with `lines` set its output is that file of
# the report instead of its log.
run() {
  local name=$1 cap=$2 limit log status begin took fields said
  shift 2
  limit=$(allowed "$cap")
  if [ "$limit" -lt "$least" ]; then
    skip "$name" "no time was left"
    return
  fi
  log=$report/$name.log
  begin=${EPOCHREALTIME/./}
  if [ -n "${lines:-}" ]; then
    timeout -k 10 "$limit" "$@" > "$report/$lines" 2> "$log" &
  else
    timeout -k 10 "$limit" "$@" > "$log" 2>&1 &
  fi
  # Nobody else would end it, as it has a process group of its own.
  trap "kill $! 2> /dev/null; exit 143" TERM
  wait $!
  status=$?
  took=$(((${EPOCHREALTIME/./} - begin) / 1000))
  fields=$(printf '"status": %d, "seconds": %d.%03d' "$status" $((took / 1000)) $((took % 1000)))
  said="status $status"
  [ "$status" -eq 0 ] && said=passed
  if [ "$status" -eq 124 ] || [ "$status" -eq 137 ]; then
    said="stopped after $limit s"
    [ "$limit" -lt "$cap" ] && fields+=', "cut": true' && said+=", the deadline"
  fi
  [ -n "${advisory:-}" ] && fields+=', "advisory": true'
  # A log of megabytes says no more than its ends.
  if [ "$(stat -c %s "$log")" -gt 400000 ]; then
    { head -c 200000 "$log"; printf '\n...\n'; tail -c 200000 "$log"; } > "$log.short"
    mv "$log.short" "$log"
  fi
  line "$name" "$fields"
  said=$(printf '%s: %s (%d.%d s)' "$name" "$said" $((took / 1000)) $((took % 1000 / 100)))
  [ "$status" -eq 0 ] || said+=$(printf '\n--- the end of its log\n%s\n---' "$(tail -n 12 "$log")")
  # At once, as others write too.
  printf '%s\n' "$said"
}
# Puts a run beside at most `slots` - 1 others; `settle` waits for all.
slots=1
start() {
  while [ "$(jobs -rp | wc -l)" -ge "$slots" ]; do
    wait -n
    pack
  done
  run "$@" &
}
settle() {
  while [ -n "$(jobs -rp)" ]; do
    wait -n
    pack
  done
  pack
}
alone() {
  start "$@"
  settle
}

correct() {
  local test
  # Most of a test's time is the SIMT host's, on one core.
  slots=$(nproc)
  [ "$slots" -ge 4 ] || slots=4
  start instructions 120 env FLEXDRAFT_GOLDEN_RESULTS="$report" \
    "$here/golden_vectors" --exact a_gpu_agrees_with_the_models
  for test in $("$here/on_gpu" --list --format terse 2> /dev/null | sed -n 's/: test$//p'); do
    start "${test//::/-}" 240 "$here/on_gpu" --exact "$test"
  done
  for way in "greedy --temperature 0" "sampled --temperature 1 --rule match --seed 7"; do
    start "decode-${way%% *}" 120 "$here/flexdraft" generate --device cuda:0 --target "$here/demo/tiny/target" \
      --draft "$here/demo/tiny/drafter" --prompt '#[inline]' --max-new-tokens 128 --mode parallel ${way#* }
  done
  settle
  slots=1
}

steps() {
  local model cap asked
  asked=(--mode ar,sequential,parallel --batch 1,4,16,64 --context 1024,8192 --verify-len 3,7,15 --groups all,4)
  for model in qwen3-8b=120 smollm2-135m=60; do
    cap=${model#*=} model=${model%=*}
    lines=steps-$model.jsonl alone "steps-$model" "$cap" \
      "$here/flexdraft" bench --device cuda:0 --synthetic "$model" "${asked[@]}" --json
  done
  for model in qwen3-8b=80 smollm2-135m=50; do
    cap=${model#*=} model=${model%=*}
    if [ -e "$here/peers/step.py" ]; then
      lines=peer-steps-$model.jsonl alone "peer-steps-$model" "$cap" \
        python3 "$here/peers/step.py" --shape "$model" "${asked[@]}"
    else
      skip "peer-steps-$model" "the bundle has no step.py"
    fi
  done
}

kernels() {
  local family
  for family in attention sampling acceptance glue products; do
    alone "bench-$family" 80 env FLEXDRAFT_BENCH_RESULTS="$report" CRITERION_HOME="$scratch/criterion" \
      "$here/kernels" --bench "^$family/"
  done
}

peers() {
  local seconds
  # It ends by itself before it is stopped, and what it leaves out it names.
  seconds=$(($(allowed 160) - 20))
  if [ "$seconds" -lt "$least" ]; then
    skip peers "no time was left"
    return
  fi
  alone peers 160 python3 "$here/peers/gpu/compare.py" --device cuda --out "$report" --seconds "$seconds"
}

sanitizers() {
  local tool test
  if ! command -v compute-sanitizer > /dev/null; then
    skip sanitizers "there is no compute-sanitizer"
    return
  fi
  slots=$(nproc)
  for tool in memcheck racecheck synccheck initcheck; do
    for test in glue attention sampling selection; do
      # What racecheck says of asynchronous copies has to be read before it is believed.
      advisory=$([ "$tool" = racecheck ] && echo yes) start "$test-$tool" 150 \
        compute-sanitizer --tool "$tool" --error-exitcode 9 "$here/on_gpu" --exact "$test::agrees_with_the_simt_host"
    done
  done
  settle
  slots=1
}

for part in ${parts//,/ }; do
  echo "== $part, $(left) s are left"
  "$part"
done
echo
python3 "$here/summary.py" "$report"
[ -z "$(grep -v '"advisory": true\|"cut": true\|"status": null\|"status": 0,' "$report/report.jsonl")" ]

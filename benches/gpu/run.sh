#!/usr/bin/env bash
# Runs the bundled test and benchmark programs on a machine with a GPU, in parts. The results of a part are useful even if
# later parts fail:
#
#   first        loads and launches every kernel, records the results of single instructions, and surveys the algorithms
#                for matrix products
#   correct      the tests of the kernels, of matrix products and of the decode loop, and decoding with a real model
#   steps        times of whole decode steps, compared with their floors
#   kernels      times of each family of kernels, compared with its floor
#   peers        the kernels compared with PyTorch, FlashInfer and FlashAttention, whole steps compared with PyTorch
#   sanitizers   the kernels' tests under compute-sanitizer
#
#   run.sh [REPORT_DIRECTORY [1|2]]
#
# Run 1 (the default) runs the first three parts, run 2 the others. FLEXDRAFT_PARTS=correct,steps chooses parts and
# their order instead. FLEXDRAFT_SECONDS (default 300) limits the total time, and each part has its own limit. A program
# gets at most the remaining time. A program that the deadline stops is reported as cut, a program that cannot start in
# time as skipped; neither makes the whole fail.
#
# Results are lines of JSON in REPORT_DIRECTORY.files, each written as soon as it is known: report.jsonl has a line per
# program, the other .jsonl files a line per measured case, and each program has a log. REPORT_DIRECTORY/report.tgz is
# an archive of these files, at most some seconds old. It is replaced atomically, so that it is complete even if this
# script is killed. benches/gpu/fold.py reads both.
#
# FLEXDRAFT_REHEARSE=1 runs all of it without a GPU, on the SIMT emulator and the CPU: a test of the bundle.
set -uo pipefail
export LC_ALL=C
here=$(cd "$(dirname "$0")" && pwd)
out=${1:-$here/report}
case ${2:-1} in
  1) usual=first,correct,steps ;;
  2) usual=kernels,peers,sanitizers ;;
  *) echo "unknown run $2; there are runs 1 and 2" >&2; exit 2 ;;
esac
parts=${FLEXDRAFT_PARTS:-$usual}
rehearse=${FLEXDRAFT_REHEARSE:-}
# Time reserved for the end of the script: stopped programs get some seconds to end, then the summary is printed.
grace=3 ending=3
deadline=$((SECONDS + ${FLEXDRAFT_SECONDS:-300} - grace - ending))
for part in ${parts//,/ }; do
  case $part in
    first | correct | steps | kernels | peers | sanitizers) ;;
    *) echo "unknown part $part; the head of this script lists the parts" >&2; exit 2 ;;
  esac
done
mkdir -p "$out"
out=$(cd "$out" && pwd)

# libcuda comes with the driver, and cuBLASLt from a CUDA toolkit or from Python wheels, whose folders are searched
# here.
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
  # `ldconfig -p | grep -q` would fail, because grep ends before ldconfig has written everything.
  grep -qF "$1" <<< "$(ldconfig -p 2> /dev/null)"
}
if [ -z "$rehearse" ]; then
  if ! find_library libcuda.so; then
    echo "libcuda.so cannot be found" >&2
    exit 1
  fi
  find_library libcublasLt.so || echo "libcublasLt.so was not found; whatever multiplies matrices will fail" >&2
  export FLEXDRAFT_REQUIRE_GPU=1
  # Some machines assign memory only on use and report less free memory than the large model's weights need.
  export FLEXDRAFT_AVAILABLE_MEMORY=$((64 << 30))
fi

# A directory for temporary files, which are not part of the report.
scratch=$(mktemp -d)
# The report's files are written beside REPORT_DIRECTORY, because tools that fetch REPORT_DIRECTORY may accept only a
# few files.
report=$out.files
number=1
until mkdir "$report" 2> /dev/null; do
  number=$((number + 1))
  report=$out.files.$number
  [ "$number" -lt 1000 ] || { report=$scratch/report; mkdir "$report"; }
done

PATH=$PATH:/usr/local/nvidia/bin:/usr/local/cuda/bin
device=$(nvidia-smi --query-gpu=name,driver_version --format=csv,noheader 2> /dev/null)
device=${device%%$'\n'*}
device=${device:-unknown}
[ -z "$rehearse" ] || device="no GPU, 0"
commit=$(cat "$here/commit")
date=$(date -u +%Y-%m-%dT%H:%M:%SZ)
export TORCHINDUCTOR_CACHE_DIR=$scratch/inductor TRITON_CACHE_DIR=$scratch/triton PYTHONUNBUFFERED=1

pack() {
  touch "$scratch/packed"
  # tar's status 1 means that a file grew while tar read it; the archive then has the file's earlier contents.
  tar --warning=no-file-changed -czf "$out/.report.tgz" -C "$report" . || [ $? -eq 1 ] || return
  mv "$out/.report.tgz" "$out/report.tgz"
}
keep_packing() {
  trap - EXIT
  # A TERM signal ends the loop between two packings, without delay.
  local stopped=
  trap 'stopped=yes' TERM
  while [ -z "$stopped" ]; do
    [ -z "$(find "$report" -newer "$scratch/packed" -print -quit)" ] || pack
    sleep 1 &
    wait $!
  done
}
pack
keep_packing &
packer=$!
finish() {
  local running
  trap '' TERM INT
  running=$(jobs -rp)
  [ -z "$running" ] || kill $running 2> /dev/null
  # The script waits for the packing loop first, because two simultaneous packings would disturb each other; then for
  # the stopped programs.
  wait "$packer"
  pack
  wait
  pack
  rm -rf "$scratch"
}
trap finish EXIT
trap 'exit 143' TERM INT

# The function `line NAME FIELDS` adds a line to the report.
line() {
  printf '{"run": "%s", %s, "device": "%s", "commit": "%s", "date": "%s"}\n' "$1" "$2" "$device" "$commit" "$date" \
    >> "$report/report.jsonl"
}
skip() { # NAME REASON
  line "$1" "\"status\": null, \"seconds\": 0, \"skipped\": \"$2\""
  echo "$1: skipped, $2"
}
left() { echo $((part_deadline - SECONDS)); }
allowed() { # CAP: prints the seconds that a program may take; CAP does not apply to rehearsals on the SIMT emulator
  local left
  [ -z "$rehearse" ] || { left; return; }
  left=$(left)
  echo $(($1 < left ? $1 : left))
}
# A program is not started if fewer than this many seconds are left.
least=5
# If this script is killed, the program that it started must end too, or it would disturb the next run.
dies_with_it=()
setpriv --pdeathsig KILL true 2> /dev/null && dies_with_it=(setpriv --pdeathsig KILL)

# The function `run NAME CAP COMMAND...` runs a program for at most CAP seconds. With `advisory` set, its failure does
# not fail the whole; with `lines` set, its output goes to that file of the report and not to its log. Returns the
# command's status, or 255 if there is no time left.
run() {
  local name=$1 cap=$2 limit log status begin took fields said command
  shift 2
  limit=$(allowed "$cap")
  if [ "$limit" -lt "$least" ]; then
    skip "$name" "no time was left"
    return 255
  fi
  log=$report/$name.log
  begin=${EPOCHREALTIME/./}
  command=("${dies_with_it[@]}" timeout -k "$grace" "$limit" "${dies_with_it[@]}" "$@")
  if [ -n "${lines:-}" ]; then
    "${command[@]}" > "$report/$lines" 2> "$log" &
  else
    "${command[@]}" > "$log" 2>&1 &
  fi
  # A signal to the subshell does not reach the program, which runs in a process group of its own, so the subshell
  # stops the program.
  [ "$BASHPID" = "$$" ] || trap "kill $! 2> /dev/null; exit 143" TERM
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
  # Only the beginning and the end of a log are kept if the log has megabytes.
  if [ "$(stat -c %s "$log")" -gt 400000 ]; then
    { head -c 200000 "$log"; printf '\n...\n'; tail -c 200000 "$log"; } > "$log.short"
    mv "$log.short" "$log"
  fi
  line "$name" "$fields"
  said=$(printf '%s: %s (%d.%d s)' "$name" "$said" $((took / 1000)) $((took % 1000 / 100)))
  [ "$status" -eq 0 ] || said+=$(printf '\n--- the end of its log\n%s\n---' "$(tail -n 12 "$log")")
  # The message is printed in one write, because other programs print at the same time.
  printf '%s\n' "$said"
  return "$status"
}
# Counts the running programs; the background process that packs the report is not one.
running() { jobs -rp | grep -cvx "$packer"; }
# Starts a program in the background once fewer than `slots` programs run; `settle` waits for all of them.
slots=1
start() {
  while [ "$(running)" -ge "$slots" ]; do
    wait -n
  done
  run "$@" &
}
settle() {
  while [ "$(running)" -gt 0 ]; do
    wait -n
  done
}

first() {
  local from='' begun=0
  slots=4
  start instructions 50 env FLEXDRAFT_GOLDEN_RESULTS="$report" \
    "$here/golden_vectors" --exact a_gpu_agrees_with_the_models --nocapture
  # The program `kernels first` ends at a kernel that fails and is stopped in a kernel that hangs; the next call
  # continues after that kernel.
  until run "first-kernels${from:+-from-$from}" 15 \
    env FLEXDRAFT_BENCH_RESULTS="$report" "$here/kernels" first $from; do
    begun=$(grep -c '^{"case":' "$report/first-kernels.jsonl" 2> /dev/null)
    [ "${begun:-0}" -gt "${from:-0}" ] || break
    from=$begun
  done
  settle
  slots=1
  # The survey of matrix products runs alone, because it measures times.
  run first-products 40 env FLEXDRAFT_BENCH_RESULTS="$report" "$here/kernels" first-products
}

# The function `tests PROGRAM` lists the tests of a program.
tests() { "$here/$1" --list --format terse 2> /dev/null | sed -n 's/: test$//p'; }

correct() {
  local test pair way on
  # One test per core runs at a time (at least 4 tests), because a test spends most of its time in the SIMT emulator or
  # the reference, on one core.
  slots=$(nproc)
  [ "$slots" -ge 4 ] || slots=4
  # Tests in modules `on_the_emulator` are left out: their results would say nothing about this GPU.
  for test in $(tests kernel_tests | grep -v on_the_emulator::); do
    start "${test//::/-}" 110 "$here/kernel_tests" --exact "$test"
  done
  for test in $(tests device_tests | grep '^on_a_gpu::\|^products::'); do
    start "${test//::/-}" 110 "$here/device_tests" --exact "$test"
  done
  # The bundled target and drafter, demo/tiny, may be missing: they are in the repository and not in the bundle.
  on=cuda:0
  [ -z "$rehearse" ] || on=cpu
  for pair in "$here/demo/tiny" demo/tiny none; do
    [ ! -e "$pair/target" ] || break
  done
  for way in "greedy --temperature 0" "sampled --temperature 1 --rule match --seed 7"; do
    if [ "$pair" = none ]; then
      skip "decode-${way%% *}" "demo/tiny is not here"
    else
      start "decode-${way%% *}" 60 "$here/flexdraft" generate --device "$on" --target "$pair/target" \
        --draft "$pair/drafter" --prompt '#[inline]' --max-new-tokens 128 --mode parallel ${way#* }
    fi
  done
  settle
  slots=1
}

# A model's most important steps: a single token, and verifying 4 draft tokens while drafting after each of the 5
# accepted lengths. The small model comes first, because loading the large one's weights takes half a minute.
asked() { # MODEL
  case $1 in
    qwen3-8b) echo --mode ar,parallel --batch 1,16 --context 1024 --verify-len 4 --groups all ;;
    *) echo --mode ar,parallel,sequential --batch 1 --context 1024 --verify-len 4 --groups all ;;
  esac
}
steps() {
  local model cap device_and_shape status
  for model in smollm2-135m=40 qwen3-8b=100; do
    cap=${model#*=} model=${model%=*}
    device_and_shape="--device cuda:0 --launches dependent --synthetic $model"
    [ -z "$rehearse" ] || device_and_shape="--device cpu --quick --synthetic tiny"
    # shellcheck disable=SC2046,SC2086 # lists of arguments
    lines=steps-$model.jsonl run "steps-$model" "$cap" \
      "$here/flexdraft" bench $device_and_shape $(asked "$model") --json
    status=$?
    case $status in 0 | 124 | 137 | 255) continue ;; esac
    # If no set of cuBLASLt algorithms is row-invariant, the step is timed with any algorithms; its tokens are then
    # meaningless.
    # shellcheck disable=SC2046,SC2086
    lines=steps-$model-any-products.jsonl run "steps-$model-any-products" "$cap" \
      "$here/flexdraft" bench $device_and_shape $(asked "$model") --products any --json
  done
}

kernels() {
  local family cap
  for family in attention=50 products=40 sampling=30 acceptance=30 glue=20; do
    cap=${family#*=} family=${family%=*}
    run "bench-$family" "$cap" env FLEXDRAFT_BENCH_RESULTS="$report" CRITERION_HOME="$scratch/criterion" \
      "$here/kernels" --bench "^$family/"
  done
}

peers() {
  local seconds model cap on=cuda
  if ! python3 -c 'import importlib.util, sys; sys.exit(not importlib.util.find_spec("torch"))' 2> /dev/null; then
    skip peers "there is no PyTorch"
    return
  fi
  # compare.py gets 15 seconds less than its limit, so that it ends by itself and names the cases that it skips.
  [ -z "$rehearse" ] || on=cpu
  seconds=$(($(allowed 65) - 15))
  if [ "$seconds" -lt "$least" ]; then
    skip peers "no time was left"
  else
    run peers 65 python3 "$here/peers/gpu/compare.py" --device "$on" --out "$report" --seconds "$seconds"
  fi
  for model in qwen3-8b=40 smollm2-135m=30; do
    cap=${model#*=} model=${model%=*}
    if [ -n "$rehearse" ]; then
      lines=peer-steps-$model.jsonl run "peer-steps-$model" "$cap" python3 "$here/peers/step.py" --cpu
    elif [ -e "$here/peers/step.py" ]; then
      # shellcheck disable=SC2046 # a list of arguments
      lines=peer-steps-$model.jsonl run "peer-steps-$model" "$cap" \
        python3 "$here/peers/step.py" --shape "$model" $(asked "$model")
    else
      skip "peer-steps-$model" "the bundle has no step.py"
    fi
  done
}

sanitizers() {
  local tool test
  if [ -n "$rehearse" ] || ! command -v compute-sanitizer > /dev/null; then
    skip sanitizers "there is no GPU with compute-sanitizer"
    return
  fi
  slots=$(nproc)
  for tool in memcheck racecheck synccheck initcheck; do
    for test in $(tests kernel_tests | grep '::is_the_same_on_every_runtime$'); do
      # racecheck's findings are advisory, because its reports about asynchronous copies must be read before they count
      # as failures.
      advisory=$([ "$tool" = racecheck ] && echo yes) start "${test%%::*}-$tool" 150 \
        compute-sanitizer --tool "$tool" --error-exitcode 9 "$here/kernel_tests" --exact "$test"
    done
  done
  settle
  slots=1
}

# The time limit of each part of the run, in seconds.
declare -A part_limits=([first]=60 [correct]=120 [steps]=120 [kernels]=130 [peers]=110 [sanitizers]=300)
for part in ${parts//,/ }; do
  part_deadline=$((SECONDS + part_limits[$part]))
  [ -z "$rehearse" ] && [ "$part_deadline" -lt "$deadline" ] || part_deadline=$deadline
  echo "== $part, $(left) s are left"
  "$part"
done
echo
python3 "$here/summary.py" "$report"
[ -z "$(grep -v '"advisory": true\|"cut": true\|"status": null\|"status": 0,' "$report/report.jsonl")" ]

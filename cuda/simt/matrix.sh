#!/usr/bin/env bash
# Runs every test of the kernels on the SIMT emulator in two ways that an ordinary test run covers only in part:
#
#   race mode    every access checked: bounds, alignment, races, copies without a wait
#   sanitizers   the host and the kernels without checks, compiled with AddressSanitizer and
#                UndefinedBehaviorSanitizer (build/simt.rs), and Rust with AddressSanitizer; only tests that run
#                such kernels
#
#   cuda/simt/matrix.sh [EFFORT]   the full matrix; writes its results to benches/results/simt_matrix.md
#   cuda/simt/matrix.sh sample     a few cases of each, as .ci/run does
#
# EFFORT is FLEXDRAFT_TEST_EFFORT (docs/testing.md): with 100, the default, each property runs its usual number of
# cases.
#
# Needs a C++ compiler. The sanitizers' runtime comes with Rust. Their flag is an unstable feature, which
# RUSTC_BOOTSTRAP enables on a stable compiler.
set -euo pipefail
cd "$(dirname "$0")/../.."

# Test programs, each with the module whose tests run (without a module, all tests).
tests=("emulator host" golden_vectors "kernels attention" "kernels sampling" "kernels acceptance" "kernels chain"
       "kernels embedding" "kernels norm" "kernels activation" "kernels rope" "kernels selection" "kernels captured_launches" "kernels faults")
kind=full effort=100
case ${1:-} in
  sample) kind=sample effort=25 ;;
  '') ;;
  *[!0-9]*) sed -n 's/^# \{0,1\}//; 2,13p' "$0" >&2; exit 2 ;;
  *) effort=$1 ;;
esac
# The tests of the decode loop take a minute, too long for a sample.
[ "$kind" = sample ] || tests+=("gpu_device decode_loop")

# The commit is read before the results are written, so that they do not make it "dirty".
commit=$(git describe --always --dirty --abbrev=12 2>/dev/null || echo 'no repository')
host=$(rustc -vV | sed -n 's/^host: //p')
log=$(mktemp)
table=$(mktemp)
trap 'rm -f "$log" "$table"' EXIT

# row NAME "PROGRAM [MODULE]" COMMAND...: runs the tests of a program or of one module, and adds a line to the table.
row() {
  local name=$1 test=$2 program module
  shift 2
  read -r program module <<< "$test"
  # A filter of cargo test matches any part of a name: `attention::` also matches `misuse::attention::`.
  "$@" --test "$program" -- ${module:+"$module::" --skip "misuse::$module::"} 2>&1 | tee "$log"
  awk -v name="$name" -v test="$test" '
    /^test result:/ { passed += $4; seconds += $(NF) }
    END { printf "| %s | %s | %d | %.1f |\n", name, test, passed, seconds }' "$log" >> "$table"
}

race() {
  FLEXDRAFT_TEST_CHECKING=accesses FLEXDRAFT_TEST_EFFORT=$effort cargo test --workspace --locked "$@"
}

# AddressSanitizer's detection of use after return is off, because fibers start and end too often for its fake stacks.
sanitized() {
  FLEXDRAFT_SIMT_SANITIZE=1 FLEXDRAFT_TEST_CHECKING=off FLEXDRAFT_TEST_EFFORT=$effort \
    RUSTC_BOOTSTRAP=1 RUSTFLAGS="-Zsanitizer=address" \
    ASAN_OPTIONS=allocator_may_return_null=1:detect_stack_use_after_return=0 \
    cargo test -p flexdraft --features runner --locked --target "$host" --target-dir target/asan "$@"
}

# The tests with planted bugs run first: they show that the sanitizers find bugs at all.
for test in "emulator sanitizers" "${tests[@]}"; do row sanitizers "$test" sanitized; done
# The tests of the floors (the fewest bytes that a kernel can move) need counts of bytes, which only race mode makes.
for test in "${tests[@]}" "kernels floors"; do row "race mode" "$test" race; done

if [ "$kind" = full ]; then
  result=benches/results/simt_matrix.md
  {
    echo "# The kernels' tests in race mode and under sanitizers"
    echo
    echo "\`cuda/simt/matrix.sh\` ran these tests at commit $commit, at FLEXDRAFT_TEST_EFFORT=$effort;"
    echo "g++ $(g++ -dumpfullversion), $(rustc -V | cut -d' ' -f1,2). The script ends at the first finding, so there was none."
    echo
    echo "| | tests | passed | seconds |"
    echo "|---|---|---|---|"
    cat "$table"
  } > "$result"
  echo "$result"
fi

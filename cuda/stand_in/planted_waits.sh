#!/usr/bin/env bash
# Takes the wait for earlier launches out of each kernel, and runs the two tests that must find this: the decode engine on
# the stand-in for the driver, which launches the kernels of the GPU device, and pairs of launches, of every kernel.
#
#   cuda/stand_in/planted_waits.sh     writes benches/results/planted_waits.md
#
# Fails if a kernel without its wait passes.
set -euo pipefail
cd "$(dirname "$0")/../.."
result=benches/results/planted_waits.md
commit=$(git describe --always --dirty --abbrev=12 2>/dev/null || echo 'no repository')
test=engine::no_kernel_begins_too_early
pairs=on_the_emulator::waits::every_missing_wait_is_found
# The kernels that the sources list in their tables, after the name of the family.
all=$(cat cuda/*/*.cu | tr -d '\n ' | grep -o 'FLEXDRAFT_KERNEL_TABLE([^)]*)' | sed 's/[^,]*,//; s/)//' | tr ',' '\n' \
  | grep -v '^golden_')
# The first run builds the programs, and checks that the kernels as they are pass.
cargo test --workspace --locked --quiet --test stand_in -- --exact $test > /dev/null
pairs=$(cargo test --workspace --locked --quiet --test kernels -- --exact $pairs 2>&1 | sed -n 's/^test result: ok. 1 passed.*/found/p')
[ "$pairs" = found ] || { echo "a kernel without its wait passes in pairs of launches" >&2; exit 1; }
found=0 unused=() rows=
for kernel in $all; do
  if output=$(FLEXDRAFT_STAND_IN_UNWAITED=$kernel FLEXDRAFT_STAND_IN_LOG=1 RUST_BACKTRACE=0 \
    cargo test --workspace --locked --quiet --test stand_in -- --exact $test 2>&1); then
    echo "$kernel without its wait passes" >&2
    exit 1
  elif grep -q "$kernel, whose waits a policy takes away, was never launched" <<< "$output"; then
    unused+=("$kernel")
  else
    error=$(grep -o "kernel [a-z0-9_]* failed.*may still run.*" <<< "$output" | head -n 1)
    [ -n "$error" ] || { echo "$kernel without its wait fails for another reason: $output" >&2; exit 1; }
    rows+="| \`$kernel\` | $error |"$'\n'
    found=$((found + 1))
  fi
done
{
  echo "# Kernels without their wait"
  echo
  echo "\`cuda/stand_in/planted_waits.sh\` ran in $SECONDS seconds, on $(date -u +%F), at commit $commit. It takes the wait for"
  echo "earlier launches (\`griddepcontrol.wait\`) out of one kernel after the other. The mistake is found for each of the"
  echo "$(wc -w <<< "$all") kernels in pairs of launches on the emulator, and for $found kernels, all that the test launches, in"
  echo "decode steps on the stand-in for the driver."
  echo
  echo "| kernel without its wait | first error of the decode steps |"
  echo "|---|---|"
  printf '%s' "$rows"
  echo
  echo "The decode steps of the test do not launch these kernels: $(sed 's/[^ ]*/`&`/g; s/ /, /g' <<< "${unused[*]}")."
} > "$result"

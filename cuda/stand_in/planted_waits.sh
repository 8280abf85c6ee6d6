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
steps=engine::no_kernel_begins_too_early
pairs=on_the_emulator::waits::every_missing_wait_is_found
# The kernels that the sources list in their tables, after the name of the family.
all=$(cat cuda/*/*.cu | tr -d '\n ' | grep -o 'FLEXDRAFT_KERNEL_TABLE([^)]*)' | sed 's/[^,]*,//; s/)//' | tr ',' '\n' \
  | grep -v '^golden_')
run() { cargo test --workspace --locked --quiet --test "$1" -- --exact "$2" 2>&1; } # PROGRAM TEST
without_wait_of() { FLEXDRAFT_STAND_IN_UNWAITED=$1 FLEXDRAFT_STAND_IN_LOG=1 RUST_BACKTRACE=0 run stand_in $steps; } # KERNEL

run stand_in $steps > /dev/null
run kernels $pairs | grep -q '1 passed' || { echo "a kernel without its wait passes in pairs of launches" >&2; exit 1; }
# The name of no kernel: the stand-in says which kernels ran.
launched=$({ without_wait_of none || true; } | sed -n 's/.*was never launched; launched: //p')
rows=
for kernel in $launched; do
  if output=$(without_wait_of "$kernel"); then
    echo "$kernel without its wait passes" >&2
    exit 1
  fi
  error=$(grep -m 1 -o "kernel \`[a-z0-9_]*\`.*may still run.*" <<< "$output" || true)
  [ -n "$error" ] || { echo "$kernel without its wait fails for another reason: $output" >&2; exit 1; }
  rows+="| \`$kernel\` | ${error#kernel } |"$'\n'
done
{
  echo "# Kernels without their wait"
  echo
  echo "\`cuda/stand_in/planted_waits.sh\` ran in $SECONDS seconds, on $(date -u +%F), at commit $commit. It takes the wait for"
  echo "earlier launches (\`griddepcontrol.wait\`) out of one kernel after the other. The mistake is found in each of the"
  echo "$(wc -w <<< "$all") kernels by pairs of launches on the emulator (\`$pairs\`), and in each of"
  echo "the $(wc -w <<< "$launched") kernels of the decode steps on the stand-in for the driver (\`$steps\`):"
  echo
  echo "| kernel without its wait | the first error |"
  echo "|---|---|"
  printf '%s' "$rows"
} > "$result"

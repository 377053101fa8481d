#!/usr/bin/env bash
# Fuzzes every target in build/fuzz/fuzz (or those named) for FUZZ_SECONDS each, FUZZ_JOBS at a
# time. Starts from tests/fuzz/corpus/<name> and keeps what it finds in build/fuzz/corpus/<name>;
# an input that breaks a target is left in build/fuzz/findings. Fails if there is one.

set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/sources.sh

seconds=${FUZZ_SECONDS:-60}
jobs=${FUZZ_JOBS:-$(processors)}
build=build/fuzz

if [ $# -gt 0 ]; then
    names=("$@")
else
    names=()
    for source in tests/fuzz/fuzz_*.c; do
        if [ -e "$source" ]; then
            name=${source##*/fuzz_}
            names+=("${name%.c}")
        fi
    done
fi
if [ ${#names[@]} -eq 0 ]; then
    echo "fuzz: there are no targets in tests/fuzz" >&2
    exit 1
fi

# Limits: 10 s for one input, 128 MiB for one allocation: memory must stay in proportion to the
# input, which is much smaller than that.
fuzz_one() {
    local name=$1 corpus=$build/corpus/$1 log=$build/logs/$1.log seeds=tests/fuzz/corpus/$1
    local arguments=(-max_total_time="$seconds" -timeout=10 -rss_limit_mb=2048 -malloc_limit_mb=128
        -print_final_stats=1 -artifact_prefix="$build/findings/$name-")
    mkdir -p "$corpus" "$build/logs" "$build/findings"
    if [ -e "tests/fuzz/$name.dict" ]; then
        arguments+=(-dict="tests/fuzz/$name.dict")
    fi
    arguments+=("$corpus")
    if [ -d "$seeds" ]; then
        arguments+=("$seeds")
    fi
    if ASAN_OPTIONS=allocator_may_return_null=1 UBSAN_OPTIONS=print_stacktrace=1 \
        "$build/fuzz/fuzz_$name" "${arguments[@]}" >"$log" 2>&1; then
        awk -v name="$name" '/stat::number_of_executed_units/ { runs = $2 }
            /stat::peak_rss_mb/ { rss = $2 } / cov: / { for (i = 1; i < NF; i++)
                if ($i == "cov:") cov = $(i + 1) }
            END { printf "fuzz: %-20s clean: %d runs, coverage %d, peak %d MiB\n",
                name, runs, cov, rss }' "$log"
    else
        grep -v '^#[0-9]*[[:space:]]*\(NEW\|REDUCE\|pulse\|RELOAD\)' "$log" | tail -n 60 >&2
        echo "fuzz: $name FAILED, the whole log is $log; repeat with" >&2
        echo "  $build/fuzz/fuzz_$name $build/findings/$name-..." >&2
        return 1
    fi
}

echo "fuzz: ${#names[@]} targets, $seconds s each, $jobs at a time"
failed=0
running=()
collect() {
    wait "${running[0]}" || failed=1
    running=("${running[@]:1}")
}
for name in "${names[@]}"; do
    if [ ${#running[@]} -ge "$jobs" ]; then
        collect
    fi
    fuzz_one "$name" &
    running+=($!)
done
while [ ${#running[@]} -gt 0 ]; do
    collect
done
exit "$failed"

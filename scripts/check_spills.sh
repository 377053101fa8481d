#!/usr/bin/env bash
# Fails if a GPU kernel spills registers: the hot loops are built for 168 of them, and a spill costs
# more than most changes bring. Compiles the kernels for the given compute capabilities (80 86 89 90 if
# none is given; older ones may spill) and reads what ptxas says. Skipped, saying so, where there is no
# nvcc; NVCC names one that is not on the PATH.
# Usage: scripts/check_spills.sh [ARCH...]

set -euo pipefail
cd "$(dirname "$0")/.."

nvcc=${NVCC:-}
for candidate in "${CUDA_HOME:+$CUDA_HOME/bin/nvcc}" /usr/local/cuda/bin/nvcc; do
    if [ -z "$nvcc" ]; then nvcc=$(command -v nvcc || true); fi
    if [ -z "$nvcc" ] && [ -n "$candidate" ] && [ -x "$candidate" ]; then nvcc=$candidate; fi
done
if [ -z "$nvcc" ]; then
    echo "check_spills: skipped, nvcc was not found"
    exit 0
fi

release=$("$nvcc" --version 2>/dev/null | sed -n 's/.*release \([0-9]*\.[0-9]*\).*/\1/p' || true)
if [ -n "$release" ] && [ "$(printf '%s\n' 12.3 "$release" | sort -V | head -n 1)" != 12.3 ]; then
    echo "check_spills: skipped, nvcc is release $release, and the kernels need 12.3"
    exit 0
fi

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
failed=0
if [ $# -eq 0 ]; then set -- 80 86 89 90; fi
for arch in "$@"; do
    # The flags of cmake/cuda.cmake.
    if ! "$nvcc" -x cu -cubin -arch "sm_$arch" -O3 -fmad=false -std=c++17 -Xptxas -v \
        -I src/kernels -o "$work/kernels.cubin" src/kernels/pdvm.k >"$work/log" 2>&1; then
        cat "$work/log" >&2
        echo "check_spills: sm_$arch: nvcc failed" >&2
        exit 1
    fi
    # "Function properties for NAME", then "N bytes stack frame, N bytes spill stores, ...".
    if ! awk -v arch="$arch" '
        /Function properties for/ { name = $NF }
        /bytes spill stores/ {
            functions++
            stores = loads = 0
            for (i = 2; i < NF; i++) {
                if ($(i + 1) == "spill" && $(i + 2) ~ /^stores/) stores = $(i - 1)
                if ($(i + 1) == "spill" && $(i + 2) ~ /^loads/) loads = $(i - 1)
            }
            printf "sm_%s %s: %d bytes of spill stores, %d of loads\n", arch, name, stores, loads
            if (stores + loads > 0) spills = 1
        }
        END {
            if (!functions) print "sm_" arch ": nothing about spills in what ptxas said"
            exit spills || !functions
        }' "$work/log"; then
        failed=1
    fi
done
if [ "$failed" != 0 ]; then
    echo "check_spills: registers are spilled" >&2
    exit 1
fi
echo "check_spills: nothing spilled"

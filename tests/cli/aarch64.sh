#!/usr/bin/env bash
# The kernels' tests as an AArch64 program, built by a cross compiler and run by qemu. They need no
# library but C's: cmocka is replaced by tests/cross/cmocka.h, and what else they do not reach is
# dropped by the linker.
# ctest: timeout=240

set -euo pipefail

cross=aarch64-linux-gnu-gcc
for program in "$cross" qemu-aarch64; do
    if ! command -v "$program" >/dev/null; then
        echo "skipped: $program is not installed (scripts/setup.sh --dev)"
        exit 77
    fi
done
if [ -n "$INSTRUMENTED" ]; then
    echo "skipped: the cross build is the same in every build"
    exit 77
fi
if [ "$(uname -m)" = aarch64 ]; then
    echo "skipped: the kernels' tests run here without qemu"
    exit 77
fi

cd "$SOURCE_DIR"
flags=(-O2 -std=c11 -D_GNU_SOURCE -DPDVM_HAVE_NEON=1 -DCROSS_TEST=1 "-DPDVM_SOURCE_DIR=\"$SOURCE_DIR\"" -Wall -Wextra
    -Wpedantic -Werror -Wno-format-truncation -ffp-contract=off -ffunction-sections
    -fdata-sections -Itests/cross -Iinclude -Isrc -Itests)

tests=(test_cpu_kernels test_cpu_batch)
compile() {
    local flag=()
    case $1 in
    *_neon.c) flag=(-march=armv8.2-a+dotprod) ;;
    esac
    "$cross" "${flags[@]}" "${flag[@]}" -c "$1" -o "$TEST_TMPDIR/$(basename "$1" .c).o"
}
objects=()
sources=()
for source in src/backend/cpu/*.c src/base/*.c src/mdcsr/*.c tests/support/support.c; do
    case $source in
    *_amx.c | *_avx*.c) continue ;;
    esac
    sources+=("$source")
    objects+=("$TEST_TMPDIR/$(basename "$source" .c).o")
done
for source in "${sources[@]}" "${tests[@]/%/.c}"; do
    case $source in
    test_*) source=tests/$source ;;
    esac
    compile "$source"
done

for test in "${tests[@]}"; do
    "$cross" -static -Wl,--gc-sections -o "$TEST_TMPDIR/$test" "${objects[@]}" \
        "$TEST_TMPDIR/$test.o" -lm -lpthread
    timeout 100 qemu-aarch64 -cpu max "$TEST_TMPDIR/$test" >"$TEST_TMPDIR/$test.log" ||
        { cat "$TEST_TMPDIR/$test.log"; exit 1; }
done

#!/usr/bin/env bash
# pdvm bench --pdvm-table: a row for everything that is there, a reason for what is not. The GPU is the
# stand-in for the driver (tests/standin).
# ctest: timeout=120

. "$SOURCE_DIR/tests/support/cli.sh"

shape=hidden=128,layers=2,intermediate=320,heads=4,kv-heads=2,head-dim=32,vocab=300

PDVM_LIBCUDA=/nonexistent/libcuda.so expect 0 "$PDVM" bench --pdvm-table --shape $shape -n 2 -r 1 -q
grep -qE '^\| CPU, one thread .*\| +[0-9.]+ \| +[0-9.]+ \| +1 \|' out || fail "no CPU row: $(cat out)"
out_has "note: GPU, unfused: not measured: "

PDVM_LIBCUDA=$PDVM_STANDIN PDVM_CUDA_KERNELS=$PDVM_STANDIN_KERNELS \
    expect 0 "$PDVM" bench --pdvm-table --shape $shape -n 2 -r 1 -q
grep -qE '^\| GPU, unfused, a wait .*\| +14 \| +1.00 \|' out || fail "no GPU row: $(cat out)"
grep -qE '^\| GPU, one launch for many .*\| +0.5 \|' out || fail "not two tokens in a launch: $(cat out)"
if python3 -c 'import numpy' 2>/dev/null; then
    grep -qE '^\| Python reference' out || fail "no Python row: $(cat out)"
else
    out_has "note: Python reference, one layer x layers: not measured: there is no python3 with NumPy"
fi
refused 2 "synthetic" "$PDVM" bench --pdvm-table model.pdvm
refused 2 "Markdown" "$PDVM" bench --pdvm-table --shape $shape -o json

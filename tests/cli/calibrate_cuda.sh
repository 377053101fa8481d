#!/usr/bin/env bash
# pdvm convert, sweep and plan --backend, on stand-ins for the driver and cuBLAS: what is there is used, what is
# missing is named, and a device that fails leaves finished layers to go on from.
# ctest: timeout=180

set -euo pipefail
. "$SOURCE_DIR/tests/support/cli.sh"

model=$SOURCE_DIR/tests/golden/tiny-gqa
for _ in 1 2 3 4 5 6 7 8 9 10; do cat "$SOURCE_DIR/tests/golden/excerpt.txt"; done >text.txt
common=(--calib text.txt --calib-tokens 512 --calib-seq 32)
convert=("$PDVM" convert "$model" "${common[@]}" --method sparsegpt --sparsity 0.5)
export PDVM_LIBCUDA=$PDVM_STANDIN PDVM_LIBCUBLAS=$PDVM_STANDIN_CUBLAS

if ! "${convert[@]}" -o cpu.pdvm --backend cpu >out 2>err; then
    grep -q "OpenBLAS, which calibration needs" err || fail "$(cat err)"
    echo "no OpenBLAS here"
    exit 77
fi
grep -q "products by" out || fail "the summary does not say who computed: $(cat out)"
if grep -q "cuBLAS" out; then fail "cuBLAS in spite of --backend cpu"; fi

# The GPU is used without asking; the summary says so.
expect 0 "${convert[@]}" -o gpu.pdvm --json
valid_json out
grep -q '"products": "cuBLAS 120000 on stand-in"' out || fail "not on the GPU: $(cat out)"
expect 0 "$PDVM" inspect gpu.pdvm --check
expect 0 "${convert[@]}" -o cuda.pdvm --backend cuda -t 1
cmp gpu.pdvm cuda.pdvm || fail "not the same bytes on one thread"

# missing MESSAGE: --backend cuda fails with it, and what was found by itself is left for the CPU, with a word
# if there is a GPU.
missing() {
    refused 1 "$1" "${convert[@]}" -o other.pdvm --backend cuda
    expect 0 "${convert[@]}" -o other.pdvm
    cmp cpu.pdvm other.pdvm || fail "$1: not the CPU's bytes"
}
PDVM_LIBCUBLAS=./no-such-library missing "no cuBLAS: ./no-such-library"
[ "$(grep -c "not on the GPU: no cuBLAS" err)" -eq 1 ] || fail "not one warning: $(cat err)"
PDVM_LIBCUBLAS=$PDVM_STANDIN missing "has no cublasCreate_v2: cuBLAS of CUDA 11.2 or newer"
[ "$(grep -c "on the CPU, not on the GPU" err)" -eq 1 ] || fail "not one warning: $(cat err)"
PDVM_STANDIN_MEMORY=1000000 missing "GB on stand-in, which has 0.00 of 0.00 GB free: use --backend cpu"
[ "$(grep -c "on the CPU, not on the GPU: calibration needs" err)" -eq 1 ] ||
    fail "not one warning: $(cat err)"
PDVM_LIBCUDA=./no-such-driver missing "no NVIDIA driver"
if grep -q "GPU" err; then fail "a word about a GPU that is not there: $(cat err)"; fi

refused 2 "unknown backend \"gpu\"" "${convert[@]}" -o other.pdvm --backend gpu
refused 2 "is for methods that calibrate" "$PDVM" convert "$model" -o other.pdvm --method magnitude \
    --sparsity 0.5 --backend cuda

# A device that fails in the second layer: an error, and --resume goes on to the same bytes.
status=0
for after in 20 40 80 160 320; do
    rm -rf other.pdvm.work
    PDVM_STANDIN_FAIL_CUBLAS=$after "${convert[@]}" -o failed.pdvm >out 2>err || status=$?
    [ "$status" -eq 1 ] || fail "no failure after $after products: status $status"
    grep -q "cuBLAS: .*: the device failed" err || fail "not named: $(cat err)"
    [ ! -e failed.pdvm ] || fail "a file in spite of the failure"
    if [ -e failed.pdvm.work/layer-0000.pdvm ]; then break; fi
done
[ -e failed.pdvm.work/layer-0000.pdvm ] || fail "no finished layer was left: $(cat err)"
expect 0 "${convert[@]}" -o failed.pdvm --resume
cmp gpu.pdvm failed.pdvm || fail "not the same bytes after a failure"

# What the GPU computed is not gone on with by the CPU.
PDVM_STANDIN_FAIL_CUBLAS=$after "${convert[@]}" -o failed.pdvm >out 2>err || true
refused 2 "another source, text, OpenBLAS, backend or" "${convert[@]}" -o failed.pdvm --resume --backend cpu

# Where sweeps and plans calibrate, too.
expect 0 "$PDVM" sweep "$model" --text text.txt "${common[@]}" --methods wanda --sparsity 0.5 \
    --values int8 -c 32 --max-tokens 256 --speed-tokens 0 --backend cpu -o csv
cp out sweep-cpu
expect 0 "$PDVM" sweep "$model" --text text.txt "${common[@]}" --methods wanda --sparsity 0.5 \
    --values int8 -c 32 --max-tokens 256 --speed-tokens 0 --backend cuda -o csv
cut -d, -f1-4 sweep-cpu >a
cut -d, -f1-4 out >b
diff a b || fail "the sweep on the GPU has other rows"
PDVM_LIBCUBLAS=./no-such-library refused 1 "no cuBLAS" "$PDVM" plan "$model" --budget 400KB \
    "${common[@]}" --method wanda -c 32 --backend cuda

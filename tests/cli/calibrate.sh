#!/usr/bin/env bash
# pdvm convert with methods that calibrate: the result runs, interrupts are survived, bad texts are
# refused.
# ctest: timeout=180

set -euo pipefail
. "$SOURCE_DIR/tests/support/cli.sh"

model=$SOURCE_DIR/tests/golden/tiny-gqa
for _ in 1 2 3 4 5 6 7 8 9 10; do cat "$SOURCE_DIR/tests/golden/excerpt.txt"; done >text.txt
convert=("$PDVM" convert "$model" -o out.pdvm --calib text.txt --calib-tokens 1024 --calib-seq 64)

if "${convert[@]}" --method wanda --sparsity 0.5 >out 2>err; then
    :
elif grep -q "OpenBLAS, which calibration needs" err; then
    echo "no OpenBLAS here"
    exit 77
else
    fail "$(cat err)"
fi
rm out.pdvm

# What makes no sense is refused, with advice.
refused 2 "add --calib FILE" "$PDVM" convert "$model" -o out.pdvm --method sparsegpt --sparsity 0.5
refused 2 "does without" "${convert[@]}" --method magnitude --sparsity 0.5
refused 2 "give uniform, owl" "${convert[@]}" --method wanda --sparsity 0.5 --layer-sparsity own
refused 2 "does not know the scope block" "${convert[@]}" --method wanda --sparsity 0.5 --scope block
refused 2 "the model's context is 256" "${convert[@]}" --method wanda --sparsity 0.5 --calib-seq 512
refused 1 "no-such.txt" "${convert[@]}" --method wanda --sparsity 0.5 --calib no-such.txt
echo "Once." >short.txt
refused 2 "fewer than one window of 64" "${convert[@]}" --method wanda --sparsity 0.5 \
    --calib short.txt
yes a | tr -d '\n' | head -c 3000 >same.txt || true
refused 2 "different tokens" "${convert[@]}" --method wanda --sparsity 0.5 --calib same.txt
refused 2 "would be lost" "$PDVM" convert "$model" -o text.txt --calib text.txt --method wanda \
    --sparsity 0.5
PDVM_OPENBLAS=./no-such-library refused 1 "OpenBLAS, which calibration needs" \
    "${convert[@]}" --method wanda --sparsity 0.5
[ -z "$(ls -d ./*.pdvm* 2>/dev/null)" ] || fail "something is left: $(ls -d ./*.pdvm*)"

# Every method gives a model that runs, and says what the outputs lost.
for method in "wanda --refine" "sparsegpt --values lut4 --act-order" "admm --values lut8"; do
    # shellcheck disable=SC2086
    expect 0 "${convert[@]}" --sparsity 0.5 --method $method --layer-sparsity owl --json
    valid_json out
    if command -v python3 >/dev/null; then
        python3 - <<'PYTHON' || fail "$method: the JSON summary is not right"
import json
s = json.load(open("out"))
assert s["calibration"]["tokens"] == 1024 and s["calibration"]["window"] == 64
pruned = [t for t in s["tensors"] if "proj" in t["name"]]
assert len(pruned) == 21 and all(0 < t["output_error"] < 1 for t in pruned)
zeros, weights = sum(t["zeros"] for t in pruned), sum(t["shape"][0] * t["shape"][1] for t in pruned)
assert 0.49 < zeros / weights < 0.53, zeros / weights
PYTHON
    fi
    expect 0 "$PDVM" inspect out.pdvm --check
    expect 0 "$PDVM" run out.pdvm -p "Once" -n 4 -s 1
done
[ ! -e out.pdvm.work ] || fail "the work directory is left"

# An interrupt keeps the finished layers, and --resume gives the same bytes.
mv out.pdvm whole.pdvm
big=(--sparsity 0.5 --method admm --values lut8 --layer-sparsity owl -t 1)
"${convert[@]}" "${big[@]}" >out 2>err &
pid=$!
for _ in $(seq 600); do
    [ ! -e out.pdvm.work/layer-0000.pdvm ] || break
    sleep 0.05
done
kill -INT $pid 2>/dev/null || true
status=0
wait $pid || status=$?
if [ "$status" -eq 130 ]; then
    [ ! -e out.pdvm ] || fail "a file in spite of the interrupt"
    grep -q "the same command with --resume goes on" err || fail "no advice: $(cat err)"
    expect 0 "${convert[@]}" "${big[@]}" --resume
fi
cmp whole.pdvm out.pdvm || fail "not the same bytes after an interrupt"
[ ! -e out.pdvm.work ] || fail "the work directory is left"

#!/usr/bin/env bash
# pdvm plan: it keeps its limits, what it applies is what it predicted, and it says when dense is
# better.

set -euo pipefail
. "$SOURCE_DIR/tests/support/cli.sh"

model=$SOURCE_DIR/tests/golden/tiny-gqa
for i in $(seq 40); do echo "Once upon a time there were $i cats, and they saw a bird."; done >text
mkdir scratch
export TMPDIR=$PWD/scratch
plan=("$PDVM" plan "$model" --method magnitude --calib text -c 32 --windows 2 --speed-tokens 4
    --sparsity "0,0.5" --front 3)

# The sizes of the menu's items, all matrices alike, are those of files.
expect 0 "${plan[@]}" --max-loss 100 --json
valid_json out
cp out first.json
"$PDVM" convert "$model" -q -o dense8.pdvm
"$PDVM" convert "$model" -q -o half4.pdvm --method magnitude --sparsity 0.5 --values lut4
small=$(wc -c <half4.pdvm | tr -d ' ')
large=$(wc -c <dense8.pdvm | tr -d ' ')
for size in "$small" "$large"; do
    grep -q "\"file_bytes\": $size," first.json || fail "no item of $size bytes: $(cat first.json)"
done

# A budget between the two is kept by the file that --apply makes; its settings make the same file.
budget=$(((small + large) / 2))
expect 0 "${plan[@]}" --budget "$budget" --apply applied.pdvm --settings rules --svg plan.svg --json
valid_json out
size=$(wc -c <applied.pdvm | tr -d ' ')
[ "$size" -le "$budget" ] || fail "$size bytes for a budget of $budget"
"$PDVM" inspect --check applied.pdvm >/dev/null || fail "the applied file is damaged"
"$PDVM" convert "$model" -q -o again.pdvm --method magnitude --layers-file rules
cmp applied.pdvm again.pdvm || fail "the settings make another file"
if command -v python3 >/dev/null; then
    python3 - "$size" <<'PYTHON' || fail "the plan does not hold together: $(cat out)"
import json, sys, xml.dom.minidom
r = json.load(open("out"))
size = int(sys.argv[1])
c, a = r["chosen"], r["applied"]
assert abs(c["bytes"] - size) < 0.01 * size, (c["bytes"], size)
assert abs(c["kl_measured"] - a["kl"]) < 0.02 * a["kl"] + 1e-6, (c, a)
assert len(r["groups"]) == len(c["choice"]) and len(r["front"]) == 3
for g, k in zip(r["groups"], c["choice"]):
    assert g["choice"] == k
layers = sum(g["bytes"][k] for g, k in zip(r["groups"], c["choice"]))
rules = sum(12 * len(rule) + 16 for rule in r["rules"])
assert abs(r["fixed_bytes"] + layers + rules - c["bytes"]) < 1
sizes = [p["bytes"] for p in r["front"]]
sums = [p["kl_sum"] for p in r["front"]]
assert sizes == sorted(sizes) and sums == sorted(sums, reverse=True), (sizes, sums)
# Whole models: what convert and eval give.
svg = xml.dom.minidom.parse("plan.svg")
assert len(svg.getElementsByTagName("circle")) > 8
PYTHON
fi

# Without a method it is SparseGPT, where there is OpenBLAS; its settings say what convert needs.
calibrated=("$PDVM" plan "$model" --calib text -c 32 --windows 2 --speed-tokens 4 --sparsity 0.5
    --front 0 --calib-seq 32 --calib-tokens 256 --json --max-loss 100 --settings calibrated)
expect 0 "${calibrated[@]}"
if [ "$(json_field out method)" = sparsegpt ]; then
    grep -q -- "--method sparsegpt --calib TEXT --layers-file" calibrated || fail "$(head -1 calibrated)"
else
    [ "$(json_field out method)" = magnitude ] || fail "method $(json_field out method)"
    grep -q "no OpenBLAS" err || fail "magnitude without a word: $(cat err)"
fi
expect 0 env PDVM_OPENBLAS=/nowhere.so "${calibrated[@]}"
[ "$(json_field out method)" = magnitude ] || fail "method $(json_field out method) without OpenBLAS"
grep -q "no OpenBLAS" err || fail "magnitude without a word: $(cat err)"

# Quick measures less, and comes to a plan.
expect 0 "${plan[@]}" --budget "$budget" --quick --json --front 0 --layers-per-group 2
if [ "$(json_field out evaluations)" -ge "$(json_field first.json evaluations)" ]; then
    fail "--quick measures as much"
fi

# A limit that everything keeps: the smallest file. One that only dense codings keep: those.
expect 0 "${plan[@]}" --max-loss 100 --front 0
out_has "50% lut4 in all layers"
out_has "measured"
limit=$(awk '/"file_bytes"/ { n++ } n == 2 && /"kl":/ { gsub(/[^0-9.e-]/, "", $2); print 1.01 * $2; exit }' first.json)
expect 0 "${plan[@]}" --max-loss "$limit" --front 0 --values lut4
out_has "Dense lut4 is better here"
expect 0 "${plan[@]}" --budget 1GB --front 0
out_has "int8 in all layers"

# Limits out of reach are explained.
refused 1 "the smallest choice of the menu needs" "${plan[@]}" --budget 1kB
refused 1 "are out of reach here: the fastest choice" "${plan[@]}" --speed 1e8
refused 1 "a loss of at most 1e-09 is out of reach: the best choice that was found has" "${plan[@]}" --max-loss 1e-9 --values lut4

refused 2 "give one of --budget" "${plan[@]}"
refused 2 "not several" "${plan[@]}" --budget 1GB --speed 3
refused 2 "is no size such as 4.5GB" "${plan[@]}" --budget 4.5XB
refused 2 "'magic' is none of keep, magnitude" "${plan[@]}" --budget 1GB --method magic
refused 2 "no text" "$PDVM" plan "$model" --budget 1GB
refused 1 "makes no zeros" "${plan[@]}" --budget 1GB --method keep
refused 1 "would be lost" "${plan[@]}" --budget 1GB --svg text
refused 1 "shorter than a window" "$PDVM" plan "$model" --calib text -c 4096 --budget 1GB
[ -z "$(ls -A scratch)" ] || fail "left behind: $(ls scratch)"

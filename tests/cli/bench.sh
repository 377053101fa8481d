#!/usr/bin/env bash
# pdvm bench: rows, formats, comparing, and errors that say what to do.

set -euo pipefail
. "$SOURCE_DIR/tests/support/cli.sh"

shape=hidden=128,layers=2,intermediate=320,heads=4,kv-heads=2,vocab=300
small=(-p 16 -n 2 -r 1 -t 1)

# A file and synthetic models in one table; nothing but the table on standard output.
expect 0 "$PDVM" bench "$SOURCE_DIR/tests/golden/tiny-gqa" --shape "$shape" --sparsity 0,0.5 \
    "${small[@]}" -r 2 -q
[ ! -s err ] || fail "something on standard error: $(cat err)"
[ "$(grep -c '^| .*± ' out)" = 6 ] || fail "not 3 models times 2 tests: $(cat out)"
out_has "| tiny-gqa "
out_has " int8 50 % "
grep -qE '^\| tiny-gqa .* \| +tg2 \| +[0-9.]+ ± [0-9.]+ \| +[0-9.]+ \| +[0-9.]+ \| +[0-9]+ % \|$' out ||
    fail "a row of generation: $(cat out)"
grep -qE '^read bandwidth with 1 thread: median [0-9.]+ GB/s, best [0-9.]+ GB/s' out ||
    fail "no bandwidth: $(cat out)"
# Widths of columns are those of their cells.
[ "$(grep '^|' out | wc -L)" = "$(grep '^|' out | awk 'NR == 2' | wc -L)" ] || fail "ragged table"

# A coding with a sparsity of its own.
expect 0 "$PDVM" bench --shape "$shape" --values int8,lut4@0.75 --sparsity 0.5,0.9 -p 0 -n 1 -r 1 -t 1 -q
[ "$(grep '^|' out | grep -oE '(int8|lut4/g64) [0-9]+ %' | tr '\n' ,)" = "int8 50 %,int8 90 %,lut4/g64 75 %," ] ||
    fail "models: $(cat out)"

expect 0 "$PDVM" bench --shape "$shape" --values lut4 --codebook linear -p 0 -n 1 -r 1 -t 1 -q
out_has "lut4 linear/g64 50 %"

# Which layouts the weights are packed in.
expect 0 "$PDVM" bench --shape "$shape" --values int8 --sparsity 0 -p 0 -n 1 -r 1 -t 1 -v
err_has "packed as int8 dense: "

# The same result in the other formats.
expect 0 "$PDVM" bench --shape "$shape" "${small[@]}" --modes --phases -q -o csv
[ "$(wc -l <out)" = 6 ] || fail "a header, a prompt and four modes: $(cat out)"
head -n 1 out | grep -q '^commit,cpu,model,.*,down_seconds,head_seconds$' || fail "header: $(cat out)"
expect 0 "$PDVM" bench --shape "$shape" "${small[@]}" --phases -q --json
valid_json out
cp out before.json
for field in commit date command cpu cache median deviation bandwidth_share bytes_per_token \
    dispatches_per_token seconds_per_token; do
    grep -q "\"$field\"" before.json || fail "no $field in the JSON"
done
[ "$(json_field before.json format)" = pdvm-bench-1 ] || fail "format"
grep -qF '"command": "pdvm bench --shape' before.json || fail "command"

expect 0 "$PDVM" bench --shape "$shape" "${small[@]}" -q --compare before.json
out_has "Compared with before.json"
grep -qE '^\| hidden=.* \| +1 \| token \| +tg2 \| +[0-9.]+ \| +[0-9.]+ \| +[0-9.]+ \|$' out ||
    fail "no comparison: $(cat out)"
sed 's/"cpu": ".*"/"cpu": "Another"/' before.json >another.json
expect 0 "$PDVM" bench --shape "$shape" "${small[@]}" -q --compare another.json
out_has "warning: another processor: Another before"
echo '{"format": "x"}' >other.json
expect 1 "$PDVM" bench --shape "$shape" "${small[@]}" -q --compare other.json
err_has 'its format is "x"'
refused 1 "nothing.json" "$PDVM" bench --shape "$shape" --compare nothing.json

# Whoever takes figures from a cache must be told.
if [ "$(json_field before.json cache)" != 0 ]; then
    grep -q "fit the last-level cache" before.json || fail "no note: $(cat before.json)"
fi

# Errors.
refused 2 "no model" "$PDVM" bench
refused 1 "tinyllama-1.1b" "$PDVM" bench --shape llama9
refused 2 "--codebook is for synthetic models" "$PDVM" bench model.pdvm --codebook linear
refused 2 "share of zeros" "$PDVM" bench --shape tiny --sparsity 0.5,1.5
refused 2 "share of zeros" "$PDVM" bench --shape tiny --sparsity 50%
refused 2 "share of zeros" "$PDVM" bench --shape tiny --values int8,lut4@half
refused 2 "commas" "$PDVM" bench --shape tiny --sparsity 0.5,
refused 2 'unknown values "int7"' "$PDVM" bench --shape tiny --values int8,int7
refused 1 "groups of 48" "$PDVM" bench --shape tiny --group 48
refused 2 "both 0" "$PDVM" bench --shape tiny -p 0 -n 0
refused 2 "not a number" "$PDVM" bench --shape tiny -p 10,x
refused 2 "not a number" "$PDVM" bench --shape tiny -t -1
refused 2 "give a --shape" "$PDVM" bench "$SOURCE_DIR/models/tales" --sparsity 0.5
refused 2 "--compare needs" "$PDVM" bench --shape tiny --compare before.json -o csv
refused 1 "GB of memory are free" "$PDVM" bench --shape hidden=65536,layers=4000,heads=512 -n 1
refused 1 "no such file" "$PDVM" bench nothing.pdvm
refused 1 "scalar" "$PDVM" bench --shape tiny --kernels nonsense

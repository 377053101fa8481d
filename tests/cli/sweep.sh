#!/usr/bin/env bash
# pdvm sweep: its rows agree with convert and eval, it goes on where it stopped, it cleans up.

set -euo pipefail
. "$SOURCE_DIR/tests/support/cli.sh"

model=$SOURCE_DIR/tests/golden/tiny-gqa
for i in $(seq 12); do echo "Once upon a time there were $i cats, and they saw a bird."; done >text
mkdir scratch
export TMPDIR=$PWD/scratch
sweep=("$PDVM" sweep "$model" --text text -c 64 --sparsity "0,0.5" --values "int8,lut4"
    --speed-tokens 4)

# A row per cell, and one for the uncompressed model.
expect 0 "${sweep[@]}"
[ "$(grep -c '^| keep' out)" = 2 ] && [ "$(grep -c '^| magnitude' out)" = 2 ] || fail "rows: $(cat out)"
grep -qE '^\| - .*\| source' out || fail "no row for the uncompressed model: $(cat out)"
[ -z "$(ls -A scratch)" ] || fail "left behind: $(ls scratch)"

expect 0 "${sweep[@]}" -o csv
[ "$(wc -l <out | tr -d ' ')" = 5 ] || fail "lines: $(cat out)"
[ "$(awk -F, '{ print NF }' out | sort -u)" = 17 ] || fail "columns: $(cat out)"
cp out table.csv

# The figures are those of convert and eval.
"$PDVM" convert "$model" -q -o half.pdvm --method magnitude --sparsity 0.5 --values lut4
expect 0 "$PDVM" eval half.pdvm --text text -c 64 --protocol papers --reference "$model" --json
awk -F, -v kl="$(json_field out kl)" -v ppl="$(json_field out perplexity)" \
    -v size="$(wc -c <half.pdvm)" '
    $1 == "magnitude" && $4 == "lut4" { found = 1
        d = $9 - kl; if (d < 0) d = -d; e = $5 - ppl; if (e < 0) e = -e
        exit !(d < 1e-3 * kl && e < 1e-4 * ppl && $15 == size && $2 == 0.5 && $3 == 0.5) }
    END { if (!found) exit 1 }' table.csv || fail "another result than convert and eval: $(cat table.csv)"

# What is in the file of results is not measured again.
expect 0 "${sweep[@]}" --sparsity 0 --values int8 --results done.jsonl
[ "$(wc -l <done.jsonl | tr -d ' ')" = 1 ] || fail "results: $(cat done.jsonl)"
sed 's/"kl":[^,]*/"kl":0.125/' done.jsonl >changed.jsonl
printf '{"cut off' >>changed.jsonl
expect 0 "${sweep[@]}" --results changed.jsonl -o json
valid_json out
[ "$(json_field out kl)" = 0.125 ] || fail "measured again: $(cat out)"
[ "$(grep -c '"key"' changed.jsonl)" = 4 ] || fail "not all results are in the file"
grep -q '^{"cut off$' changed.jsonl || fail "a cut-off line was joined with the next"
expect 0 "${sweep[@]}" --results changed.jsonl -o csv
[ "$(grep -c '"key"' changed.jsonl)" = 4 ] || fail "results were added that were there"
# Another text is another key.
head -n 11 text >shorter
expect 0 "$PDVM" sweep "$model" --text shorter -c 64 --sparsity 0 --values int8 --speed-tokens 0 \
    --results changed.jsonl -o csv
[ "$(grep -c '"key"' changed.jsonl)" = 5 ] || fail "the text is not part of the key"
awk -F, 'NR == 2 { exit !($16 == "") }' out || fail "a speed that was not measured: $(cat out)"

refused 2 "no source" "$PDVM" sweep
refused 2 "no text" "$PDVM" sweep "$model"
refused 2 "'magic' is none of keep, magnitude" "${sweep[@]}" --methods magic
refused 2 "--calib" "${sweep[@]}" --methods wanda
refused 2 "\"-1\": the share of zeros" "${sweep[@]}" --sparsity 0,-1
refused 2 "all zero" "${sweep[@]}" --sparsity 1
refused 2 "unknown values" "${sweep[@]}" --values int3
refused 1 "shorter than a window" "$PDVM" sweep "$model" --text text -c 4096
refused 1 "no-such-text" "$PDVM" sweep "$model" --text no-such-text
[ -z "$(ls -A scratch)" ] || fail "left behind: $(ls scratch)"

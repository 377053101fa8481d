#!/usr/bin/env bash
# pdvm convert: what it refuses and how it says so, its summary, and that it destroys nothing.

set -euo pipefail
. "$SOURCE_DIR/tests/support/cli.sh"

golden=$SOURCE_DIR/tests/golden
model=$golden/tiny-gqa
convert=("$PDVM" convert "$model" -o out.pdvm)

# Options that make no sense: status 2, a message that teaches, no file.
refused 2 "no source" "$PDVM" convert
refused 2 "no output: give the file to write with -o FILE" "$PDVM" convert "$model"
refused 2 "unexpected argument 'more'" "${convert[@]}" more
refused 2 "--method: 'wand' is none of keep, magnitude, wanda, sparsegpt, admm" \
    "${convert[@]}" --method wand
refused 2 "add --calib FILE" "${convert[@]}" --method wanda --sparsity 0.5
refused 2 "add --method magnitude" "${convert[@]}" --sparsity 0.5
refused 2 "add --method magnitude" "${convert[@]}" --sparsity 0.5 --method keep
refused 2 "add --sparsity 0.5" "${convert[@]}" --method magnitude
refused 2 "--sparsity 1.5: must be from 0" "${convert[@]}" --method magnitude --sparsity 1.5
refused 2 "--values 'int4': must be f32, bf16, f16, int8, lut8 or lut4" "${convert[@]}" --values int4
refused 2 "--group '48': must be 0, 32, 64, 128 or 256" "${convert[@]}" --group 48
refused 2 "--codebook prime has no effect" "${convert[@]}" --codebook prime
refused 2 "--group 32 has no effect" "${convert[@]}" --values bf16 --group 32
refused 2 "--embed 'lut4'" "${convert[@]}" --embed lut4
refused 2 "PATTERN=SETTING" "${convert[@]}" --layers down
refused 2 "values is f32, bf16" "${convert[@]}" --layers down=values=q4
refused 2 "no matrix matches \"dwon\"" "${convert[@]}" --layers dwon=values=lut4
refused 2 "is not valid UTF-8" "${convert[@]}" --layers $'\xff=values=lut4'
[ -z "$(ls ./*.pdvm* 2>/dev/null)" ] || fail "a file in spite of the errors: $(ls)"

# Sources and outputs that are none: status 1, naming them.
refused 1 "no-such-model" "$PDVM" convert no-such-model -o out.pdvm
refused 1 "no/such/dir/out.pdvm" "$PDVM" convert "$model" -o no/such/dir/out.pdvm
mkdir directory
refused 1 "directory: exists and is not a regular file" "$PDVM" convert "$model" -o directory

# The summary.
expect 0 "${convert[@]}" --method magnitude --sparsity 0.5 -t 2
[ ! -s err ] || fail "something on standard error: $(cat err)"
for line in embed q k v o gate up down norms total; do
    grep -qE "^$line +[0-9.]+ k? +[0-9.]+ % " out || fail "no line $line: $(cat out)"
done
grep -qE '^head' out && fail "a head, but this model's is tied"
grep -qE '^gate +36.9 k +50.0 % +0.0 % +6.00 .* bitmap int8$' out || fail "gate: $(cat out)"
grep -qE '^out.pdvm: [0-9.]+ KiB, [0-9.]+ times smaller than the source' out || fail "size"
expect 0 "${convert[@]}" -q
[ ! -s out ] || fail "-q is not quiet: $(cat out)"
[ ! -s err ] || fail "-q is not quiet: $(cat err)"

# JSON, of which every number must hold together.
expect 0 "${convert[@]}" --values lut4 --layers 'model.layers.1.*=index=bitmap' --json
valid_json out
if command -v python3 >/dev/null; then
    python3 - <<'PYTHON' || fail "the JSON summary does not add up"
import json, os
s = json.load(open("out"))
assert s["file_bytes"] == os.path.getsize("out.pdvm")
assert s["total"]["weights"] == sum(t["shape"][0] * t["shape"][1] for t in s["tensors"])
assert s["total"]["bytes"] == sum(t["bytes"] for t in s["tensors"])
assert s["total"]["zeros"] == sum(r["zeros"] for r in s["roles"].values())
codings = {t["name"]: t["coding"] for t in s["tensors"]}
assert codings["model.layers.0.self_attn.q_proj.weight"] == "dense lut4 learned/64"
assert codings["model.layers.1.self_attn.q_proj.weight"] == "bitmap lut4 learned/64"
assert codings["model.embed_tokens.weight"] == "dense int8"
assert s["roles"]["q"]["coding"] == "dense lut4 learned/64, bitmap lut4 learned/64"
PYTHON
fi

# The file runs, whatever it is made of.
for flags in "--values f32 --embed f32" "--values lut4 --codebook prime --group 0 --index delta8" \
    "--values lut8 --method magnitude --sparsity 0.8 --scope matrix --embed f16"; do
    # shellcheck disable=SC2086
    expect 0 "${convert[@]}" -q $flags
    expect 0 "$PDVM" run out.pdvm -p Once -n 4 --temp 0
done

# Number of threads, and a second run: the same bytes.
for threads in 1 3; do
    expect 0 "$PDVM" convert "$model" -o "$threads.pdvm" -t "$threads" -q --values lut4 \
        --method magnitude --sparsity 0.3
done
cmp 1.pdvm 3.pdvm || fail "the file depends on the number of threads"

# Nothing that is read is written over: under its own name, a link, or from inside the model.
cp out.pdvm before.pdvm
refused 2 "is a file of the source" "$PDVM" convert out.pdvm -o out.pdvm
ln -s out.pdvm link.pdvm
refused 2 "is a file of the source" "$PDVM" convert link.pdvm -o ./out.pdvm
cmp out.pdvm before.pdvm || fail "the source was changed"
cp -r "$model" copy
chmod -R u+w copy
refused 2 "is a file of the source" "$PDVM" convert copy -o copy/model.safetensors
refused 2 "is a file of the source" "$PDVM" convert copy -o copy/config.json
diff -r "$model" copy || fail "the model was changed"
expect 0 "$PDVM" convert copy -o copy/out.pdvm -q
expect 0 "$PDVM" convert copy -o copy/out.pdvm -q

# A failure leaves what was there: here a file that grows too large.
echo old >old.pdvm
status=0
(
    trap '' XFSZ
    ulimit -f 40
    "$PDVM" convert "$model" -o old.pdvm
) >out 2>err || status=$?
[ "$status" = 1 ] || fail "exit status $status with a full disk"
err_has "old.pdvm"
[ "$(cat old.pdvm)" = old ] || fail "the old file was changed"
[ -z "$(ls ./*.tmp-* 2>/dev/null)" ] || fail "an unfinished file is left: $(ls)"

# A model whose tokenizer cannot be used is converted, with a warning that says why.
printf '{}' >copy/tokenizer.json
expect 0 "$PDVM" convert copy -o badtoken.pdvm
err_has 'warning: copy: tokenizer.json: field "model" is missing; the model will not run on text'
rm badtoken.pdvm

# A model without a tokenizer is converted, with a warning.
rm copy/tokenizer.json
expect 0 "$PDVM" convert copy -o copy.pdvm
err_has "warning: the source has no tokenizer"

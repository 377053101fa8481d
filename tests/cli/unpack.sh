#!/usr/bin/env bash
# pdvm unpack: a directory that is a model again, and what is refused.

set -euo pipefail
. "$SOURCE_DIR/tests/support/cli.sh"

model=$SOURCE_DIR/tests/golden/tiny-gqa

expect 0 "$PDVM" convert "$model" -o a.pdvm -q --values lut4 --method magnitude --sparsity 0.4
refused 2 "no file" "$PDVM" unpack
refused 2 "no output: give the directory" "$PDVM" unpack a.pdvm
refused 2 "--dtype 'int8': must be f32, bf16 or f16" "$PDVM" unpack a.pdvm -o b --dtype int8
refused 2 "needs no unpacking" "$PDVM" unpack "$model" -o b
refused 1 "no-such-file" "$PDVM" unpack no-such-file -o b
refused 1 "no/such/b" "$PDVM" unpack a.pdvm -o no/such/b
refused 1 "a.pdvm: exists and is not a directory" "$PDVM" unpack a.pdvm -o a.pdvm
[ ! -e b ] || fail "a directory in spite of the errors"

expect 0 "$PDVM" unpack a.pdvm -o b
out_has "b: 174528 weights as F32"
for file in config.json tokenizer.json tokenizer_config.json model.safetensors; do
    [ -s "b/$file" ] || fail "no $file"
done
cmp "$model/tokenizer.json" b/tokenizer.json || fail "another tokenizer"
valid_json b/config.json
[ "$(json_field b/config.json torch_dtype)" = float32 ] || fail "torch_dtype: $(cat b/config.json)"

# The same model: coded with f32 it gives the same text and numbers as the file.
run=(-p "Once upon a time" -n 20 --temp 0)
"$PDVM" convert b -o c.pdvm -q --values f32 --embed f32
"$PDVM" unpack c.pdvm -o d -q
cmp b/model.safetensors d/model.safetensors || fail "unpacking is not exact"
expect 0 "$PDVM" inspect b
grep -qE '^gate +36.9 k +40.6 % ' out || fail "the zeros are lost: $(cat out)"

# Directories that hold something are left alone without --force.
refused 2 "not empty; give another one, or --force" "$PDVM" unpack a.pdvm -o b
expect 0 "$PDVM" unpack a.pdvm -o b --force --dtype bf16
out_has "of them rounded"
[ "$(json_field b/config.json torch_dtype)" = bfloat16 ] || fail "torch_dtype"
expect 0 "$PDVM" run b "${run[@]}"

# A full disk leaves neither a directory nor half a file.
status=0
(
    trap '' XFSZ
    ulimit -f 100
    "$PDVM" unpack a.pdvm -o e
) >out 2>err || status=$?
[ "$status" = 1 ] || fail "exit status $status with a full disk"
err_has "e/model.safetensors"
[ ! -e e ] || fail "something is left: $(ls e)"

#!/usr/bin/env bash
# pdvm inspect: the table of the conversion again, the picture, JSON, and the check of a file.

set -euo pipefail
. "$SOURCE_DIR/tests/support/cli.sh"

golden=$SOURCE_DIR/tests/golden

refused 2 "no model" "$PDVM" inspect
refused 1 "no-such-file" "$PDVM" inspect no-such-file
refused 1 "config.json" "$PDVM" inspect "$golden"

expect 0 "$PDVM" convert "$golden/tiny-gqa" -o a.pdvm --method magnitude --sparsity 0.5 \
    --layers 'model.layers.1.*=sparsity=0.9,values=lut4'
grep -E '^(embed|total|q|down) ' out >converted
expect 0 "$PDVM" inspect a.pdvm
grep -E '^(embed|total|q|down) ' out | cmp - converted || fail "another table than convert's"
out_has "llama, 3 layers, hidden size 64, MLP 192"
out_has "made from      tiny-gqa, method magnitude, sparsity 0.5 per row"
out_has "--layers model.layers.1.*=sparsity=0.9,values=lut4"
[ ! -s err ] || fail "something on standard error: $(cat err)"

# The picture: in UTF-8 with blocks, elsewhere with letters; no colours in a file.
utf8=$(locale -a 2>/dev/null | grep -iE '^C\.utf-?8$' | head -n 1 || true)
if [ -n "$utf8" ]; then
    expect 0 env LC_ALL="$utf8" "$PDVM" inspect a.pdvm
    grep -qE '^ +0 +▒▒▒ 50 ' out || fail "the picture: $(cat out)"
    grep -qE '^ +1 +███ 91 ' out || fail "the picture: $(cat out)"
    expect 0 env LC_ALL="$utf8" "$PDVM" inspect a.pdvm --ascii
    grep -qE '^ +0 +::: 50 ' out || fail "the picture in letters: $(cat out)"
fi
expect 0 env LC_ALL=C "$PDVM" inspect a.pdvm
grep -qE '^ +0 +::: 50 ' out || fail "the picture in letters: $(cat out)"
grep -q $'\033' out && fail "colours in a file"

expect 0 "$PDVM" inspect a.pdvm --json
valid_json out
[ "$(json_field out n_layers)" = 3 ] || fail "n_layers"
[ "$(json_field out method)" = magnitude ] || fail "method"
[ "$(json_field out pdvm.version)" = 1 ] || fail "version"

# Every byte counts for --check.
expect 0 "$PDVM" inspect a.pdvm --check
out_has "every matrix and the hash of the data are right"
size=$(wc -c <a.pdvm)
for at in $((size / 2)) $((size - 1)); do
    cp a.pdvm bad.pdvm
    byte=$(od -An -tu1 -j "$at" -N 1 a.pdvm | tr -d ' ')
    # shellcheck disable=SC2059
    printf "\\$(printf %o $((byte ^ 1)))" | dd of=bad.pdvm bs=1 seek="$at" conv=notrunc 2>/dev/null
    refused 1 "bad.pdvm" "$PDVM" inspect bad.pdvm --check
done
head -c $((size - 100)) a.pdvm >bad.pdvm
refused 1 "bad.pdvm" "$PDVM" inspect bad.pdvm

# A directory: the zeros are counted; there is nothing to compare with.
expect 0 "$PDVM" inspect "$golden/tiny-pruned"
grep -qE '^q +32.8 k +62.8 % +16.00 +64.0 KiB +- +BF16$' out || fail "table: $(cat out)"
out_has "every zero stays"
refused 2 "--check is for .pdvm files" "$PDVM" inspect "$golden/tiny-pruned" --check
expect 0 "$PDVM" inspect "$golden/tiny-sharded" --json
valid_json out

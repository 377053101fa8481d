#!/usr/bin/env bash
# --cache-packed: the packed weights are kept and used again, and never trusted.

set -euo pipefail
. "$SOURCE_DIR/tests/support/cli.sh"

export XDG_CACHE_HOME=$PWD/cache
cp -r "$SOURCE_DIR/tests/golden/tiny-gqa" model
run=("$PDVM" run model -p "Once upon" -n 8 --seed 7 -q -v)

expect 0 "${run[@]}"
cp out first
[ -z "$(compgen -G 'model/*.packed')" ] || fail "weights were kept without being asked to"

expect 0 "${run[@]}" --cache-packed
cmp out first || fail "the text is another while saving"
err_has "packed weights saved to model/model.cpu"
packed=$(compgen -G 'model/*.packed') || fail "no file of packed weights"
expect 0 "${run[@]}" --cache-packed
cmp out first || fail "the text is another with kept weights"
err_has "packed weights from $packed"
expect 0 "$PDVM" eval model --text "$SOURCE_DIR/README.md" --max-tokens 40 -c 32 -v --cache-packed
err_has "packed weights from $packed"

# Damaged in the weights, in the header, cut, or something else: made again.
size=$(stat -c %s "$packed")
for damage in $((size - 5000)) 40 8; do
    cp "$packed" good
    printf '\377' | dd of="$packed" bs=1 seek="$damage" conv=notrunc status=none
    expect 0 "${run[@]}" --cache-packed
    cmp out first || fail "damage at $damage changes the text"
    err_has "made again"
    cmp "$packed" good || fail "damage at $damage was not repaired"
done
truncate -s $((size / 2)) "$packed"
expect 0 "${run[@]}" --cache-packed
cmp out first || fail "half a file changes the text"
cmp "$packed" good || fail "half a file was not repaired"

# Another model at the same place.
sed -i 's/"rope_theta": [0-9.]*/"rope_theta": 5000.0/' model/config.json
expect 0 "${run[@]}"
cp out second
expect 0 "${run[@]}" --cache-packed
cmp out second || fail "the packed weights of another model were used"
err_has "made again"

# Other kernels have a file of their own.
expect 0 "${run[@]}" --cache-packed --kernels scalar
cmp out second || fail "the text is another with scalar kernels"
[ -e model/model.cpu2-scalar.packed ] || fail "no file for the scalar kernels"

# Where there is no room beside the model: the user's cache.
rm -rf model/*.packed cache
for name in "${packed##*/}" model.cpu2-scalar.packed; do mkdir "model/$name"; done
expect 0 "${run[@]}" --cache-packed
compgen -G 'cache/pdvm/*.packed' >/dev/null || fail "nothing in the user's cache"
expect 0 "${run[@]}" --cache-packed
cmp out second || fail "the text is another with weights from the user's cache"
err_has "packed weights from $PWD/cache/pdvm/"
rm -rf cache
XDG_CACHE_HOME=/dev/null/x expect 0 "${run[@]}" --cache-packed
err_has "the packed weights are not kept"

#!/usr/bin/env bash
# GGUF files wherever a model is asked for.

set -euo pipefail
. "$SOURCE_DIR/tests/support/cli.sh"

directory=$SOURCE_DIR/tests/golden/tiny-gqa
model=$SOURCE_DIR/tests/golden/tiny-gqa-q8_0.gguf

# The tokenizer is the directory's.
expect 0 "$PDVM" tokenize "$directory" -p "It's 12 o'clock, é!" --ids
cp out ids
expect 0 "$PDVM" tokenize "$model" -p "It's 12 o'clock, é!" --ids
cmp out ids || fail "other tokens than the directory: $(cat out)"

# It runs, and what is converted from it runs alike.
expect 0 "$PDVM" run "$model" -p "Once upon" -n 12 --temp 0 -q
[ "$(head -c 9 out)" = "Once upon" ] || fail "the prompt is not echoed: $(cat out)"
cp out text
expect 0 "$PDVM" convert "$model" -o m.pdvm
expect 0 "$PDVM" run m.pdvm -p "Once upon" -n 12 --temp 0 -q
cmp out text || fail "the converted file says something else: $(cat out)"
expect 0 "$PDVM" tokenize m.pdvm -p "It's 12 o'clock, é!" --ids
cmp out ids || fail "the converted file has other tokens: $(cat out)"

# inspect tells what it is and how its weights are stored.
expect 0 "$PDVM" inspect "$model"
out_has "GGUF"
out_has "Q8_0"
expect 0 "$PDVM" inspect "$model" --json
valid_json out

# Its own file is not overwritten.
cp "$model" copy.gguf
refused 2 "copy.gguf" "$PDVM" convert copy.gguf -o copy.gguf
cmp copy.gguf "$model" || fail "the source was changed"

# What is broken is named.
head -c 150000 "$model" >cut.gguf
refused 1 "cut.gguf" "$PDVM" run cut.gguf -p x
err_has "cut short?"
printf 'GGUF\1\0\0\0\0\0\0\0\0\0\0\0' >old.gguf
refused 1 "old.gguf: GGUF version 1 is not supported" "$PDVM" inspect old.gguf

#!/usr/bin/env bash
# pdvm tokenize: ids, pieces, JSON, and back to the same bytes.

set -euo pipefail
. "$SOURCE_DIR/tests/support/cli.sh"

model=$SOURCE_DIR/tests/golden/tiny-gqa
tokenize=("$PDVM" tokenize "$model")

expect 0 "${tokenize[@]}" -p "Once upon"
grep -qE '^ *47  O$' out || fail "the first token: $(cat out)"
expect 0 "${tokenize[@]}" -p "Once upon" --ids
[ "$(cat out)" = "47 78 330 365 280" ] || fail "--ids: $(cat out)"
expect 0 "${tokenize[@]}" -p "Once upon" --count
[ "$(cat out)" = 5 ] || fail "--count: $(cat out)"
expect 0 "${tokenize[@]}" -p "Once upon" --pieces
[ "$(tr -d '\n' <out)" = "Once upon" ] || fail "--pieces: $(cat out)"
expect 0 "${tokenize[@]}" -p $'a\n\tb\\\x1b\x7f'
out_has '\n'
out_has '\t'
out_has '\\'
out_has '\x1b'
out_has '\x7f'
expect 0 "${tokenize[@]}" -p "" --ids
[ "$(cat out)" = "" ] || fail "no text: $(cat out)"

# The text may come from -p, a file or standard input.
printf 'Once upon' >text
expect 0 "${tokenize[@]}" -f text --ids
[ "$(cat out)" = "47 78 330 365 280" ] || fail "-f: $(cat out)"
[ "$("${tokenize[@]}" --ids <text)" = "47 78 330 365 280" ] || fail "standard input"
[ "$("${tokenize[@]}" -f - --ids <text)" = "47 78 330 365 280" ] || fail "-f -"

# There and back again, byte for byte, through both kinds of output.
printf 'Two  spaces,\ttabs\r\n\n\n and é, 日本語, 😀, e\xcc\x81; 1234567890 it'\''s ... ' >text
expect 0 "${tokenize[@]}" -f text --ids
cp out ids
"${tokenize[@]}" --decode - <ids >back
cmp text back || fail "decoding does not give the text back"
expect 0 "${tokenize[@]}" --decode "[47, 78,330]"
[ "$(cat out)" = "Once" ] || fail "--decode: $(cat out)"
expect 0 "${tokenize[@]}" --decode "47 78" --json
valid_json out
[ "$(json_field out text)" = "On" ] || fail "--decode --json: $(cat out)"
expect 0 "${tokenize[@]}" -f text -o json
valid_json out
[ "$(json_field out n_tokens)" = "$(wc -w <ids | tr -d ' ')" ] || fail "n_tokens: $(cat out)"

# Special tokens by name: taken for the token unless told not to; shown on request.
name=$("${tokenize[@]}" --decode 0 --special)
[ -n "$name" ] || fail "token 0 has no name"
expect 0 "${tokenize[@]}" -p "$name" --ids
[ "$(cat out)" = 0 ] || fail "the special token's name gives $(cat out)"
expect 0 "${tokenize[@]}" -p "$name" --count --no-parse-special
[ "$(cat out)" -gt 1 ] || fail "--no-parse-special: $(cat out)"
expect 0 "${tokenize[@]}" --decode 0
[ ! -s out ] || fail "a special token has text: $(cat out)"

refused 1 "the text is not valid UTF-8: byte 0x80 at offset 1" "${tokenize[@]}" -p $'a\x80'
refused 1 "token 512 is outside the vocabulary of 512" "${tokenize[@]}" --decode "5 512"
refused 1 "'4x' is not a token number" "${tokenize[@]}" --decode "5 4x"
refused 1 "'-1' is not a token number" "${tokenize[@]}" --decode "-1"
refused 1 "is not a token number" "${tokenize[@]}" --decode "4294967296"
refused 1 "no-such-model" "$PDVM" tokenize no-such-model -p x

# A SentencePiece model stands in for tokenizer.json, and travels with the weights.
mkdir sp
cp "$model"/config.json "$model"/*.safetensors sp/
cp "$SOURCE_DIR/tests/golden/tokenizer-small/sp-llama.model" sp/tokenizer.model
echo '{"add_eos_token": true}' >sp/tokenizer_config.json
expect 0 "$PDVM" tokenize sp -p "the Queen" --ids
ids=$(cat out)
[[ $ids == "1 "*" 2" ]] || fail "BOS and EOS: $ids"
expect 0 "$PDVM" convert sp -o sp.pdvm
expect 0 "$PDVM" tokenize sp.pdvm -p "the Queen" --ids
[ "$(cat out)" = "$ids" ] || fail "after converting: $(cat out), not $ids"
expect 0 "$PDVM" tokenize sp.pdvm --decode "$ids"
[ "$(head -c 9 out)" = "the Queen" ] || fail "--decode: $(cat out)"
expect 0 "$PDVM" unpack sp.pdvm -o unpacked
cmp sp/tokenizer.model unpacked/tokenizer.model || fail "unpacking changed tokenizer.model"

#!/usr/bin/env bash
# pdvm eval: the numbers agree with each other, with the logits, and however they are computed.

set -euo pipefail
. "$SOURCE_DIR/tests/support/cli.sh"

model=$SOURCE_DIR/tests/golden/tiny-gqa
for i in $(seq 12); do echo "Once upon a time there were $i cats, and they saw a bird."; done >text
evaluate=("$PDVM" eval "$model" --text text -c 64)

# close A B: equal within 1e-6 relative.
close() {
    awk -v a="$1" -v b="$2" 'BEGIN { d = a - b; if (d < 0) d = -d
        exit !(a != "" && b != "" && d <= 1e-6 * (b < 0 ? -b : b)) }' ||
        fail "$1 is not $2 ($3)"
}

expect 0 "${evaluate[@]}"
grep -qE '^perplexity +[0-9.]+ \+- [0-9.]+$' out || fail "perplexity: $(cat out)"
grep -qE '^nll +[0-9.]+ \+- [0-9.]+ per token$' out || fail "nll: $(cat out)"
[ ! -s err ] || fail "something on standard error: $(cat err)"

expect 0 "${evaluate[@]}" --json --per-token --save-logits logits
valid_json out
cp out first
scored=$(json_field first n_scored)
[ "$scored" = $(($(json_field first n_tokens) - 1)) ] || fail "scored: $scored"
[ "$(json_field first n_tokens)" = "$("$PDVM" tokenize "$model" -f text --count)" ] ||
    fail "other tokens than pdvm tokenize"
[ "$(json_field first stride)" = 32 ] || fail "the default stride"
size=$(wc -c <logits | tr -d ' ')
[ "$size" -ge $((scored * 512 * 2)) ] && [ "$size" -lt $((scored * (512 * 2 + 4) + 4096)) ] ||
    fail "size of the logits: $size"

# The mean and the standard error of the tokens' likelihoods are what is printed.
sed -n '/"token_nll"/,/\]/p' first | tr -d '", ' | grep -E '^[0-9.e-]+$' >likelihoods
[ "$(wc -l <likelihoods | tr -d ' ')" = "$scored" ] || fail "number of likelihoods"
[ "$(sed -n '/"token_ids"/,/\]/p' first | grep -cE '^ *[0-9]+,?$')" = "$scored" ] || fail "ids"
awk '{ s += $1; q += $1 * $1; n++ }
    END { m = s / n; e = sqrt((q / n - m * m) / (n - 1))
        printf "%.12g %.12g %.12g %.12g\n", m, e, exp(m), e * exp(m) }' likelihoods >expected
read -r nll nll_stderr perplexity perplexity_stderr <expected
close "$(json_field first nll)" "$nll" "nll"
close "$(json_field first nll_stderr)" "$nll_stderr" "nll_stderr"
close "$(json_field first perplexity)" "$perplexity" "perplexity"
close "$(json_field first perplexity_stderr)" "$perplexity_stderr" "perplexity_stderr"

# The saved logits give the likelihoods, by the layout that docs/evaluation.md describes.
if command -v python3 >/dev/null; then
    python3 - <<'PYTHON' || fail "the logits do not give the likelihoods"
import array, json, math, struct
result = json.load(open("first", encoding="utf-8"))
data = open("logits", "rb").read()
size = struct.unpack("<Q", data[:8])[0]
header = json.loads(data[8:8 + size])
def tensor(name, kind):
    begin, end = header[name]["data_offsets"]
    values = array.array(kind)
    values.frombytes(data[8 + size + begin:8 + size + end])
    return values
codes, steps = tensor("codes", "H"), tensor("steps", "f")
assert header["codes"]["shape"] == [len(result["token_ids"]), 512]
for i, (token, nll) in enumerate(zip(result["token_ids"], result["token_nll"])):
    row = [-(65535 - code) * steps[i] for code in codes[512 * i:512 * (i + 1)]]
    value = math.log(sum(math.exp(x) for x in row)) - row[token]
    assert abs(value - nll) < steps[i], (i, value, nll)
PYTHON
fi

# A model compared with its own saved predictions, and with itself, does not differ.
below() {
    awk -v a="$1" -v b="$2" 'BEGIN { exit !(a != "" && a + 0 >= 0 && a + 0 < b + 0) }' ||
        fail "$3: $1 is not below $2"
}
expect 0 "${evaluate[@]}" --json --kl-base logits
valid_json out
below "$(json_field out kl)" 1e-6 "KL of a model with itself"
below "$(json_field out kl_max)" 1e-6 "KL of a model with itself"
[ "$(json_field out same_top)" = 1 ] || [ "$(json_field out same_top)" = 1.0 ] || fail "same_top"
expect 0 "${evaluate[@]}" --values source --json --reference "$model"
below "$(json_field out kl)" 1e-12 "KL of a model with itself"

# Saved predictions and a reference that runs beside the model give the same figures.
expect 0 "${evaluate[@]}" --values source --save-logits base
expect 0 "${evaluate[@]}" --values lut4 --json --kl-base base
cp out by_file
expect 0 "${evaluate[@]}" --values lut4 --json --reference "$model"
for name in kl perplexity_ratio same_top p_change_rms reference_perplexity; do
    awk -v a="$(json_field by_file $name)" -v b="$(json_field out $name)" \
        'BEGIN { d = a - b; if (d < 0) d = -d; exit !(a != "" && d <= 1e-4 * (b < 0 ? -b : b)) }' ||
        fail "$name: $(json_field by_file $name) from the file, $(json_field out $name) directly"
done
awk -v kl="$(json_field out kl)" 'BEGIN { exit !(kl > 1e-4) }' || fail "lut4 costs nothing: $(cat out)"
expect 0 "${evaluate[@]}" --values lut4 --kl-base base
for line in "compared with" ratio KL quantiles "same top" "p(token)"; do out_has "$line"; done

# They belong to one text, tokenizer, protocol and window.
echo "Another text." >other
refused 1 "the text is" "$PDVM" eval "$model" --text other -c 64 --kl-base base
refused 1 "the window is 32 now, and was 64 then" "$PDVM" eval "$model" --text text -c 32 --kl-base base
refused 1 "the protocol is papers" "${evaluate[@]}" --protocol papers --kl-base base
refused 1 "vocabulary" "$PDVM" eval "$SOURCE_DIR/models/tales" --text text -c 64 --kl-base base
refused 1 "not a file of saved logits" "${evaluate[@]}" --kl-base "$model/model.safetensors"
head -c 5000 base >short
refused 1 "short" "${evaluate[@]}" --kl-base short
refused 1 "other tokens" "${evaluate[@]}" --reference "$SOURCE_DIR/models/tales"
refused 2 "only one" "${evaluate[@]}" --reference "$model" --kl-base base

# Protocols.
expect 0 "${evaluate[@]}" --json --protocol papers
n=$(json_field out n_windows)
[ "$(json_field out n_scored)" = $((n * 63)) ] || fail "papers: $(cat out)"
[ "$n" = $(($(json_field out n_tokens) / 64)) ] || fail "papers: whole windows: $(cat out)"
expect 0 "${evaluate[@]}" --json --protocol llama.cpp
[ "$(json_field out n_scored)" = $((n * 31)) ] || fail "llama.cpp: $(cat out)"
expect 0 "$PDVM" eval "$model" --text text --json --protocol papers --max-tokens 256
[ "$(json_field out n_ctx)" = 256 ] || fail "the papers' window is not the model's: $(cat out)"
refused 1 "is shorter than a window of 64" "${evaluate[@]}" --protocol papers --max-tokens 63
refused 2 "--stride" "${evaluate[@]}" --protocol papers --stride 3

# However it is computed, the result is the same.
for way in "-t 1" "-b 1" "-b 7" "-q" "--stride 32"; do
    # shellcheck disable=SC2086
    expect 0 "${evaluate[@]}" --json $way
    [ "$(json_field out nll)" = "$(json_field first nll)" ] || fail "another nll with $way"
done
expect 0 "${evaluate[@]}" --json --stride 64
pieces=$(json_field out n_windows)
[ "$(json_field out n_scored)" = $((scored + 1 - pieces)) ] || fail "without overlap: $(cat out)"
"$PDVM" eval -m "$model" -f - -c 64 --json <text >out
[ "$(json_field out nll)" = "$(json_field first nll)" ] || fail "another nll from standard input"

# A window that holds everything needs one window only, and --max-tokens shortens the text.
expect 0 "$PDVM" eval "$model" --text text --json --max-tokens 50
[ "$(json_field out n_windows)" = 1 ] || fail "windows: $(cat out)"
[ "$(json_field out n_scored)" = 49 ] || fail "--max-tokens: $(cat out)"
[ "$(json_field out n_ctx)" = 256 ] || fail "the default window is not the model's: $(cat out)"

# A failure leaves an old file of logits as it was.
echo old >logits
printf 'a\xff' >bad
refused 1 "bad is not valid UTF-8: byte 0xff at offset 1" "$PDVM" eval "$model" --text bad \
    --save-logits logits
printf '' >empty
refused 1 "a text of 0 tokens" "$PDVM" eval "$model" --text empty --save-logits logits
printf 'a' >short
refused 1 "a text of 1 token: at least 2" "$PDVM" eval "$model" --text short --save-logits logits
[ "$(cat logits)" = old ] || fail "the old file was overwritten"
refused 1 "no-such-file: cannot open" "$PDVM" eval "$model" --text no-such-file
refused 1 "no-such-model" "$PDVM" eval no-such-model --text text
refused 1 "no-such-directory" "${evaluate[@]}" --save-logits no-such-directory/logits

# The logits never take the place of what they are made from.
cp text kept
refused 1 "would be lost" "${evaluate[@]}" --save-logits text
refused 1 "would be lost" "${evaluate[@]}" --kl-base base --save-logits base
cmp -s text kept || fail "the text was overwritten"

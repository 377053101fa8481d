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
[ "$(wc -c <logits | tr -d ' ')" = $((scored * 512 * 4)) ] || fail "size of the logits"

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

# The saved logits give the likelihoods.
if command -v python3 >/dev/null; then
    python3 - <<'PYTHON' || fail "the logits do not give the likelihoods"
import array, json, math, sys
result = json.load(open("first", encoding="utf-8"))
logits = array.array("f")
logits.frombytes(open("logits", "rb").read())
if sys.byteorder == "big":
    logits.byteswap()
for i, (token, nll) in enumerate(zip(result["token_ids"], result["token_nll"])):
    row = logits[512 * i:512 * (i + 1)]
    top = max(row)
    value = math.log(sum(math.exp(x - top) for x in row)) + top - row[token]
    assert abs(value - nll) < 1e-6, (i, value, nll)
PYTHON
fi

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
cmp -s text kept || fail "the text was overwritten"

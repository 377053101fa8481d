#!/usr/bin/env bash
# pdvm run: text, prompts, seeds, stops, sessions, JSON.

set -euo pipefail
. "$SOURCE_DIR/tests/support/cli.sh"

model=$SOURCE_DIR/tests/golden/tiny-gqa
run=("$PDVM" run "$model")

# Text on standard output, prompt first; timings and memory on standard error.
expect 0 "${run[@]}" -p "Once upon" -n 12 --seed 7
[ "$(head -c 9 out)" = "Once upon" ] || fail "the prompt is not echoed: $(cat out)"
for word in load prompt generate memory "seed      7" "tokens/s" "GB/s" peak "as many as asked for"; do
    err_has "$word"
done
cp out first

# The same seed gives the same text, however it is computed.
for way in "-t 1" "-t 2" "--mode layer" "--mode phase" "--mode unfused" "-b 1" "-v"; do
    # shellcheck disable=SC2086
    expect 0 "${run[@]}" -p "Once upon" -n 12 --seed 7 $way
    cmp out first || fail "another text with $way"
done
expect 0 "${run[@]}" -p "Once upon" -n 12 --seed 8
if cmp -s out first; then fail "seeds 7 and 8 give the same text"; fi

# -q: nothing but the text. Without the prompt it is the rest of it.
expect 0 "${run[@]}" -p "Once upon" -n 12 --seed 7 -q
cmp out first || fail "-q changes the text"
[ ! -s err ] || fail "-q is not quiet: $(cat err)"
expect 0 "${run[@]}" -p "Once upon" -n 12 --seed 7 -q --no-display-prompt
tail -c +10 first | cmp - out || fail "--no-display-prompt does not leave out the prompt, or more"

# A random seed is printed, and repeats the text.
expect 0 "${run[@]}" -p "Once upon" -n 12
cp out random
expect 0 "${run[@]}" -p "Once upon" -n 12 -s "$(sed -n 's/^seed *//p' err)"
cmp out random || fail "the printed seed gives another text"

# Sampling options reach the sampler.
expect 0 "${run[@]}" -p "Once upon" -n 12 --temp 0 -q
cp out greedy
for way in "--top-k 1" "--top-p 0" "--min-p 1" "--temp 0 --seed 99"; do
    # shellcheck disable=SC2086
    expect 0 "${run[@]}" -p "Once upon" -n 12 -q $way
    cmp out greedy || fail "$way is not greedy"
done
expect 0 "${run[@]}" -p "Once upon" -n 1 --temp 0 --json
token=$(sed -n '/"tokens": \[/{n;p;}' out | tr -dc 0-9)
expect 0 "${run[@]}" -p "Once upon" -n 1 --temp 0 --json --logit-bias "$token-inf"
if sed -n '/"tokens": \[/{n;p;}' out | grep -qw "$token"; then fail "a banned token came"; fi
expect 0 "${run[@]}" -p "Once upon" -n 3 --json --logit-bias 78+1000
[ "$(grep -cx ' *78,\{0,1\}' out)" = 3 ] || fail "a bias of 1000 is not enough: $(cat out)"
refused 1 "token 512 is outside the vocabulary of 512" "${run[@]}" -p x --logit-bias 512+1
expect 0 "${run[@]}" -p "Once upon" -n 12 --temp 0 -q --repeat-penalty 50 --repeat-last-n -1
if cmp -s out greedy; then fail "the repeat penalty does nothing"; fi

# -n 0 computes the prompt and generates nothing.
expect 0 "${run[@]}" -p "Once upon" -n 0
[ "$(cat out)" = "Once upon" ] || fail "-n 0 wrote $(cat out)"
err_has "generate  0 tokens"

# Prompts from files and pipes are the same as from -p; escapes on request.
printf 'Once upon' >prompt
expect 0 "${run[@]}" -f prompt -n 12 --seed 7
cmp out first || fail "-f FILE gives another text"
"${run[@]}" -f - -n 12 --seed 7 -q <prompt >out
cmp out first || fail "-f - gives another text"
"${run[@]}" -f <(cat prompt) -n 12 --seed 7 -q >out
cmp out first || fail "-f with a pipe gives another text"
expect 0 "${run[@]}" -e -p '\x4fnce\tup\non' -n 0 -q
printf 'Once\tup\non\n' | cmp - out || fail "escapes: $(cat out)"
expect 0 "${run[@]}" -p 'a\n' -n 0 -q
[ "$(cat out)" = 'a\n' ] || fail "escapes without -e: $(cat out)"

# No prompt: from the token that begins a text, here one that the tokenizer does not add by itself.
expect 0 "${run[@]}" -n 4 --json
[ "$(json_field out n_prompt)" = 1 ] || fail "an empty prompt: $(cat out)"
expect 0 "${run[@]}" -f /dev/null -n 4 -q --ignore-eos
[ -s out ] || fail "nothing was generated from an empty file"

# Stop strings are not part of the text, also when they are made of several tokens.
expect 0 "${run[@]}" -p "Once upon" -n 12 --temp 0 --json
valid_json out
[ "$(json_field out stop_reason)" = length ] || fail "stop reason: $(cat out)"
text=$(tail -c +10 greedy)
# Three characters, not bytes, whatever the locale.
stop=$(
    LC_ALL=C.UTF-8
    printf '%s' "${text:5:3}"
)
expect 0 "${run[@]}" -p "Once upon" -n 12 --temp 0 -q --no-display-prompt -r "never there" -r "$stop"
[ "$(cat out)" = "${text%%"$stop"*}" ] || fail "stopping at '$stop': '$(cat out)' of '$text'"
expect 0 "${run[@]}" -p "Once upon" -n 12 --temp 0 --stop "$stop" -o json
[ "$(json_field out stop_reason)" = string ] || fail "stop reason: $(cat out)"

# The end of the text, and going on after it: token 0 ends a text of this model.
expect 0 "${run[@]}" -p "Once upon" -n 9 --json --logit-bias 0+1000
[ "$(json_field out stop_reason)" = end ] || fail "stop reason: $(cat out)"
[ "$(json_field out n_generated)" = 0 ] || fail "the end was counted: $(cat out)"
expect 0 "${run[@]}" -p "Once upon" -n 9 --json --logit-bias 0+1000 --ignore-eos
[ "$(json_field out n_generated)" = 9 ] || fail "--ignore-eos stopped: $(cat out)"

# The context: full, too small, rolling.
expect 0 "${run[@]}" -p "Once upon" --ignore-eos -c 20 --json
[ "$(json_field out stop_reason)" = context ] || fail "stop reason: $(cat out)"
refused 1 "the prompt has 5 tokens and the context holds 4" "${run[@]}" -p "Once upon" -c 4
expect 0 "${run[@]}" -p "Once upon" --ignore-eos -c 20 --rolling --keep 2 -n 100 --json
[ "$(json_field out n_generated)" = 100 ] || fail "rolling stopped: $(cat out)"

# KV cache types; llama.cpp's name for 8 bits.
expect 0 "${run[@]}" -p "Once upon" -n 12 --temp 0 -q -ctk int8 -ctv int8
cp out int8
expect 0 "${run[@]}" -p "Once upon" -n 12 --temp 0 -q --cache-type-k q8_0 --cache-type-v=q8_0
cmp out int8 || fail "q8_0 is not int8"
expect 0 "${run[@]}" -p "Once upon" -n 12 --temp 0 -q -ctk f32 -ctv f32

# A session: what the prompt shares with it is not computed again, and the text is the same.
expect 0 "${run[@]}" -p "Once upon" -n 12 --seed 7 --session s.session -q
cmp out first || fail "--session changes the text"
[ -s s.session ] || fail "no session was saved"
expect 0 "${run[@]}" -p "Once upon" -n 12 --seed 7 --session s.session --json
[ "$(json_field out n_prompt_reused)" -ge 4 ] || fail "nothing was reused: $(cat out)"
expect 0 "${run[@]}" -p "Once upon" -n 12 --seed 7 --session s.session -q
cmp out first || fail "a loaded session changes the text"
printf 'nonsense' >bad.session
refused 1 "bad.session" "${run[@]}" -p "Once upon" --session bad.session
err_has "delete the file"
refused 1 "s.session: KV cache types" "${run[@]}" -p "Once upon" --session s.session -ctk int8
refused 1 "s.session: made with another model" "$PDVM" run "$SOURCE_DIR/tests/golden/tiny-odd" -p x \
    --session s.session
# Where it cannot be saved is said before anything is computed.
refused 1 "no-such-directory/s.session" "$PDVM" run no-such-model -p x \
    --session no-such-directory/s.session
mkdir directory.session
refused 1 "not a regular file" "${run[@]}" -p "Once upon" --session directory.session
[ "$(cat bad.session)" = nonsense ] || fail "a bad session file was overwritten"

# Bad prompts are refused before anything is computed, even before the model is opened.
refused 1 "the prompt is not valid UTF-8: byte 0xff at offset 3" "$PDVM" run no-such-model \
    -p $'abc\xff'
printf '\xc3' >cut_short
refused 1 "cut_short is not valid UTF-8: byte 0xc3 at offset 0" "${run[@]}" -f cut_short
refused 1 "no-such-file: cannot open" "${run[@]}" -f no-such-file
refused 1 "no-such-model" "$PDVM" run no-such-model -p x
refused 1 "no-such-kernels" "${run[@]}" -p x --kernels no-such-kernels

# JSON is valid whatever the model says, and the output is UTF-8.
expect 0 "${run[@]}" -p "Once upon é 😀" -n 200 --temp 5 --top-k 0 --top-p 1 --min-p 0 \
    --ignore-eos --json -s 3
valid_json out
expect 0 "${run[@]}" -p "Once upon é 😀" -n 200 --temp 5 --top-k 0 --top-p 1 --min-p 0 \
    --ignore-eos -q -s 3
if command -v iconv >/dev/null; then
    iconv -f UTF-8 -t UTF-8 out >/dev/null || fail "the text is not valid UTF-8"
fi

#!/usr/bin/env bash
# Command lines that make no sense: exit status 2, a message naming the option, nothing computed.

set -euo pipefail
. "$SOURCE_DIR/tests/support/cli.sh"

model=$SOURCE_DIR/tests/golden/tiny-gqa
run=("$PDVM" run "$model")

# Unknown options, and the ones that may have been meant.
refused 2 "unknown option '--tmep', did you mean '--temp'?" "${run[@]}" --tmep 1
refused 2 "unknown option '--top_k', did you mean '--top-k'?" "${run[@]}" --top_k 1
refused 2 "unknown option '-temp', did you mean '--temp'?" "${run[@]}" -temp 1
refused 2 "unknown option '--prompt-fil'" "${run[@]}" --prompt-fil x
refused 2 "unknown option '-Z'" "${run[@]}" -Z
refused 2 "unknown option '--strid', did you mean '--stride'?" "$PDVM" eval "$model" --strid=5

# What llama.cpp's users type and this program has no use for.
refused 2 "-ngl: this version computes on the CPU" "${run[@]}" -ngl 99
refused 2 "-cnv: 'pdvm run' continues a text; for a conversation there is 'pdvm chat'" "${run[@]}" -cnv
refused 2 "-fa: attention never holds" "${run[@]}" -fa

# Values.
refused 2 "-n needs a value" "${run[@]}" -n
refused 2 "--temp needs a value" "${run[@]}" --temp
refused 2 "-p needs a value (TEXT), but the option '--temp' follows" "${run[@]}" -p --temp 0
refused 2 "--ignore-eos takes no value" "${run[@]}" --ignore-eos=yes
refused 2 "-n 'ten': not a whole number" "${run[@]}" -n ten
refused 2 "-n '1.5': not a whole number" "${run[@]}" -n 1.5
refused 2 "-n ' 5': not a whole number" "${run[@]}" -n ' 5'
refused 2 "-n '99999999999999999999': not a whole number" "${run[@]}" -n 99999999999999999999
refused 2 "--predict '': not a whole number" "${run[@]}" --predict=
refused 2 "-n -2: must be at least -1" "${run[@]}" -n -2
refused 2 "-c 16777217: must be from 0 to 16777216" "${run[@]}" -c 16777217
refused 2 "-t -1: must be from 0 to 1024" "${run[@]}" -t -1
refused 2 "--temp 'hot': not a number" "${run[@]}" --temp hot
refused 2 "--temp 'nan': not a number" "${run[@]}" --temp nan
refused 2 "--temp '0x10': not a number" "${run[@]}" --temp 0x10
refused 2 "--top-p 1.5: must be from 0 to 1" "${run[@]}" --top-p 1.5
refused 2 "--repeat-penalty 0: must be from 0.01 to 100" "${run[@]}" --repeat-penalty 0
refused 2 "-ctk 'q4_0': must be f32, f16, int8 or q8_0" "${run[@]}" -ctk q4_0
refused 2 "--mode 'fast': must be token, layer, phase or unfused" "${run[@]}" --mode fast
for bias in 5 +1 5+x 5+inf x+1 -1+1 5++1 99999999999+1 5+1e9; do
    refused 2 "--logit-bias '$bias'" "${run[@]}" --logit-bias "$bias"
done
refused 2 "--reverse-prompt: the text is empty" "${run[@]}" -r ""

# Operands and options that contradict each other.
refused 2 "no model" "$PDVM" run -p x
refused 2 "unexpected argument 'upon': a prompt is given with -p" "${run[@]}" upon
refused 2 "unexpected argument 'upon'" "$PDVM" run -m "$model" upon
refused 2 "MODEL is given twice" "${run[@]}" -m other
refused 2 "-p and -f both give a prompt" "${run[@]}" -p x -f y
refused 2 "-p and -f both give a text" "$PDVM" tokenize "$model" -p x -f y
refused 2 "choose one" "$PDVM" tokenize "$model" -p x --ids --count
refused 2 "leave out -p and -f" "$PDVM" tokenize "$model" -p x --decode 1
refused 2 "--special belongs to --decode" "$PDVM" tokenize "$model" -p x --special
refused 2 "no model" "$PDVM" tokenize
refused 2 "no text" "$PDVM" eval "$model"
refused 2 "--per-token needs --json" "$PDVM" eval "$model" --text x --per-token
refused 2 "--stride 65 is longer than the window" "$PDVM" eval "$model" --text x -c 64 --stride 65
refused 2 "-c 1: must be from 2" "$PDVM" eval "$model" --text x -c 1

# All the ways to write an option's value mean the same; the last one counts.
expect 0 "${run[@]}" -p Once -n 7 --temp 0 -q
cp out expected
for form in "-n7" "-n 7" "--predict=7" "--n-predict 7" "-n 3 -n 7"; do
    # shellcheck disable=SC2086
    expect 0 "$PDVM" run -p Once $form --temp=0 -q -- "$model"
    cmp out expected || fail "'$form' is not '-n 7'"
done

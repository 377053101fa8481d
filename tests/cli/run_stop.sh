#!/usr/bin/env bash
# pdvm run and eval when they are interrupted or their output cannot be written.

set -euo pipefail
. "$SOURCE_DIR/tests/support/cli.sh"
# Jobs in the background get signals as those in the foreground do.
set -m

model=$SOURCE_DIR/tests/golden/tiny-gqa
endless=("$PDVM" run "$model" -p Once --ignore-eos --rolling -c 64)

# wait_for COMMAND...: until it succeeds, for at most 30 seconds.
wait_for() {
    for _ in $(seq 300); do
        if "$@"; then return; fi
        sleep 0.1
    done
    fail "nothing happened for 30 s: $*"
}

# Interrupted while generating: 128 + signal, the timings, the session saved.
for signal in INT:130 TERM:143; do
    rm -f out err s.session
    "${endless[@]}" --session s.session >out 2>err &
    pid=$!
    wait_for test -s out
    kill -"${signal%:*}" "$pid"
    status=0
    wait "$pid" || status=$?
    [ "$status" = "${signal#*:}" ] || fail "$signal: exit status $status"
    err_has "interrupted"
    err_has "memory"
    [ -s s.session ] || fail "the session was not saved"
done

# In JSON: one whole object.
"${endless[@]}" -v --json >out 2>err &
pid=$!
sleep 0.5
kill -INT "$pid"
status=0
wait "$pid" || status=$?
[ "$status" = 130 ] || fail "JSON: exit status $status"
valid_json out
[ "$(json_field out stop_reason)" = interrupt ] || fail "JSON: $(head -c 300 out)"

# While waiting for the prompt.
mkfifo pipe
"$PDVM" run "$model" -f pipe >out 2>err &
pid=$!
exec 9>pipe
sleep 0.2
kill -INT "$pid"
status=0
wait "$pid" || status=$?
exec 9>&-
[ "$status" = 130 ] || fail "waiting for input: exit status $status"

# Evaluating: no result, no unfinished file left behind.
for _ in $(seq 400); do echo "Once upon a time there was a cat that saw a bird in a tree."; done >text
"$PDVM" eval "$model" --text text -c 256 --stride 1 --save-logits logits >out 2>err &
pid=$!
wait_for compgen -G 'logits.tmp-*' >/dev/null
kill -INT "$pid"
status=0
wait "$pid" || status=$?
[ "$status" = 130 ] || fail "eval: exit status $status"
[ ! -s out ] || fail "eval: a result in spite of the interrupt"
[ -z "$(compgen -G 'logits*')" ] || fail "eval: a file was left: $(compgen -G 'logits*')"

# Two interrupts at once: killed, but no unfinished file stays. The second one may come too late.
for _ in 1 2 3; do
    "$PDVM" eval "$model" --text text -c 256 --stride 1 --save-logits logits >out 2>err &
    pid=$!
    wait_for compgen -G 'logits.tmp-*' >/dev/null
    kill -INT "$pid"
    kill -INT "$pid"
    status=0
    wait "$pid" || status=$?
    [ "$status" = 130 ] || fail "two interrupts: exit status $status"
    [ -z "$(compgen -G 'logits*')" ] || fail "two interrupts: left $(compgen -G 'logits*')"
done

# A reader that has enough, a full disk, a closed output: failures, and not endless ones.
status=0
"${endless[@]}" -q 2>err | head -c 1 >out || status=${PIPESTATUS[0]}
[ "$status" = 1 ] || fail "closed pipe: exit status $status"
err_has "cannot write to standard output"
status=0
"${endless[@]}" >&- 2>err || status=$?
[ "$status" = 1 ] || fail "closed output: exit status $status"
if [ -e /dev/full ]; then
    for arguments in "run $model -p x -n 3" "run $model -p x -n 3 --json" \
        "tokenize $model -p x" "tokenize $model --decode 5" "tokenize $model -p x --json" \
        "eval $model --text text --max-tokens 9" "eval $model --text text --max-tokens 9 --json"; do
        status=0
        # shellcheck disable=SC2086
        "$PDVM" $arguments >/dev/full 2>err || status=$?
        [ "$status" = 1 ] || fail "full disk: exit status $status: pdvm $arguments"
        err_has "standard output"
    done
fi

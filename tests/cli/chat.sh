#!/usr/bin/env bash
# pdvm chat: piped conversations, its commands, templates, interrupts; a terminal where python3 is.

set -euo pipefail
. "$SOURCE_DIR/tests/support/cli.sh"
# Jobs in the background get signals as those in the foreground do.
set -m

tiny=$SOURCE_DIR/tests/golden/tiny-gqa
chat=("$PDVM" chat "$tiny" --chat-template chatml --temp 0 -n 6 -q)

# talk STATUS LINE...: a conversation of these lines.
talk() {
    local expected=$1 status=0
    shift
    printf '%s\n' "$@" | "${chat[@]}" >out 2>err || status=$?
    [ "$status" = "$expected" ] || fail "exit status $status instead of $expected: $* $(cat err)"
}

# Without a template: refused with the names and what to do.
for model in "$tiny" "$SOURCE_DIR/models/tales"; do
    refused 1 "the model has no chat template; choose one with --chat-template NAME" \
        "$PDVM" chat "$model"
    err_has "llama-3, "
    err_has "mistral-v7"
done
refused 1 "xyzzy: neither the name of a chat template nor a file; choose one with" \
    "$PDVM" chat "$tiny" --chat-template xyzzy
echo "{{ messages }}" >odd.jinja
refused 1 "odd.jinja: the chat template is of no known family" \
    "$PDVM" chat "$tiny" --chat-template odd.jinja
refused 2 "no model" "$PDVM" chat
refused 2 "a message is given with -p" "$PDVM" chat "$tiny" hello
expect 0 "$PDVM" chat "$tiny" --chat-template chatml -p Hi -n 2
err_has "warning: the vocabulary has no <|im_end|>"

# Templates of the model: recognised, kept by convert and unpack.
cp -r "$tiny" model
echo "{{ '<|im_start|>' + message['role'] }} <|im_end|>" >model/chat_template.jinja
expect 0 "$PDVM" convert model -o model.pdvm -q
expect 0 "$PDVM" unpack model.pdvm -o unpacked -q
cmp model/chat_template.jinja unpacked/chat_template.jinja || fail "unpack changes the template"
talk 0 "Hello there"
cp out expected
for way in "model" "model.pdvm" "unpacked" "$tiny --chat-template model/chat_template.jinja"; do
    # shellcheck disable=SC2086
    echo "Hello there" | "$PDVM" chat $way -n 6 -q --temp 0 >out
    if [ "$way" != unpacked ]; then cmp out expected || fail "another answer from $way"; fi
done
rm model/chat_template.jinja
printf '{"chat_template": "<|start_header_id|><|eot_id|>"}' >model/tokenizer_config.json
expect 0 "$PDVM" chat model -p Hi -n 2
err_has "template llama-3:"

# -p is the first message; the turn before is not computed again.
expect 0 "${chat[@]}" -p "Hello there"
cmp out expected || fail "-p gives another answer"
printf '%s\n' "Hello there" "/regen" | "${chat[@]}" -v >out 2>err
cat expected expected | cmp - out || fail "/regen gives another answer"
grep -q "tokens, 1 computed" err || fail "the conversation was computed again: $(cat err)"
printf '%s\n' "Hello there" "And then" | "${chat[@]}" -n 1 -v >out 2>err
read -r first second < <(sed -nE 's/.* ([0-9]+) computed/\1/p' err | paste -sd ' ' -)
total=$(sed -nE 's/.*: ([0-9]+) tokens, .*/\1/p' err | tail -n 1)
[ $((first + second)) -lt $((total + 8)) ] || fail "computed $first and $second of $total"

# /reset forgets, /system counts, with --system the same.
talk 0 "Something else" "/reset" "Hello there"
tail -n "$(wc -l <expected)" out | cmp - expected || fail "/reset does not forget"
talk 0 "/system Be a cat." "Hello there"
cp out as_cat
if cmp -s as_cat expected; then fail "/system changes nothing"; fi
echo "Hello there" | "${chat[@]}" --system "Be a cat." >out
cmp out as_cat || fail "--system is not /system"
talk 0 "/system Be a cat." "/system" "Hello there"
cmp out expected || fail "/system without a text leaves one"

# /save and /load.
talk 0 "/system Be a cat." "Hello" "/save talk.json" "Go on"
valid_json talk.json
tail -n 1 out >last
grep -q '"Be a cat."' talk.json || fail "the system text was not saved"
[ "$(grep -c '"role"' talk.json)" = 2 ] || fail "other turns: $(cat talk.json)"
talk 0 "/load talk.json" "/save again.json" "Go on"
cmp talk.json again.json || fail "a loaded conversation is saved differently"
tail -n 1 out | cmp - last || fail "a loaded conversation goes on differently"
talk 1 "/load missing.json"
err_has "missing.json"
talk 1 "/save missing/talk.json"
err_has "missing"
[ -z "$(compgen -G '*.tmp-*')" ] || fail "an unfinished file was left"
for bad in '{' '[]' '{"pdvm_chat": 2, "turns": []}' '{"pdvm_chat": 1}' \
    '{"pdvm_chat": 1, "turns": [3]}' '{"pdvm_chat": 1, "turns": [{"role": "user"}]}' \
    '{"pdvm_chat": 1, "turns": [{"role": "assistant", "content": "x"}]}' \
    '{"pdvm_chat": 1, "turns": [{"role": "user", "content": "x"}]}'; do
    printf '%s' "$bad" >bad.json
    talk 1 "/load bad.json" "Hello there"
    err_has "bad.json"
    cmp out expected || fail "a bad file changes the conversation: $bad"
done

# Refusals do not end the conversation.
talk 1 "/xyzzy" "/save" "/regen" $'\xff' "Hello there"
err_has "unknown command '/xyzzy'"
err_has "/save needs the name of a file"
err_has "there is no answer yet"
err_has "not valid UTF-8"
cmp out expected || fail "refused lines change the answer: $(cat out)"
talk 0 "/help" "/quit" "Hello there"
err_has "/load FILE"
[ ! -s out ] || fail "/quit does not end it"
talk 0 "//reset is a message"
[ -s out ] || fail "// is no message"

# A full context: said, and /reset helps; --rolling goes on.
long=$(printf 'word %.0s' $(seq 200))
printf '%s\n' "$long" "/reset" "Hi" | "${chat[@]}" -c 100 >out 2>err && fail "no failure"
err_has "the context is full"
err_has "/reset"
[ -s out ] || fail "nothing after /reset"
printf '%s\n' "$long" | "${chat[@]}" -c 100 --rolling >out 2>err || fail "rolling: $(cat err)"
[ -s out ] || fail "rolling: no answer"

# Ctrl-C stops the answer and not the program; SIGTERM ends it.
for signal in INT TERM; do
    rm -f pipe out
    mkfifo pipe
    "$PDVM" chat "$tiny" --chat-template chatml --ignore-eos --rolling -c 64 -q \
        <pipe >out 2>err &
    pid=$!
    exec 9>pipe
    echo "Hello" >&9
    for _ in $(seq 300); do
        if [ -s out ]; then break; fi
        sleep 0.1
    done
    kill -"$signal" "$pid"
    if [ "$signal" = INT ]; then
        sleep 0.5
        kill -0 "$pid" || fail "SIGINT during an answer ended the program"
        size=$(wc -c <out)
        sleep 0.3
        [ "$(wc -c <out)" = "$size" ] || fail "SIGINT did not stop the answer"
        echo "/save stopped.json" >&9
        echo "/quit" >&9
    fi
    status=0
    wait "$pid" || status=$?
    exec 9>&-
    if [ "$signal" = INT ]; then
        [ "$status" = 0 ] || fail "after SIGINT and /quit: exit status $status: $(cat err)"
        [ "$(grep -c '"role"' stopped.json)" = 2 ] || fail "the answer so far is lost"
    else
        [ "$status" = 143 ] || fail "SIGTERM: exit status $status"
    fi
done

# Output that cannot be written.
if [ -e /dev/full ]; then
    status=0
    echo "Hello" | "${chat[@]}" >/dev/full 2>err || status=$?
    [ "$status" = 1 ] || fail "full disk: exit status $status"
    err_has "cannot write to standard output"
fi

# At a terminal: a prompt, editing, Ctrl-C at the prompt.
command -v python3 >/dev/null || exit 0
cat >terminal.py <<'PYTHON'
import os, pty, select, sys, time

def run(steps):
    pid, fd = pty.fork()
    if pid == 0:
        os.environ["TERM"] = "xterm"
        os.execv(sys.argv[1], sys.argv[1:])
    seen = b""
    def wait_for(text, since):
        nonlocal seen
        end = time.time() + 30
        while text not in seen[since:]:
            if time.time() > end: sys.exit("no %r in %r" % (text, seen[since:]))
            if not select.select([fd], [], [], 1)[0]: continue
            try: data = os.read(fd, 4096)
            except OSError: data = b""
            if not data: sys.exit("the program ended: %r" % seen)
            seen += data
    since = 0
    for awaited, typed in steps:
        wait_for(awaited, since)
        since = seen.index(awaited, since) + len(awaited)
        time.sleep(0.1)
        os.write(fd, typed)
    while True:
        try: data = os.read(fd, 4096)
        except OSError: break
        if not data: break
        seen += data
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), seen

code, seen = run([(b"> ", b"/systex\x7fm hi\n"), (b"> ", b"/save t.json\n"), (b"saved", b""),
                  (b"> ", b"abc"), (b"abc", b"\x03"), (b"> ", b"\x03"), (b"Ctrl-C once more", b"\x03")])
if code != 130: sys.exit("two Ctrl-C: exit status %d: %r" % (code, seen))
if '"hi"' not in open("t.json").read(): sys.exit("editing: %r" % open("t.json").read())
code, seen = run([(b"> ", b"\x04")])
if code != 0: sys.exit("Ctrl-D: exit status %d: %r" % (code, seen))
PYTHON
python3 terminal.py "$PDVM" chat "$tiny" --chat-template chatml >terminal.out 2>&1 ||
    fail "terminal: $(cat terminal.out)"

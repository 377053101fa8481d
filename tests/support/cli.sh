# Sourced by the command-line tests: running the program and looking at what it did.
# shellcheck shell=bash

fail() {
    echo "FAIL: $*" >&2
    exit 1
}

# expect STATUS COMMAND...: run it with output in the files out and err; the exit status must match.
expect() {
    local expected=$1 status=0
    shift
    "$@" >out 2>err </dev/null || status=$?
    if [ "$status" != "$expected" ]; then
        cat err >&2
        fail "exit status $status instead of $expected: $*"
    fi
}

# err_has TEXT / out_has TEXT: the last command's output contains it.
err_has() {
    grep -qF -- "$1" err || fail "standard error does not say '$1': $(cat err)"
}

out_has() {
    grep -qF -- "$1" out || fail "standard output does not say '$1': $(cat out)"
}

# refused STATUS TEXT COMMAND...: it fails like that, says TEXT, and prints no result.
refused() {
    local status=$1 text=$2
    shift 2
    expect "$status" "$@"
    err_has "$text"
    [ ! -s out ] || fail "a result was printed in spite of the error: $*"
}

# valid_json FILE
valid_json() {
    if command -v python3 >/dev/null; then
        python3 -c 'import json, sys; json.load(open(sys.argv[1], encoding="utf-8"))' "$1" ||
            fail "not valid JSON: $(cat "$1")"
    elif command -v jq >/dev/null; then
        jq . "$1" >/dev/null || fail "not valid JSON: $(cat "$1")"
    else
        [ "$(head -c 1 "$1")" = "{" ] && [ "$(tail -n 1 "$1")" = "}" ] ||
            fail "no JSON object: $(cat "$1")"
    fi
}

# json_field FILE NAME: the value of a field that stands on one line of its own.
json_field() {
    sed -n "s/^ *\"$2\": *\"\{0,1\}\([^\",]*\)\"\{0,1\},\{0,1\}\$/\1/p" "$1" | head -n 1
}

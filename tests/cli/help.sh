#!/usr/bin/env bash
# Every command explains itself, and the frame around the commands refuses what it doesn't know.

set -euo pipefail
. "$SOURCE_DIR/tests/support/cli.sh"

expect 0 "$PDVM" help
cp out overview
expect 0 "$PDVM" --help
cmp out overview || fail "'pdvm --help' differs from 'pdvm help'"
expect 2 "$PDVM"
cmp err overview || fail "'pdvm' alone does not print the overview to standard error"

commands=$(sed -n '/^Commands:/,/^$/s/^  \([a-z]*\) .*/\1/p' overview)
for command in run chat convert inspect unpack tokenize eval help version; do
    grep -qx "$command" <<<"$commands" || fail "the overview lacks $command"
done

for command in $commands; do
    expect 0 "$PDVM" help "$command"
    cp out by_help
    expect 0 "$PDVM" "$command" --help
    cmp out by_help || fail "'$command --help' differs from 'help $command'"
    [ ! -s err ] || fail "'$command --help' wrote to standard error"
    out_has "Usage: pdvm"
    # Examples stand as they would be typed.
    if sed '/^Examples:/,$d' out | grep -n '.\{81,\}'; then
        fail "'$command --help' has lines of more than 80 columns"
    fi
done

for command in ${commands/help/}; do
    refused 2 "unknown option '--no-such-thing'" "$PDVM" "$command" --no-such-thing
    err_has "Try 'pdvm $command --help'"
done

refused 2 "unknown command 'rum', did you mean 'run'?" "$PDVM" rum
refused 2 "unknown command 'tokenise', did you mean 'tokenize'?" "$PDVM" tokenise
refused 2 "unknown command 'xyzzy'" "$PDVM" xyzzy
if grep -q "did you mean" err; then fail "a far-fetched suggestion: $(cat err)"; fi
refused 2 "unknown command 'evil', did you mean 'eval'?" "$PDVM" help evil

expect 0 "$PDVM" version
grep -qE '^pdvm [0-9]+\.[0-9]+\.[0-9]+ \(.+\)$' out || fail "an odd version: $(cat out)"
cp out version
expect 0 "$PDVM" --version
cmp out version || fail "'pdvm --version' differs from 'pdvm version'"

# Escape sequences are for terminals only.
if grep -q $'\033' overview by_help; then fail "colours in a file"; fi

# Output that cannot be written is a failure.
if [ -e /dev/full ]; then
    status=0
    "$PDVM" help >/dev/full 2>err || status=$?
    [ "$status" = 1 ] || fail "help to a full disk: exit status $status"
    err_has "cannot write to standard output"
fi
status=0
"$PDVM" version >&- 2>err || status=$?
[ "$status" = 1 ] || fail "version to a closed output: exit status $status"

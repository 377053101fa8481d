#!/usr/bin/env bash
# What `make install` puts down is complete, and a program can be built with nothing else.

set -euo pipefail

if [ -n "$INSTRUMENTED" ]; then
    echo "skipped: programs cannot link instrumented libraries without special flags"
    exit 77
fi

fail() {
    echo "FAIL: $*" >&2
    exit 1
}

prefix=$PWD/prefix
cmake --install "$BUILD_DIR" --prefix "$prefix" >install.log

find_one() {
    local found
    found=$(find "$prefix" -name "$1")
    [ -n "$found" ] || fail "$1 was not installed"
    echo "$found"
}
for file in pdvm.1 _pdvm pdvm.fish LICENSE libpdvm.so libpdvm.a pdvm.h; do
    find_one "$file" >/dev/null
done
[ -e "$prefix/share/bash-completion/completions/pdvm" ] || fail "no bash completion"
"$prefix/bin/pdvm" --version >/dev/null || fail "the installed program does not run"

export PKG_CONFIG_PATH
PKG_CONFIG_PATH=$(dirname "$(find_one pdvm.pc)")
libdir=$(dirname "$(find_one libpdvm.a)")

cat >user.c <<'EOF'
#include <pdvm.h>
#include <stdio.h>
#include <string.h>

/* Names that the library uses inside must be free for its users. */
int pd_fail(void);
int pd_fail(void) { return 0; }

int main(void) {
    pdvm_error err;
    pdvm_model *model = NULL;
    pdvm_status status = pdvm_model_open("no-such-file.pdvm", NULL, &model, &err);
    printf("%s: %s\n", pdvm_version(), err.message);
    return pd_fail() != 0 || status == PDVM_OK || strstr(err.message, "no-such-file") == NULL;
}
EOF

# The output of pkg-config is split into words on purpose.
# shellcheck disable=SC2046
{
    "$CC" -std=c11 -Wall -Wextra -Wpedantic -Werror user.c -o user_shared \
        $(pkg-config --cflags --libs pdvm)
    LD_LIBRARY_PATH=$libdir ./user_shared || fail "the program with the shared library"

    mkdir static
    cp "$libdir/libpdvm.a" static
    "$CC" -std=c11 user.c -o user_static -Lstatic $(pkg-config --cflags pdvm) \
        $(pkg-config --static --libs pdvm | sed 's|-L[^ ]*pkgconfig[^ ]*||')
    ./user_static || fail "the program with the static library"
}

if [ "$(uname -s)" = Linux ]; then
    nm -D --defined-only "$libdir/libpdvm.so" | awk '{ print $3 }' >exported
    nm -g --defined-only "$libdir/libpdvm.a" | awk 'NF == 3 { print $3 }' >visible
    for list in exported visible; do
        [ -s "$list" ] || fail "no symbols $list"
        if grep -v '^pdvm_' "$list"; then
            fail "symbols $list that are not public"
        fi
    done
    cmp exported visible || fail "the two libraries show different symbols"
fi

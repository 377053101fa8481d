#!/usr/bin/env bash
# The man page and the completions know exactly the options that --help lists.

set -euo pipefail
. "$SOURCE_DIR/tests/support/cli.sh"

man=$SOURCE_DIR/docs/man/pdvm.1
# For the bash completion; it needs no terminal.
complete() { :; }
compopt() { :; }
. "$SOURCE_DIR/completions/pdvm.bash"

# bash_flags COMMAND: what the bash completion offers for "pdvm COMMAND -".
bash_flags() {
    # shellcheck disable=SC2034
    COMP_WORDS=(pdvm "$1" -) COMP_CWORD=2
    _pdvm
    printf '%s\n' "${COMPREPLY[@]}"
}

fish_flags() {
    grep -E "__fish_seen_subcommand_from [a-z ]*\b$1\b" "$SOURCE_DIR/completions/pdvm.fish" |
        grep -oE -- ' -[slo] [a-z-]+' | sed -E 's/^ -l /--/; s/^ -[so] /-/'
}

# The names in brackets stand for arrays that several commands share.
zsh_flags() {
    local file=$SOURCE_DIR/completions/_pdvm part
    part=$(sed -n "/^    $1)/,/;;/p" "$file")
    for shared in threads quiet cache sampling; do
        if grep -q "\\\$$shared" <<<"$part"; then
            part+=$(sed -n "/^    $shared=(/,/^    )/p" "$file")
        fi
    done
    grep -oE -- "['{,]\*?--?[a-z-]+[][},]" <<<"$part" | grep -oE -- '--?[a-z-]+'
    grep -oE -- '\{[^}]*\}' <<<"$part" | tr -d '{}' | tr , '\n'
}

for command in $("$PDVM" help | sed -n '/^Commands:/,/^$/s/^  \([a-z]*\) .*/\1/p'); do
    case $command in help | version) continue ;; esac
    "$PDVM" "$command" --help | grep -oE '^  -[A-Za-z-]+(, -[A-Za-z-]+)*' |
        grep -v '^  -h, --help' >entries
    tr -d ' ' <entries | tr , '\n' | sort >flags
    [ -s flags ] || fail "$command: no options found in its help"

    sed -n "/^\.Ss pdvm $command\$/,/^\.El/p" "$man" | grep '^\.It' | grep -oE 'Fl [a-z-]+' |
        sed 's/^Fl /-/' | sort >in_man
    diff flags in_man || fail "$command: the man page (>) and the help (<) disagree"

    for shell in bash fish zsh; do
        "${shell}_flags" "$command" | sort -u | grep -vx -- '--help' >offered
        if comm -13 flags offered | grep .; then
            fail "$command: the $shell completion offers options that do not exist"
        fi
        # Of each option at least one name.
        while read -r entry; do
            tr -d ' ' <<<"$entry" | tr , '\n' | grep -qxFf - offered ||
                fail "$command: the $shell completion lacks $entry"
        done <entries
    done
done

#!/usr/bin/env bash
# From the checkpoint in models/tales to a sparse model and a story. `make demo` builds first.

set -euo pipefail
cd "$(dirname "$0")/.."

pdvm=build/release/pdvm
source=models/tales
model=build/tales.pdvm

# What the demo does; each can be set from the environment.
sparsity=${SPARSITY:-0.4}
prompt=${PROMPT:-Once upon a time}
tokens=${TOKENS:-200}
temperature=${TEMPERATURE:-0.6}
seed=${SEED:-6}
convert_flags=(--method magnitude --sparsity "$sparsity" --scope matrix)

if [ ! -x "$pdvm" ]; then
    echo "demo: there is no $pdvm: run 'make demo', which builds it" >&2
    exit 1
fi
if [ ! -e "$source/config.json" ]; then
    echo "demo: there is no model in $source: is this checkout complete?" >&2
    exit 1
fi

show() {
    printf '$'
    printf ' %q' "$@"
    printf '\n'
}

# Convert again only when the model, the program or the settings changed.
settings="${convert_flags[*]}"
if [ ! -e "$model" ] || [ "$(cat "$model.flags" 2>/dev/null)" != "$settings" ] ||
    [ -n "$(find "$source" "$pdvm" -newer "$model" -type f | head -n 1)" ]; then
    show "$pdvm" convert "$source" -o "$model" "${convert_flags[@]}"
    "$pdvm" convert "$source" -o "$model" "${convert_flags[@]}"
    printf '%s\n' "$settings" >"$model.flags"
    echo
fi

run=("$pdvm" run "$model" -p "$prompt" -n "$tokens" --temp "$temperature" -s "$seed")
show "${run[@]}"
"${run[@]}"

#!/usr/bin/env bash
# What the codings cost: the story model's perplexity on the excerpt whose likelihoods were computed
# with transformers (tests/golden/tales.json).

set -euo pipefail
. "$SOURCE_DIR/tests/support/cli.sh"

source=$SOURCE_DIR/models/tales
golden=$SOURCE_DIR/tests/golden/tales.json
if [ ! -e "$source/config.json" ]; then
    echo "skipped: there is no models/tales in this tree"
    exit 77
fi
expected=$(grep -oE '"mean": [0-9.]+' "$golden" | tail -n 1 | sed 's/.*: //')

# within NLL BOUND: exp(NLL) differs from the expected perplexity by at most this part of it.
within() {
    awk -v nll="$1" -v expected="$expected" -v bound="$2" \
        'BEGIN { d = exp(nll - expected) - 1; if (d < 0) d = -d
            printf "nll %s instead of %s: perplexity differs by %.3f %%\n", nll, expected, 100 * d
            exit !(nll != "" && expected > 1 && d <= bound) }' || fail "more than $2"
}

# measure MODEL: sets nll, in one window that holds the text.
measure() {
    expect 0 "$PDVM" eval "$1" --text "$SOURCE_DIR/tests/golden/excerpt.txt" -c 512 --json \
        -ctk f32 -ctv f32
    nll=$(json_field out nll)
}

# code FLAGS...: makes model.pdvm.
code() {
    expect 0 "$PDVM" convert "$source" -o model.pdvm -q "$@"
}

code --values f32 --embed f32
measure model.pdvm
within "$nll" 1e-4

code
measure model.pdvm
within "$nll" 0.005
coded=$nll
measure "$source"
[ "$nll" = "$coded" ] || fail "the directory converted in memory gives $nll, the file $coded"

# Looking for codebooks takes long in instrumented code.
if [ -n "$INSTRUMENTED" ]; then exit 0; fi
code --values lut4
measure model.pdvm
within "$nll" 0.08

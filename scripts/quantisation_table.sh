#!/usr/bin/env bash
# Measures what each coding and sparsity costs: the table of docs/quantisation.md, as Markdown.
#
#     scripts/quantisation_table.sh MODEL TEXT [TOKENS]
#
# MODEL is a Hugging Face directory, TEXT a text that it was not trained on; the first TOKENS (20000)
# of it are scored. Needs a build in build/release and room for one converted model in TMPDIR.
# THREADS (0, all) is passed to both commands; 1 is better on a busy machine.

set -euo pipefail

if [ $# -lt 2 ] || [ $# -gt 3 ]; then
    sed -n '2,8s/^# \{0,1\}//p' "$0" >&2
    exit 2
fi
model=$1
text=$2
tokens=${3:-20000}
threads=${THREADS:-0}
pdvm=$(cd "$(dirname "$0")/.." && pwd)/build/release/pdvm
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

baseline=

# row CONVERT-FLAGS...: one line of the table.
row() {
    local table total bits error perplexity stderr size
    table=$("$pdvm" convert "$model" -o "$work/model.pdvm" -t "$threads" "$@" 2>/dev/null)
    total=$(grep '^total' <<<"$table")
    # total WEIGHTS UNIT ZEROS % [BEFORE %] BITS SIZE UNIT ERROR ...
    bits=$(sed -E 's/^total +[^%]*%( +[0-9.]+ %)? +([0-9.]+) .*/\2/' <<<"$total")
    error=$(sed -E 's/^total .* [KMG]iB +([^ ]+).*/\1/' <<<"$total")
    size=$(stat -c %s "$work/model.pdvm" 2>/dev/null || stat -f %z "$work/model.pdvm")
    read -r perplexity stderr < <("$pdvm" eval "$work/model.pdvm" --text "$text" -q \
        -t "$threads" -c 512 --stride 448 -ctk f32 -ctv f32 --max-tokens "$tokens" |
        awk '$1 == "perplexity" { print $2, $4 }')
    baseline=${baseline:-$perplexity}
    awk -v flags="$*" -v bits="$bits" -v size="$size" -v error="$error" -v p="$perplexity" \
        -v e="$stderr" -v b="$baseline" 'BEGIN {
        printf "| `%s` | %s | %.1f | %s | %.3f ± %.2f | %+.2f %% |\n", flags, bits, size / 1e6,
               error, p, e, 100 * (p / b - 1) }'
}

# shellcheck disable=SC2016
echo '| `convert` flags | bits/weight | MB | error | perplexity | change |'
echo '|---|---|---|---|---|---|'
row --values f32 --embed f32
row --values bf16 --embed bf16
row --values f16 --embed f16
row --values f16
for group in 0 64; do
    row --values int8 --group "$group"
done
for codebook in linear prime learned; do
    row --values lut8 --codebook "$codebook"
done
for codebook in linear prime learned; do
    for group in 0 256 128 64 32; do
        row --values lut4 --codebook "$codebook" --group "$group"
    done
done
for sparsity in 0.3 0.4 0.5 0.6 0.7; do
    row --method magnitude --sparsity "$sparsity"
done
for sparsity in 0.4 0.5; do
    row --method magnitude --sparsity "$sparsity" --scope matrix
done
row --method magnitude --sparsity 0.4 --scope matrix --values lut4
row --method magnitude --sparsity 0.5 --values lut4

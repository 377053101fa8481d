#!/usr/bin/env bash
# The standard table of the CPU engine: the 1.1B shape, dense and at several sparsities, one and two
# threads, and prompts; with the bars that CONTRIBUTING.md asks changes to keep.
#
#     bench/cpu.sh [-o NAME] [PDVM]
#
# PDVM is the program (build/release/pdvm). -o NAME also keeps the result in bench/results/NAME.json
# and NAME.md. All figures are of models with random weights and need no files, but 7 GB of memory
# and a machine that does nothing else. REPETITIONS (5), GEN (16), PROMPT (256) and SHAPE
# (tinyllama-1.1b) are taken from the environment.

set -euo pipefail

name=
while getopts o: flag; do
    case $flag in
    o) name=$OPTARG ;;
    *) sed -n '2,11s/^# \{0,1\}//p' "$0" >&2 && exit 2 ;;
    esac
done
shift $((OPTIND - 1))
here=$(cd "$(dirname "$0")" && pwd)
pdvm=${1:-$here/../build/release/pdvm}
shape=${SHAPE:-tinyllama-1.1b}
repetitions=${REPETITIONS:-5}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

threads=1
[ "$(nproc)" -lt 2 ] || threads=1,2

"$pdvm" bench --shape "$shape" --sparsity 0,0.5,0.6,0.7,0.9 --values int8,lut4@0.5 \
    -p 0 -n "${GEN:-16}" -r "$repetitions" -t "$threads" -o json >"$work/generation.json"
"$pdvm" bench --shape "$shape" --sparsity 0.5 --values int8,lut4 --codebook linear --group 0 \
    -p 0 -n "${GEN:-16}" -r "$repetitions" -t "$threads" -o json >"$work/linear.json"
"$pdvm" bench --shape "$shape" --sparsity 0,0.5 --values int8,lut4@0.5 \
    -p "${PROMPT:-256}" -n 0 -r "$repetitions" -t "$threads" -o json >"$work/prompts.json"

python3 "$here/report.py" --bars "$work"/{generation,linear,prompts}.json >"$work/report.md"
cat "$work/report.md"
if [ -n "$name" ]; then
    mkdir -p "$here/results"
    cp "$work/report.md" "$here/results/$name.md"
    python3 "$here/report.py" --merge "$work"/{generation,linear,prompts}.json \
        >"$here/results/$name.json"
    echo "kept as bench/results/$name.md and .json" >&2
fi

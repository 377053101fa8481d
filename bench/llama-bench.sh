#!/usr/bin/env bash
# Runs llama.cpp's llama-bench (or a fork's) and pdvm bench on the same tests, taking turns, and
# prints one table of both.
#
#     bench/llama-bench.sh MODEL.gguf [PDVM-MODEL...]
#
# llama-bench is found in PATH or named by LLAMA_BENCH. PDVM-MODEL are paths, or shapes such as
# shape:tinyllama-1.1b:int8:0.5 (coding and sparsity); without any, pdvm runs MODEL.gguf itself.
# From the environment: REPETITIONS (5), PROMPT (512), GEN (128), THREADS (1), PDVM
# (build/release/pdvm), LLAMA_BENCH_FLAGS (such as "-rtr 1" of ik_llama.cpp).

set -euo pipefail

if [ $# -lt 1 ]; then
    sed -n '2,11s/^# \{0,1\}//p' "$0" >&2
    exit 2
fi
here=$(cd "$(dirname "$0")" && pwd)
pdvm=${PDVM:-$here/../build/release/pdvm}
peer=${LLAMA_BENCH:-$(command -v llama-bench || true)}
if [ -z "$peer" ] || ! command -v "$peer" >/dev/null; then
    echo "llama-bench is not installed: put it into PATH or name it by LLAMA_BENCH" >&2
    exit 77
fi
gguf=$1
shift
[ $# -gt 0 ] || set -- "$gguf"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

tests=(-p "${PROMPT:-512}" -n "${GEN:-128}" -t "${THREADS:-1}" -r 1 -o json)
flags=()
[ -z "${LLAMA_BENCH_FLAGS:-}" ] || read -ra flags <<<"$LLAMA_BENCH_FLAGS"

for round in $(seq "${REPETITIONS:-5}"); do
    "$peer" -m "$gguf" "${tests[@]}" ${flags[@]+"${flags[@]}"} >"$work/$round-peer.json" 2>"$work/log" || {
        cat "$work/log" >&2
        echo "$peer failed" >&2
        exit 1
    }
    number=0
    for model in "$@"; do
        number=$((number + 1))
        case $model in
        shape:*)
            IFS=: read -r _ shape values sparsity <<<"$model"
            "$pdvm" bench --shape "$shape" --values "${values:-int8}" --sparsity "${sparsity:-0.5}" \
                "${tests[@]}" -q >"$work/$round-own-$number.json"
            ;;
        *) "$pdvm" bench -m "$model" "${tests[@]}" -q >"$work/$round-own-$number.json" ;;
        esac
    done
done
python3 "$here/report.py" "$work"/*.json

#!/usr/bin/env bash
# bench/: the standard table with its bars, and llama-bench's results beside ours. A stand-in prints
# what llama-bench -o json does.

set -euo pipefail
. "$SOURCE_DIR/tests/support/cli.sh"

command -v python3 >/dev/null || exit 77
shape=hidden=128,layers=2,intermediate=320,heads=4,kv-heads=2,vocab=300

SHAPE=$shape REPETITIONS=1 GEN=2 PROMPT=16 expect 0 bash "$SOURCE_DIR/bench/cpu.sh" "$PDVM"
out_has "| int8 90 % / int8 dense, 1 thread | "
out_has "| lut4/g64 50 % / int8 50 %, 1 thread | "
out_has "| lut4 linear 50 % / int8 50 %, 1 thread | "
out_has "| int8 50 %, pp16, 1 thread: t/s | "
[ "$(grep -c '^| pdvm .* | 1 | tg2 |' out)" = 7 ] || fail "seven models with one thread: $(cat out)"

refused 77 "not installed" env LLAMA_BENCH=/nowhere bash "$SOURCE_DIR/bench/llama-bench.sh" x.gguf

cat >llama-bench <<'PEER'
#!/usr/bin/env bash
echo "$*" >>calls
cat <<'JSON'
[{"build_commit": "abc1234", "cpu_info": "A CPU", "backends": "CPU", "model_filename": "x.gguf",
  "model_type": "llama 1B Q8_0", "model_size": 1170000000, "model_n_params": 1100000000,
  "n_threads": 1, "n_prompt": 16, "n_gen": 0, "n_depth": 0, "avg_ns": 1, "stddev_ns": 0,
  "avg_ts": 200.5, "stddev_ts": 0.0, "samples_ns": [1], "samples_ts": [200.5]},
 {"build_commit": "abc1234", "cpu_info": "A CPU", "backends": "CPU", "model_filename": "x.gguf",
  "model_type": "llama 1B Q8_0", "model_size": 1170000000, "model_n_params": 1100000000,
  "n_threads": 1, "n_prompt": 0, "n_gen": 2, "n_depth": 0, "avg_ns": 1, "stddev_ns": 0,
  "avg_ts": 31.6, "stddev_ts": 0.0, "samples_ns": [1], "samples_ts": [31.6]}]
JSON
PEER
chmod +x llama-bench
expect 0 env PATH="$PWD:$PATH" PDVM="$PDVM" REPETITIONS=2 PROMPT=16 GEN=2 LLAMA_BENCH_FLAGS="-rtr 1" \
    bash "$SOURCE_DIR/bench/llama-bench.sh" x.gguf "$SOURCE_DIR/tests/golden/tiny-gqa" \
    "shape:$shape:int8:0.7"
out_has "| llama-bench abc1234 | llama 1B Q8_0 | 1116 MiB | 8.51 | cpu | 1 | tg2 | 31.60 ± 0.00 | 31.60 |"
grep -qE '^\| pdvm [0-9a-z]+ \| tiny-gqa \| .* \| pp16 \| [0-9.]+ ± [0-9.]+ \|' out || fail "ours: $(cat out)"
grep -qE '^\| pdvm .* int8 70 % .* tg2 .* \| [0-9]+ % \|$' out || fail "the shape: $(cat out)"
[ "$(wc -l <calls)" = 2 ] || fail "one call of the peer for each repetition"
grep -qF -- "-m x.gguf -p 16 -n 2 -t 1 -r 1 -o json -rtr 1" calls || fail "calls: $(cat calls)"

# Results that were merged can be compared with.
"$PDVM" bench --shape "$shape" -p 0 -n 2 -r 1 -t 1 -q --json >a.json
"$PDVM" bench --shape "$shape" -p 0 -n 2 -r 1 -t 1 -q --json >b.json
expect 0 python3 "$SOURCE_DIR/bench/report.py" --merge a.json b.json
cp out merged.json
valid_json merged.json
expect 0 "$PDVM" bench --shape "$shape" -p 0 -n 2 -r 1 -t 1 -q --compare merged.json
out_has "Compared with merged.json"

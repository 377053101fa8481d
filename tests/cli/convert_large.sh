#!/usr/bin/env bash
# pdvm convert with a model that is large beside memory: one matrix at a time, and interruptible.
# ctest: timeout=180

set -euo pipefail
. "$SOURCE_DIR/tests/support/cli.sh"
# Jobs in the background get signals as those in the foreground do.
set -m

# A checkpoint of zeros takes no room on the disk: 6 layers of 3 x 51 MB.
layers=6
hidden=64
inner=400000
vocab=512
mkdir model
cat >model/config.json <<EOF
{"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": $hidden,
 "intermediate_size": $inner, "num_hidden_layers": $layers, "num_attention_heads": 4,
 "num_key_value_heads": 4, "vocab_size": $vocab, "max_position_embeddings": 64,
 "rms_norm_eps": 1e-05, "rope_theta": 10000.0, "tie_word_embeddings": true}
EOF
offset=0
header='{'
# tensor NAME SHAPE ELEMENTS
tensor() {
    local end=$((offset + 2 * $3))
    header+="\"$1\":{\"dtype\":\"BF16\",\"shape\":[$2],\"data_offsets\":[$offset,$end]},"
    offset=$end
}
tensor model.embed_tokens.weight "$vocab,$hidden" $((vocab * hidden))
for ((i = 0; i < layers; i++)); do
    name=model.layers.$i
    tensor $name.input_layernorm.weight $hidden $hidden
    tensor $name.post_attention_layernorm.weight $hidden $hidden
    for part in q k v o; do
        tensor $name.self_attn.${part}_proj.weight "$hidden,$hidden" $((hidden * hidden))
    done
    tensor $name.mlp.gate_proj.weight "$inner,$hidden" $((inner * hidden))
    tensor $name.mlp.up_proj.weight "$inner,$hidden" $((inner * hidden))
    tensor $name.mlp.down_proj.weight "$hidden,$inner" $((inner * hidden))
done
tensor model.norm.weight $hidden $hidden
header=${header%,}'}'
size=${#header}
{
    for ((i = 0; i < 8; i++)); do
        # shellcheck disable=SC2059
        printf "\\$(printf %03o $(((size >> (8 * i)) & 255)))"
    done
    printf %s "$header"
} >model/model.safetensors
truncate -s $((8 + size + offset)) model/model.safetensors

# Interrupted: 130, the old file as it was, the unfinished one gone.
echo old >old.pdvm
"$PDVM" convert model -o old.pdvm -t 1 >out 2>err &
pid=$!
for _ in $(seq 300); do
    [ -n "$(ls old.pdvm.tmp-* 2>/dev/null)" ] && break
    sleep 0.02
done
kill -INT "$pid"
status=0
wait "$pid" || status=$?
[ "$status" = 130 ] || fail "exit status $status after an interrupt: $(cat err)"
err_has "interrupted"
[ "$(cat old.pdvm)" = old ] || fail "the old file was changed"
[ -z "$(ls old.pdvm.tmp-* 2>/dev/null)" ] || fail "an unfinished file is left"

# In memory: one matrix as floats (102 MB) and as codes, not the checkpoint's 920 MB.
if [ -n "$INSTRUMENTED" ]; then exit 0; fi
expect 0 "$PDVM" convert model -o new.pdvm --json
valid_json out
memory=$(json_field out peak_memory)
[ "$memory" -lt 400000000 ] || fail "$memory bytes of memory"
rm new.pdvm

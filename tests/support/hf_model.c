#include "support/hf_model.h"

#include "base/half.h"
#include "base/hash.h"
#include "model/tensors.h"
#include "support/support.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const struct model_config sizes = {
    .hidden_size = 16,
    .intermediate_size = 24,
    .n_layers = 2,
    .n_heads = 4,
    .n_kv_heads = 2,
    .head_dim = 4,
    .n_vocab = 32,
};

/* Quarters in -2..2, a third of them zero: exact in half floats, and something to prune. */
float hf_model_value(const char *name, int64_t i) {
    uint64_t hash = pd_hash(pd_hash(PD_HASH_INIT, name, strlen(name)), &i, sizeof i);
    hash ^= hash >> 29;
    return hash % 3 == 0 ? 0.0f : (float)((int)(hash / 3 % 17) - 8) * 0.25f;
}

static void put(enum safetensors_dtype dtype, float value, uint8_t *out) {
    uint16_t half = dtype == SAFETENSORS_F16 ? pd_float_to_f16(value) : pd_float_to_bf16(value);
    double d = value;
    if (dtype == SAFETENSORS_F32) memcpy(out, &value, sizeof value);
    if (dtype == SAFETENSORS_F64) memcpy(out, &d, sizeof d);
    if (dtype == SAFETENSORS_F16 || dtype == SAFETENSORS_BF16) memcpy(out, &half, sizeof half);
}

static void write_tensor(struct safetensors_writer *w, const struct hf_model *model,
                         const char *name, const int64_t *dims, int n_dims) {
    enum safetensors_dtype dtype = model->dtype ? model->dtype : SAFETENSORS_F32;
    size_t element = safetensors_dtype_size(dtype);
    int64_t n = n_dims == 2 ? dims[0] * dims[1] : dims[0];
    uint8_t *data = calloc((size_t)n, element);
    pdvm_error err = {0};
    if (!data) support_fail("out of memory");
    for (int64_t i = 0; i < n; i++)
        put(dtype, hf_model_value(name, i) + model->offset, data + (size_t)i * element);
    pdvm_status status =
        safetensors_writer_tensor(w, name, dtype, dims, n_dims, data, (size_t)n * element, &err);
    free(data);
    assert_ok(status, &err);
}

static bool is(const char *name, const char *wanted) {
    return wanted && !strcmp(name, wanted);
}

static void write_config(const char *dir, const struct hf_model *model) {
    char text[1024];
    snprintf(text, sizeof text,
             "{\"architectures\": [\"LlamaForCausalLM\"], \"model_type\": \"llama\", "
             "\"hidden_size\": %u, \"intermediate_size\": %u, \"num_hidden_layers\": %u, "
             "\"num_attention_heads\": %u, \"num_key_value_heads\": %u, \"vocab_size\": %u, "
             "\"max_position_embeddings\": 64, \"rms_norm_eps\": 1e-05, \"rope_theta\": 10000.0, "
             "\"tie_word_embeddings\": %s, \"bos_token_id\": 1, \"eos_token_id\": 2}",
             sizes.hidden_size, sizes.intermediate_size, sizes.n_layers, sizes.n_heads,
             sizes.n_kv_heads, sizes.n_vocab, model->tied ? "true" : "false");
    free(support_write_text(dir, "config.json", model->config ? model->config : text));
}

static void shard_name(char *out, size_t size, int shard, int n_shards) {
    if (n_shards == 0)
        snprintf(out, size, "model.safetensors");
    else
        snprintf(out, size, "model-%05d-of-%05d.safetensors", shard + 1, n_shards);
}

/* Writes the tensors of one shard and adds them to the index's text. */
static void write_shard(const char *dir, const struct hf_model *model, int shard, char *map,
                        size_t map_size) {
    struct model_config config = sizes;
    char file[64];
    int n_shards = model->n_shards ? model->n_shards : 1;
    struct safetensors_writer *w;
    pdvm_error err = {0};
    config.tie_word_embeddings = model->tied;
    shard_name(file, sizeof file, shard, model->n_shards);
    char *path = support_path(dir, file);
    assert_ok(safetensors_writer_open(path, 8192, &w, &err), &err);
    free(path);
    size_t n = tensors_count(&config);
    for (size_t i = (size_t)shard; i < n + 1; i += (size_t)n_shards) {
        struct tensor_info t;
        if (i < n) {
            tensors_at(&config, i, &t);
        } else {
            if (!model->extra) continue;
            t = (struct tensor_info){.rows = 1, .cols = 4};
            snprintf(t.name, sizeof t.name, "%s", model->extra);
        }
        if (is(t.name, model->skip)) continue;
        int64_t dims[2] = {t.rows + is(t.name, model->misshape), t.cols};
        if (is(t.name, model->flatten)) dims[0] *= dims[1];
        if (t.is_matrix)
            write_tensor(w, model, t.name, dims, is(t.name, model->flatten) ? 1 : 2);
        else
            write_tensor(w, model, t.name, (int64_t[]){t.cols + is(t.name, model->misshape)}, 1);
        size_t used = strlen(map);
        snprintf(map + used, map_size - used, "%s\"%s\": \"%s\"", used ? ", " : "", t.name, file);
    }
    assert_ok(safetensors_writer_commit(w, &err), &err);
}

void hf_model_write(const char *dir, const struct hf_model *model) {
    char map[8192] = "", text[8400];
    write_config(dir, model);
    for (int i = 0; i == 0 || i < model->n_shards; i++) write_shard(dir, model, i, map, sizeof map);
    if (model->n_shards == 0) return;
    snprintf(text, sizeof text, "{\"metadata\": {\"total_size\": 0}, \"weight_map\": {%s}}", map);
    free(support_write_text(dir, "model.safetensors.index.json", text));
}

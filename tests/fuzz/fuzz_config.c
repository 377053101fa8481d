// Fuzz target: any bytes as config.json and as generation_config.json. What is accepted must be
// safe to size a model by.

#include "model/config.h"
#include "model/rope.h"
#include "model/tensors.h"

#include <math.h>
#include <stdint.h>
#include <stdlib.h>

static void check_rope(const struct model_config *c) {
    const struct rope_scaling *s = &c->rope_scaling;
    if (s->kind != ROPE_SCALING_NONE && !(s->factor > 0)) abort();
    if (s->kind == ROPE_SCALING_LLAMA3 && !(s->high_freq_factor > s->low_freq_factor)) abort();
    if (!(rope_attention_factor(c) > 0) || !isfinite(rope_attention_factor(c))) abort();
    if (c->head_dim > 4096 || c->rope_theta < 1e-30f) return;
    float inv_freq[2048];
    rope_frequencies(c, inv_freq);
    for (uint32_t i = 0; i < c->head_dim / 2; i++)
        if (!(inv_freq[i] >= 0) || !isfinite(inv_freq[i])) abort();
}

static void check_windows(const struct model_config *c) {
    uint32_t n = 0;
    for (uint32_t l = 0; l < c->n_layers; l++) n += model_config_window(c, l) > 0;
    if ((n > 0) != (c->sliding_window > 0)) abort();
    for (uint32_t l = c->n_layers; l < MODEL_MAX_WINDOW_LAYERS; l++)
        if (model_config_window(c, l)) abort();
}

static void check(const struct model_config *c) {
    if (c->n_heads == 0 || c->n_kv_heads == 0 || c->n_heads % c->n_kv_heads != 0) abort();
    if (c->head_dim == 0 || c->head_dim % 2 != 0 || c->n_vocab == 0 || c->n_layers == 0) abort();
    if (!(c->rms_norm_eps > 0) || !(c->rope_theta > 0)) abort();
    if (c->n_eos > MODEL_MAX_EOS) abort();
    for (uint32_t i = 0; i < c->n_eos; i++)
        if (c->eos_token_ids[i] < 0 || (uint32_t)c->eos_token_ids[i] >= c->n_vocab) abort();
    if (c->bos_token_id < -1 || c->bos_token_id >= (int64_t)c->n_vocab) abort();
    check_rope(c);
    check_windows(c);
    size_t n = tensors_count(c);
    for (size_t i = 0; i < n; i += n / 16 + 1) {
        struct tensor_info info;
        tensors_at(c, i, &info);
        if (info.rows <= 0 || info.cols <= 0 || info.rows > INT64_MAX / 4 / info.cols) abort();
        if (tensors_index(c, info.role, info.layer) != i) abort();
        struct tensor_info whole;
        int64_t row;
        if (tensors_fused(c, info.role, info.layer, &whole, &row) &&
            (row < 0 || row > whole.rows - info.rows || whole.cols != info.cols))
            abort();
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    struct model_config config;
    pdvm_error err;
    if (model_config_parse("fuzz", (const char *)data, size, &config, &err) == PDVM_OK)
        check(&config);
    else if (err.message[0] == 0)
        abort();
    struct model_config base = {.n_layers = 1, .n_heads = 1, .n_kv_heads = 1, .head_dim = 2};
    base.hidden_size = base.intermediate_size = 2;
    base.n_vocab = 100;
    base.rms_norm_eps = base.rope_theta = 1;
    if (model_config_parse_generation("fuzz", (const char *)data, size, &base, &err) == PDVM_OK)
        check(&base);
    return 0;
}

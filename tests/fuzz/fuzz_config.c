// Fuzz target: any bytes as config.json and as generation_config.json. What is accepted must be
// safe to size a model by.

#include "model/config.h"
#include "model/tensors.h"

#include <stdint.h>
#include <stdlib.h>

static void check(const struct model_config *c) {
    if (c->n_heads == 0 || c->n_kv_heads == 0 || c->n_heads % c->n_kv_heads != 0) abort();
    if (c->head_dim == 0 || c->head_dim % 2 != 0 || c->n_vocab == 0 || c->n_layers == 0) abort();
    if (!(c->rms_norm_eps > 0) || !(c->rope_theta > 0)) abort();
    if (c->n_eos > MODEL_MAX_EOS) abort();
    for (uint32_t i = 0; i < c->n_eos; i++)
        if (c->eos_token_ids[i] < 0 || (uint32_t)c->eos_token_ids[i] >= c->n_vocab) abort();
    if (c->bos_token_id < -1 || c->bos_token_id >= (int64_t)c->n_vocab) abort();
    size_t n = tensors_count(c);
    for (size_t i = 0; i < n; i += n / 16 + 1) {
        struct tensor_info info;
        tensors_at(c, i, &info);
        if (info.rows <= 0 || info.cols <= 0 || info.rows > INT64_MAX / 4 / info.cols) abort();
        if (tensors_index(c, info.role, info.layer) != i) abort();
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

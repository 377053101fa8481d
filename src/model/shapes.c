#include "model/shapes.h"

#include "base/alloc.h"

#include <errno.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Says nothing about speed; large enough for any depth that fits memory. */
#define SHAPE_MAX_CONTEXT 1048576

struct shape {
    const char *name;
    const char *architecture;
    int64_t hidden, intermediate, layers, heads, kv_heads, head_dim, vocab, tied;
};

static const struct shape shapes[] = {
    {"tiny", "llama", 256, 704, 4, 8, 4, 32, 2000, 0},
    {"smollm2-135m", "llama", 576, 1536, 30, 9, 3, 64, 49152, 1},
    {"smollm2-1.7b", "llama", 2048, 8192, 24, 32, 32, 64, 49152, 1},
    {"tinyllama-1.1b", "llama", 2048, 5632, 22, 32, 4, 64, 32000, 0},
    {"llama2-7b", "llama", 4096, 11008, 32, 32, 32, 128, 32000, 0},
    {"llama2-13b", "llama", 5120, 13824, 40, 40, 40, 128, 32000, 0},
    {"llama2-70b", "llama", 8192, 28672, 80, 64, 8, 128, 32000, 0},
    {"llama3-8b", "llama", 4096, 14336, 32, 32, 8, 128, 128256, 0},
    {"llama3.2-1b", "llama", 2048, 8192, 16, 32, 8, 64, 128256, 1},
    {"llama3.2-3b", "llama", 3072, 8192, 28, 24, 8, 128, 128256, 1},
    {"mistral-7b", "llama", 4096, 14336, 32, 32, 8, 128, 32768, 0},
    {"qwen2.5-0.5b", "qwen2", 896, 4864, 24, 14, 2, 64, 151936, 1},
    {"qwen2.5-1.5b", "qwen2", 1536, 8960, 28, 12, 2, 128, 151936, 1},
    {"qwen2.5-7b", "qwen2", 3584, 18944, 28, 28, 4, 128, 152064, 0},
    {"qwen3-0.6b", "qwen3", 1024, 3072, 28, 16, 8, 128, 151936, 1},
    {"qwen3-1.7b", "qwen3", 2048, 6144, 28, 16, 8, 128, 151936, 1},
    {"qwen3-4b", "qwen3", 2560, 9728, 36, 32, 8, 128, 151936, 1},
    {"qwen3-8b", "qwen3", 4096, 12288, 36, 32, 8, 128, 151936, 0},
    {"phi3-mini", "phi3", 3072, 8192, 32, 32, 32, 96, 32064, 0},
};
#define N_SHAPES (sizeof shapes / sizeof *shapes)

const char *shape_name(size_t i) {
    return i < N_SHAPES ? shapes[i].name : NULL;
}

static pdvm_status unknown_shape(const char *text, pdvm_error *err) {
    char list[512];
    size_t n = 0;
    for (size_t i = 0; i < N_SHAPES && n < sizeof list; i++)
        n += (size_t)snprintf(list + n, sizeof list - n, "%s%s", i ? ", " : "", shapes[i].name);
    return pd_fail(err, PDVM_ERR_ARGUMENT,
                   "unknown shape \"%.80s\": known are %s; or give your own, as in "
                   "hidden=1024,layers=8,intermediate=2816,heads=16,kv-heads=4,vocab=32000",
                   text, list);
}

/* One FIELD=VALUE of a list. `field` ends at `length`. */
static pdvm_status set_field(struct shape *s, const char *field, size_t length, pdvm_error *err) {
    static const char *const architectures[] = {"llama", "mistral", "qwen2", "qwen3", "phi3"};
    const struct {
        const char *name;
        int64_t *target;
    } fields[] = {{"hidden", &s->hidden},     {"intermediate", &s->intermediate},
                  {"layers", &s->layers},     {"heads", &s->heads},
                  {"kv-heads", &s->kv_heads}, {"head-dim", &s->head_dim},
                  {"vocab", &s->vocab},       {"tied", &s->tied}};
    const char *equals = memchr(field, '=', length);
    size_t n_name = equals ? (size_t)(equals - field) : length;
    size_t n_value = equals ? length - n_name - 1 : 0;
    if (n_value > 0 && n_name == 4 && memcmp(field, "arch", 4) == 0) {
        for (size_t i = 0; i < sizeof architectures / sizeof *architectures; i++) {
            if (strlen(architectures[i]) != n_value ||
                memcmp(architectures[i], equals + 1, n_value) != 0)
                continue;
            s->architecture = architectures[i];
            return PDVM_OK;
        }
        return pd_fail(err, PDVM_ERR_ARGUMENT,
                       "shape: unknown arch \"%.*s\": llama, mistral, qwen2, qwen3 or phi3",
                       (int)n_value, equals + 1);
    }
    for (size_t i = 0; n_value > 0 && i < sizeof fields / sizeof *fields; i++) {
        if (strlen(fields[i].name) != n_name || memcmp(fields[i].name, field, n_name) != 0)
            continue;
        char *end;
        errno = 0;
        long long value = strtoll(equals + 1, &end, 10);
        if (end != equals + 1 + n_value || errno || value < 0) break;
        *fields[i].target = value;
        return PDVM_OK;
    }
    return pd_fail(err, PDVM_ERR_ARGUMENT,
                   "shape: \"%.*s\": expected FIELD=NUMBER with one of hidden, intermediate, "
                   "layers, heads, kv-heads, head-dim, vocab, tied, or arch=NAME",
                   (int)length, field);
}

static pdvm_status parse_list(const char *text, struct shape *s, pdvm_error *err) {
    *s = (struct shape){.architecture = "llama", .vocab = 32000};
    for (const char *p = text;;) {
        size_t length = strcspn(p, ",");
        PD_TRY(set_field(s, p, length, err));
        if (p[length] == '\0') break;
        p += length + 1;
    }
    if (s->hidden == 0 || s->layers == 0)
        return pd_fail(err, PDVM_ERR_ARGUMENT, "shape \"%.80s\": hidden and layers are needed",
                       text);
    if (s->head_dim == 0) s->head_dim = s->heads > 0 ? s->hidden / s->heads : 64;
    if (s->heads == 0 && s->head_dim > 0) s->heads = s->hidden / s->head_dim;
    if (s->heads == 0) s->heads = 1;
    if (s->kv_heads == 0) s->kv_heads = s->heads;
    /* Llama's 8/3 of the width, to whole blocks of 64. */
    if (s->intermediate == 0) s->intermediate = (s->hidden / 3 * 8 + 63) / 64 * 64;
    if (s->intermediate == 0) s->intermediate = 64;
    return PDVM_OK;
}

pdvm_status shape_config(const char *text, char **json, pdvm_error *err) {
    struct shape s = {0};
    *json = NULL;
    for (size_t i = 0; i < N_SHAPES; i++)
        if (strcmp(shapes[i].name, text) == 0) s = shapes[i];
    if (!s.architecture) {
        if (!strchr(text, '=')) return unknown_shape(text, err);
        PD_TRY(parse_list(text, &s, err));
    }
    size_t size = 1024;
    char *out;
    PD_TRY(pd_calloc(&out, size, 1, "a configuration", err));
    snprintf(out, size,
             "{\"model_type\": \"%s\", \"hidden_size\": %lld, \"intermediate_size\": %lld, "
             "\"num_hidden_layers\": %lld, \"num_attention_heads\": %lld, "
             "\"num_key_value_heads\": %lld, \"head_dim\": %lld, \"vocab_size\": %lld, "
             "\"tie_word_embeddings\": %s, \"max_position_embeddings\": %d, "
             "\"rms_norm_eps\": 1e-5, \"rope_theta\": 10000.0, \"hidden_act\": \"silu\", "
             "\"sliding_window\": null, \"bos_token_id\": null, \"eos_token_id\": null, "
             "\"pad_token_id\": null}",
             s.architecture, (long long)s.hidden, (long long)s.intermediate, (long long)s.layers,
             (long long)s.heads, (long long)s.kv_heads, (long long)s.head_dim, (long long)s.vocab,
             s.tied ? "true" : "false", SHAPE_MAX_CONTEXT);
    *json = out;
    return PDVM_OK;
}

/*
 * Saved sessions: a safetensors file with the tokens, the rows of the cache and the logits, bound
 * to its model by fingerprint and to its contents by a hash.
 */
#include "base/alloc.h"
#include "base/hash.h"
#include "engine/engine.h"
#include "io/safetensors.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define SESSION_VERSION "1"
#define TENSOR_TOKENS "tokens"
#define TENSOR_LOGITS "logits"

/* Metadata keys, all hashed in this order. */
enum { KEY_MODEL, KEY_CACHE, KEY_TOKENS, KEY_CONTEXT, N_KEYS };
static const char *const keys[N_KEYS] = {"pdvm.model", "pdvm.cache", "pdvm.tokens", "pdvm.context"};

struct facts {
    char text[N_KEYS][64];
};

static const char *type_name(pdvm_kv_type type) {
    return type == PDVM_KV_F32 ? "f32" : type == PDVM_KV_F16 ? "f16" : "int8";
}

/* What a file says about the session: the last two only bind a cache that has begun to roll. */
static void describe(const pdvm_session *s, size_t n_tokens, struct facts *f) {
    const struct kv_cache *c = &s->cache;
    bool rolled = n_tokens > c->n_ctx;
    snprintf(f->text[KEY_MODEL], sizeof f->text[0], "%016llx",
             (unsigned long long)s->model->info.fingerprint);
    snprintf(f->text[KEY_CACHE], sizeof f->text[0], "k=%s v=%s", type_name(c->shape.type_k),
             type_name(c->shape.type_v));
    snprintf(f->text[KEY_TOKENS], sizeof f->text[0], "%zu", n_tokens);
    if (rolled)
        snprintf(f->text[KEY_CONTEXT], sizeof f->text[0], "rolled n_ctx=%u n_sink=%u", c->n_ctx,
                 c->n_sink);
    else
        snprintf(f->text[KEY_CONTEXT], sizeof f->text[0], "linear");
}

static uint64_t hash_facts(const struct facts *f) {
    uint64_t hash = PD_HASH_INIT;
    for (int i = 0; i < N_KEYS; i++) hash = pd_hash(hash, f->text[i], strlen(f->text[i]) + 1);
    return hash;
}

static void cache_name(char name[64], uint32_t layer, bool value) {
    snprintf(name, 64, "layers.%u.%s", layer, value ? "v" : "k");
}

/* The names in the order in which they are written and hashed. */
static void tensor_name(char name[64], uint32_t n_layers, size_t i) {
    if (i >= 1 && i <= 2 * (size_t)n_layers)
        cache_name(name, (uint32_t)((i - 1) / 2), (i - 1) % 2);
    else
        snprintf(name, 64, "%s", i == 0 ? TENSOR_TOKENS : TENSOR_LOGITS);
}

static size_t row_bytes(const struct kv_cache *c, bool value) {
    return c->shape.n_kv_heads *
           kv_head_row_bytes(value ? c->shape.type_v : c->shape.type_k, c->shape.head_dim);
}

/* Names count, too: a renamed tensor would otherwise pass for a missing one. */
static uint64_t hash_tensor(uint64_t hash, const char *name, const void *data, size_t size) {
    return pd_hash(pd_hash(hash, name, strlen(name) + 1), data, size);
}

/* Appends a tensor and folds it into the hash. */
static pdvm_status put(struct safetensors_writer *w, const char *name, enum safetensors_dtype dtype,
                       const int64_t *dims, int n_dims, const void *data, size_t size,
                       uint64_t *hash, pdvm_error *err) {
    *hash = hash_tensor(*hash, name, data, size);
    return safetensors_writer_tensor(w, name, dtype, dims, n_dims, data, size, err);
}

static pdvm_status write_tensors(const pdvm_session *s, struct safetensors_writer *w, uint8_t *rows,
                                 uint64_t *hash, pdvm_error *err) {
    const struct kv_cache *c = &s->cache;
    struct backend *b = c->backend;
    uint32_t slots = kv_cache_slots(c);
    int64_t n_tokens = (int64_t)s->n_tokens;
    PD_TRY(put(w, TENSOR_TOKENS, SAFETENSORS_I32, &n_tokens, 1, s->tokens,
               s->n_tokens * sizeof *s->tokens, hash, err));
    for (uint32_t layer = 0; layer < c->shape.n_layers; layer++) {
        for (int value = 0; value < 2; value++) {
            char name[64];
            size_t row = row_bytes(c, value);
            int64_t dims[2] = {slots, (int64_t)row};
            cache_name(name, layer, value);
            PD_TRY(b->ops->kv_read(b, c->memory, layer, value, slots, rows, err));
            PD_TRY(put(w, name, SAFETENSORS_U8, dims, 2, rows, slots * row, hash, err));
        }
    }
    if (!s->logits_valid) return PDVM_OK;
    int64_t n_vocab = s->model->config.n_vocab;
    return put(w, TENSOR_LOGITS, SAFETENSORS_F32, &n_vocab, 1, s->logits,
               (size_t)n_vocab * sizeof *s->logits, hash, err);
}

static size_t largest_layer(const struct kv_cache *c) {
    size_t k = row_bytes(c, false), v = row_bytes(c, true);
    return kv_cache_slots(c) * (k > v ? k : v);
}

pdvm_status pdvm_session_save(const pdvm_session *s, const char *path, pdvm_error *err) {
    struct safetensors_writer *w;
    struct facts facts;
    uint8_t *rows;
    char hash_text[32];
    if (!s || !path)
        return pd_fail(err, PDVM_ERR_ARGUMENT, "pdvm_session_save: the %s is NULL",
                       s ? "path" : "session");
    describe(s, s->n_tokens, &facts);
    uint64_t hash = hash_facts(&facts);
    PD_TRY(pd_alloc_aligned(&rows, largest_layer(&s->cache), "saving a session", err));
    size_t reserve = 4096 + 2 * (size_t)s->cache.shape.n_layers * 160;
    pdvm_status status = safetensors_writer_open(path, reserve, &w, err);
    if (status != PDVM_OK) {
        free(rows);
        return status;
    }
    status = write_tensors(s, w, rows, &hash, err);
    free(rows);
    snprintf(hash_text, sizeof hash_text, "%016llx", (unsigned long long)hash);
    if (status == PDVM_OK) status = safetensors_writer_metadata(w, "format", "pdvm-session", err);
    if (status == PDVM_OK)
        status = safetensors_writer_metadata(w, "pdvm.session_version", SESSION_VERSION, err);
    for (int i = 0; i < N_KEYS && status == PDVM_OK; i++)
        status = safetensors_writer_metadata(w, keys[i], facts.text[i], err);
    if (status == PDVM_OK) status = safetensors_writer_metadata(w, "pdvm.hash", hash_text, err);
    if (status != PDVM_OK) {
        safetensors_writer_abort(w);
        return status;
    }
    return safetensors_writer_commit(w, err);
}

/* ---- loading --------------------------------------------------------------------------- */

static pdvm_status expect(const struct safetensors *st, const char *key, const char *value,
                          const char *meaning, pdvm_error *err) {
    const char *found = safetensors_metadata(st, key);
    if (!found)
        return pd_fail(err, PDVM_ERR_FORMAT, "%s: no %s: not a saved pdvm session",
                       safetensors_path(st), key);
    if (strcmp(found, value) != 0)
        return pd_fail(err, PDVM_ERR_UNSUPPORTED, "%s: %s: the file has \"%s\", here it is \"%s\"",
                       safetensors_path(st), meaning, found, value);
    return PDVM_OK;
}

/* The tensor of that name with exactly this type and size. */
static pdvm_status find(const struct safetensors *st, const char *name,
                        enum safetensors_dtype dtype, size_t size,
                        const struct safetensors_tensor **out, pdvm_error *err) {
    *out = safetensors_find(st, name);
    if (!*out)
        return pd_fail(err, PDVM_ERR_FORMAT, "%s: %s is missing", safetensors_path(st), name);
    if ((*out)->dtype != dtype || (*out)->size != size)
        return pd_fail(err, PDVM_ERR_FORMAT, "%s: %s: %s of %zu bytes, expected %s of %zu bytes",
                       safetensors_path(st), name, safetensors_dtype_name((*out)->dtype),
                       (*out)->size, safetensors_dtype_name(dtype), size);
    return PDVM_OK;
}

static pdvm_status check_hash(const struct safetensors *st, uint32_t n_layers,
                              const struct facts *facts, pdvm_error *err) {
    uint64_t hash = hash_facts(facts);
    char text[32];
    size_t n_known = 0;
    /* By name: tensors without bytes have no place of their own in the file's order. */
    for (size_t i = 0; i < 2 * (size_t)n_layers + 2; i++) {
        char name[64];
        tensor_name(name, n_layers, i);
        const struct safetensors_tensor *t = safetensors_find(st, name);
        if (!t) continue;
        hash = hash_tensor(hash, name, t->data, t->size);
        n_known++;
    }
    if (n_known != safetensors_count(st))
        return pd_fail(err, PDVM_ERR_FORMAT, "%s: damaged: it has tensors that no session has",
                       safetensors_path(st));
    snprintf(text, sizeof text, "%016llx", (unsigned long long)hash);
#ifdef FUZZING_BUILD_MODE_UNSAFE_FOR_PRODUCTION
    return PDVM_OK; /* what lies behind must stand on its own: the hash is no secret */
#endif
    const char *found = safetensors_metadata(st, "pdvm.hash");
    if (found && strcmp(found, text) == 0) return PDVM_OK;
    return pd_fail(err, PDVM_ERR_FORMAT, "%s: damaged: its contents do not match pdvm.hash",
                   safetensors_path(st));
}

static pdvm_status check_tokens(const pdvm_session *s, const struct safetensors *st,
                                const struct safetensors_tensor *t, pdvm_error *err) {
    for (int64_t i = 0; i < t->n_elements; i++) {
        int32_t token;
        memcpy(&token, t->data + i * 4, sizeof token);
        if (token < -1 || (token >= 0 && (uint32_t)token >= s->model->config.n_vocab))
            return pd_fail(
                err, PDVM_ERR_FORMAT, "%s: tokens[%lld] = %d is outside the vocabulary of %u",
                safetensors_path(st), (long long)i, (int)token, s->model->config.n_vocab);
    }
    return PDVM_OK;
}

/* Fills a fresh cache from the file; `cache` holds the number of tokens already. */
static pdvm_status read_cache(const struct safetensors *st, struct kv_cache *cache,
                              pdvm_error *err) {
    struct backend *b = cache->backend;
    uint32_t slots = kv_cache_slots(cache);
    for (uint32_t layer = 0; layer < cache->shape.n_layers; layer++) {
        for (int value = 0; value < 2; value++) {
            const struct safetensors_tensor *t;
            char name[64];
            cache_name(name, layer, value);
            PD_TRY(find(st, name, SAFETENSORS_U8, slots * row_bytes(cache, value), &t, err));
            PD_TRY(b->ops->kv_write(b, cache->memory, layer, value, slots, t->data, err));
        }
    }
    return PDVM_OK;
}

static pdvm_status read_session(pdvm_session *s, const struct safetensors *st,
                                struct kv_cache *cache, int32_t **tokens, float **logits,
                                pdvm_error *err) {
    struct facts facts;
    const char *path = safetensors_path(st);
    const char *format = safetensors_metadata(st, "format");
    if (!format || strcmp(format, "pdvm-session") != 0)
        return pd_fail(err, PDVM_ERR_FORMAT, "%s: not a saved pdvm session (no such format)", path);
    PD_TRY(expect(st, "pdvm.session_version", SESSION_VERSION, "version of the format", err));
    const struct safetensors_tensor *t = safetensors_find(st, TENSOR_TOKENS);
    if (!t || t->dtype != SAFETENSORS_I32 || t->n_dims != 1)
        return pd_fail(err, PDVM_ERR_FORMAT, "%s: %s is missing or not a list of I32", path,
                       TENSOR_TOKENS);
    size_t n_tokens = (size_t)t->n_elements;
    if (n_tokens > INT32_MAX || (n_tokens > s->cache.n_ctx && !s->cache.rolling))
        return pd_fail(err, PDVM_ERR_UNSUPPORTED,
                       "%s: %zu tokens do not fit the context of %u: raise the context length",
                       path, n_tokens, s->cache.n_ctx);
    describe(s, n_tokens, &facts);
#ifndef FUZZING_BUILD_MODE_UNSAFE_FOR_PRODUCTION /* seeds outlive changes of the fingerprint */
    PD_TRY(expect(st, keys[KEY_MODEL], facts.text[KEY_MODEL], "made with another model", err));
#endif
    PD_TRY(expect(st, keys[KEY_CACHE], facts.text[KEY_CACHE], "KV cache types", err));
    PD_TRY(expect(st, keys[KEY_TOKENS], facts.text[KEY_TOKENS], "number of tokens", err));
    PD_TRY(expect(st, keys[KEY_CONTEXT], facts.text[KEY_CONTEXT], "context", err));
    PD_TRY(check_hash(st, s->cache.shape.n_layers, &facts, err));
    PD_TRY(check_tokens(s, st, t, err));

    PD_TRY(pd_calloc(tokens, n_tokens, sizeof **tokens, "tokens", err));
    memcpy(*tokens, t->data, t->size);
    PD_TRY(kv_cache_create(cache, s->cache.backend, &s->cache.shape, s->cache.n_ctx,
                           s->cache.rolling, s->cache.n_sink, err));
    cache->n_tokens = cache->n_placed = (uint32_t)n_tokens;
    PD_TRY(read_cache(st, cache, err));
    if (!safetensors_find(st, TENSOR_LOGITS)) return PDVM_OK;
    size_t size = (size_t)s->model->config.n_vocab * sizeof **logits;
    PD_TRY(find(st, TENSOR_LOGITS, SAFETENSORS_F32, size, &t, err));
    PD_TRY(pd_calloc(logits, s->model->config.n_vocab, sizeof **logits, "logits", err));
    memcpy(*logits, t->data, size);
    return PDVM_OK;
}

pdvm_status session_load_from(pdvm_session *s, const struct safetensors *st, pdvm_error *err) {
    struct kv_cache cache = {0};
    int32_t *tokens = NULL;
    float *logits = NULL;
    pdvm_status status = read_session(s, st, &cache, &tokens, &logits, err);
    if (status != PDVM_OK) {
        kv_cache_free(&cache);
        free(tokens);
        free(logits);
        return status;
    }
    kv_cache_free(&s->cache);
    s->cache = cache;
    free(s->tokens);
    s->tokens = tokens;
    s->n_tokens = s->token_capacity = cache.n_tokens;
    s->logits_valid = logits != NULL;
    if (logits) {
        free(s->logits);
        s->logits = logits;
        s->n_logit_rows = 1;
    }
    return PDVM_OK;
}

pdvm_status pdvm_session_load(pdvm_session *s, const char *path, pdvm_error *err) {
    struct safetensors *st;
    if (!s || !path)
        return pd_fail(err, PDVM_ERR_ARGUMENT, "pdvm_session_load: the %s is NULL",
                       s ? "path" : "session");
    PD_TRY(safetensors_open(path, &st, err));
    pdvm_status status = session_load_from(s, st, err);
    safetensors_close(st);
    return status;
}

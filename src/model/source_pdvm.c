#include "base/alloc.h"
#include "base/file.h"
#include "io/safetensors.h"
#include "mdcsr/container.h"
#include "model/source.h"

#include <inttypes.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define NO_TENSOR SIZE_MAX

struct source_pdvm {
    struct model_source base;
    struct container *file;
    /* The matrix that read_rows decoded from last: opening one checks all of it. */
    pthread_mutex_t lock;
    size_t cached; /* its index as in tensors_at, or NO_TENSOR */
    struct mdcsr matrix;
};

static pdvm_status pdvm_read_mdcsr(struct model_source *s, const struct tensor_info *t,
                                   struct mdcsr *out, pdvm_error *err) {
    const struct source_pdvm *p = (const struct source_pdvm *)s;
    return container_read_matrix(p->file, t->name, out, err);
}

static pdvm_status decode_rows(struct source_pdvm *p, const struct tensor_info *t, int64_t begin,
                               int64_t n, float *out, pdvm_error *err) {
    size_t i = tensors_index(&p->base.config, t->role, t->layer);
    if (i != p->cached) {
        mdcsr_free(&p->matrix);
        p->cached = NO_TENSOR;
        PD_TRY(container_read_matrix(p->file, t->name, &p->matrix, err));
        p->cached = i;
    }
    for (int64_t r = 0; r < n; r++) mdcsr_decode_row(&p->matrix, begin + r, out + r * t->cols);
    return PDVM_OK;
}

static pdvm_status pdvm_read_rows(struct model_source *s, const struct tensor_info *t,
                                  int64_t begin, int64_t n, float *out, pdvm_error *err) {
    struct source_pdvm *p = (struct source_pdvm *)s;
    if (n == 0) return PDVM_OK;
    if (!t->is_matrix) return container_read_vector(p->file, t->name, out, t->cols, err);
    pthread_mutex_lock(&p->lock);
    pdvm_status status = decode_rows(p, t, begin, n, out, err);
    pthread_mutex_unlock(&p->lock);
    return status;
}

static void pdvm_file(struct model_source *s, const char *name, const char **data, size_t *size) {
    container_file(((const struct source_pdvm *)s)->file, name, data, size);
}

static void pdvm_stored(struct model_source *s, const struct tensor_info *t, const char **coding,
                        uint64_t *bytes) {
    const struct source_pdvm *p = (const struct source_pdvm *)s;
    const struct container_matrix *m =
        t->is_matrix ? container_matrix_find(p->file, t->name) : NULL;
    *coding = m ? mdcsr_values_name(m->value_coding) : mdcsr_values_name(MDCSR_F32);
    *bytes = m ? m->stored_bytes : (uint64_t)t->cols * sizeof(float);
}

static void pdvm_release(struct model_source *s, const struct tensor_info *t) {
    struct source_pdvm *p = (struct source_pdvm *)s;
    pthread_mutex_lock(&p->lock);
    if (p->cached == tensors_index(&s->config, t->role, t->layer)) {
        mdcsr_free(&p->matrix);
        p->cached = NO_TENSOR;
    }
    pthread_mutex_unlock(&p->lock);
    const struct safetensors *st = container_safetensors(p->file);
    static const char *const parts[] = {"values", "index"};
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++) {
        char name[sizeof t->name + 16];
        snprintf(name, sizeof name, "%s.%s", t->name, parts[i]);
        const struct safetensors_tensor *part = safetensors_find(st, name);
        if (part) pd_map_release(part->data, part->size);
    }
}

static void pdvm_close(struct model_source *s) {
    struct source_pdvm *p = (struct source_pdvm *)s;
    mdcsr_free(&p->matrix);
    container_close(p->file);
    pthread_mutex_destroy(&p->lock);
    free(s->path);
    free(p);
}

static const struct model_source_ops pdvm_ops = {
    .read_rows = pdvm_read_rows,
    .read_mdcsr = pdvm_read_mdcsr,
    .file = pdvm_file,
    .stored = pdvm_stored,
    .release = pdvm_release,
    .close = pdvm_close,
};

static pdvm_status read_config(struct source_pdvm *p, pdvm_error *err) {
    const char *path = p->base.path, *data;
    size_t size;
    container_file(p->file, SOURCE_CONFIG, &data, &size);
    if (!data) return pd_fail(err, PDVM_ERR_FORMAT, "%s: the file holds no " SOURCE_CONFIG, path);
    pdvm_status status = model_config_parse(SOURCE_CONFIG, data, size, &p->base.config, err);
    container_file(p->file, SOURCE_GENERATION_CONFIG, &data, &size);
    if (status == PDVM_OK && data)
        status = model_config_parse_generation(SOURCE_GENERATION_CONFIG, data, size,
                                               &p->base.config, err);
    return status == PDVM_OK ? PDVM_OK : pd_prefix(err, status, "%s", path);
}

static pdvm_status check_matrix(const struct source_pdvm *p, const struct tensor_info *t,
                                pdvm_error *err) {
    const struct container_matrix *m = container_matrix_find(p->file, t->name);
    if (!m)
        return pd_fail(err, PDVM_ERR_FORMAT, "%s: matrix \"%s\" is missing%s", p->base.path,
                       t->name,
                       t->role == TENSOR_HEAD
                           ? " (and \"tie_word_embeddings\" is not true in " SOURCE_CONFIG ")"
                           : "");
    if (m->rows != t->rows || m->cols != t->cols)
        return pd_fail(err, PDVM_ERR_FORMAT,
                       "%s: matrix \"%s\" has shape [%" PRId64 ", %" PRId64 "], but " SOURCE_CONFIG
                       " asks for [%" PRId64 ", %" PRId64 "]",
                       p->base.path, t->name, m->rows, m->cols, t->rows, t->cols);
    return PDVM_OK;
}

static pdvm_status check_vector(const struct source_pdvm *p, const struct tensor_info *t,
                                pdvm_error *err) {
    int64_t n = container_vector_size(p->file, t->name);
    if (n < 0)
        return pd_fail(err, PDVM_ERR_FORMAT, "%s: vector \"%s\" is missing", p->base.path, t->name);
    if (n != t->cols)
        return pd_fail(err, PDVM_ERR_FORMAT,
                       "%s: vector \"%s\" has %" PRId64 " elements, but " SOURCE_CONFIG
                       " asks for %" PRId64,
                       p->base.path, t->name, n, t->cols);
    return PDVM_OK;
}

static bool is_expected(const struct model_config *config, const char *name, bool is_matrix) {
    struct tensor_info t;
    uint32_t layer = 0;
    if (strncmp(name, "model.layers.", 13) == 0) {
        unsigned long n = strtoul(name + 13, NULL, 10);
        if (n >= config->n_layers) return false;
        layer = (uint32_t)n;
    }
    for (int role = 0; role < TENSOR_N_ROLES; role++) {
        if (!tensors_has(config, (enum tensor_role)role)) continue;
        tensors_describe(config, (enum tensor_role)role, layer, &t);
        if (t.is_matrix == is_matrix && strcmp(name, t.name) == 0) return true;
    }
    return false;
}

/* A bias that nobody adds would make every result wrong without a word. */
static pdvm_status check_extra(const struct source_pdvm *p, const char *name, bool is_matrix,
                               pdvm_error *err) {
    if (is_expected(&p->base.config, name, is_matrix)) return PDVM_OK;
    return pd_fail(err, PDVM_ERR_UNSUPPORTED,
                   "%s: %s \"%s\" is not part of the model that " SOURCE_CONFIG " describes",
                   p->base.path, is_matrix ? "matrix" : "vector", name);
}

static pdvm_status check_tensors(const struct source_pdvm *p, pdvm_error *err) {
    const struct model_config *config = &p->base.config;
    size_t n = tensors_count(config);
    for (size_t i = 0; i < n; i++) {
        struct tensor_info t;
        tensors_at(config, i, &t);
        PD_TRY(t.is_matrix ? check_matrix(p, &t, err) : check_vector(p, &t, err));
    }
    for (size_t i = 0; i < container_matrix_count(p->file); i++)
        PD_TRY(check_extra(p, container_matrix_at(p->file, i)->name, true, err));
    for (size_t i = 0; i < container_vector_count(p->file); i++) {
        int64_t size;
        PD_TRY(check_extra(p, container_vector_at(p->file, i, &size), false, err));
    }
    return PDVM_OK;
}

pdvm_status source_open_pdvm(const char *path, struct model_source **out, pdvm_error *err) {
    struct source_pdvm *p;
    *out = NULL;
    PD_TRY(pd_calloc(&p, 1, sizeof *p, "a model source", err));
    p->base.ops = &pdvm_ops;
    p->base.kind = "pdvm file";
    p->cached = NO_TENSOR;
    pthread_mutex_init(&p->lock, NULL);
    p->base.path = strdup(path);
    pdvm_status status = PDVM_OK;
    if (!p->base.path) status = pd_fail_memory(err, strlen(path) + 1, "a path");
    if (status == PDVM_OK) status = container_open(path, &p->file, err);
    if (status == PDVM_OK) status = read_config(p, err);
    if (status == PDVM_OK) status = check_tensors(p, err);
    if (status != PDVM_OK) {
        pdvm_close(&p->base);
        return status;
    }
    /* The header holds a hash of all data. */
    p->base.fingerprint = safetensors_header_hash(container_safetensors(p->file));
    *out = &p->base;
    return PDVM_OK;
}

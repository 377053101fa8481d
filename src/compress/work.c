#include "compress/work.h"

#include "base/file.h"
#include "io/json.h"
#include "io/safetensors.h"

#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define METADATA "pdvm.work"

/* ---- names ----------------------------------------------------------------------------- */

static pdvm_status layer_path(const struct work *w, uint32_t layer, char **out, pdvm_error *err) {
    char name[32];
    snprintf(name, sizeof name, "layer-%04" PRIu32 ".pdvm", layer);
    return pd_path_join(w->dir, name, out, err);
}

static void remove_layers(const struct work *w) {
    for (uint32_t i = 0; i < w->n_layers; i++) {
        char *path;
        if (layer_path(w, i, &path, NULL) != PDVM_OK) return;
        unlink(path);
        free(path);
    }
}

static void close_layer(struct work *w) {
    container_close(w->layer);
    json_decref(w->metadata);
    w->layer = NULL;
    w->metadata = NULL;
}

/* ---- opening --------------------------------------------------------------------------- */

static pdvm_status read_metadata(const struct container *c, const char *path, json_t **out,
                                 pdvm_error *err) {
    const char *text = safetensors_metadata(container_safetensors(c), METADATA);
    *out = NULL;
    if (!text)
        return pd_fail(err, PDVM_ERR_FORMAT, "%s: is not a layer of an interrupted run", path);
    return pd_json_parse_object(path, text, strlen(text), out, err);
}

static pdvm_status open_layer(struct work *w, uint32_t layer, const char *path, pdvm_error *err) {
    const char *key = "";
    close_layer(w);
    PD_TRY(container_open(path, &w->layer, err));
    pdvm_status status = read_metadata(w->layer, path, &w->metadata, err);
    if (status == PDVM_OK) status = pd_json_string(path, w->metadata, "key", true, &key, err);
    if (status == PDVM_OK && strcmp(key, w->key) != 0)
        status =
            pd_fail(err, PDVM_ERR_ARGUMENT,
                    "%s: belongs to a run with another source, text, OpenBLAS, backend or other "
                    "settings; leave out --resume to start from the beginning",
                    path);
    w->open = layer;
    if (status != PDVM_OK) close_layer(w);
    return status;
}

static pdvm_status count_layers(struct work *w, pdvm_error *err) {
    struct stat st;
    for (; w->n_done < w->n_layers; w->n_done++) {
        char *path;
        PD_TRY(layer_path(w, w->n_done, &path, err));
        bool there = stat(path, &st) == 0;
        pdvm_status status = there ? open_layer(w, w->n_done, path, err) : PDVM_OK;
        free(path);
        PD_TRY(status);
        if (!there) break;
        if (w->n_done == 0) w->shared = json_incref(json_object_get(w->metadata, "shared"));
    }
    return PDVM_OK;
}

pdvm_status work_open(const char *output, uint64_t key, uint32_t n_layers, bool resume,
                      const struct pd_notify *notify, struct work *out, pdvm_error *err) {
    size_t n = strlen(output) + sizeof ".work";
    *out = (struct work){.n_layers = n_layers};
    snprintf(out->key, sizeof out->key, "%016" PRIx64, key);
    out->dir = malloc(n);
    if (!out->dir) return pd_fail_memory(err, n, "a path");
    snprintf(out->dir, n, "%s.work", output);
    pdvm_status status = PDVM_OK;
    if (mkdir(out->dir, 0777) != 0 && errno != EEXIST)
        status = pd_fail_errno(err, out->dir, "cannot make the directory");
    if (status == PDVM_OK && resume) {
        status = count_layers(out, err);
    } else if (status == PDVM_OK) {
        char *path;
        struct stat st;
        status = layer_path(out, 0, &path, err);
        if (status == PDVM_OK && stat(path, &st) == 0)
            pd_log(notify, PDVM_LOG_WARN,
                   "%s: layers of an interrupted run are dropped (--resume would use them)",
                   out->dir);
        if (status == PDVM_OK) free(path);
        remove_layers(out);
    }
    if (status != PDVM_OK) work_free(out);
    return status;
}

void work_remove(struct work *w) {
    if (!w->dir) return;
    close_layer(w);
    remove_layers(w);
    w->n_done = 0;
}

void work_free(struct work *w) {
    close_layer(w);
    json_decref(w->shared);
    if (w->dir) rmdir(w->dir); /* fails, as it should, where there are layers */
    free(w->dir);
    *w = (struct work){0};
}

/* ---- writing --------------------------------------------------------------------------- */

pdvm_status work_begin_layer(const struct work *w, uint32_t layer, struct work_writer *out,
                             pdvm_error *err) {
    char *path;
    size_t name = sizeof((struct tensor_info){0}).name;
    /* Room for the layer's own metadata, and for a list of all layers' sparsities. */
    size_t reserve = container_header_reserve(16, name) + 16 * 1024 + (size_t)w->n_layers * 32;
    *out = (struct work_writer){.matrices = json_object()};
    if (!out->matrices) return pd_fail_memory(err, 0, "metadata");
    pdvm_status status = layer_path(w, layer, &path, err);
    if (status == PDVM_OK) {
        status = container_writer_open(path, reserve, &out->file, err);
        free(path);
    }
    if (status != PDVM_OK) work_abort_layer(out);
    return status;
}

pdvm_status work_write_matrix(struct work_writer *out, const struct mdcsr *m,
                              const struct report_tensor *t, pdvm_error *err) {
    struct mdcsr_report report = {.n_weights = t->tensor.rows * t->tensor.cols,
                                  .n_zeros = t->n_zeros,
                                  .sum_squares = t->sum_squares,
                                  .error_squares = t->pruning_squares + t->rounding_squares,
                                  .stored_bytes = (size_t)t->bytes};
    PD_TRY(container_write_matrix(out->file, t->tensor.name, m, &report, err));
    json_t *entry =
        json_pack("{s:s, s:I, s:I, s:I, s:o, s:o, s:o, s:o}", "coding", t->coding, "zeros",
                  (json_int_t)t->n_zeros, "source_zeros", (json_int_t)t->source_zeros, "bytes",
                  (json_int_t)t->bytes, "sum_squares", pd_json_real(t->sum_squares),
                  "pruning_squares", pd_json_real(t->pruning_squares), "rounding_squares",
                  pd_json_real(t->rounding_squares), "output_error", pd_json_real(t->output_error));
    if (!entry || json_object_set_new(out->matrices, t->tensor.name, entry) != 0)
        return pd_fail_memory(err, 0, "metadata");
    return PDVM_OK;
}

pdvm_status work_end_layer(struct work *w, struct work_writer *out, json_t *shared,
                           pdvm_error *err) {
    json_t *root = json_pack("{s:s, s:O}", "key", w->key, "matrices", out->matrices);
    if (root && shared && json_object_set(root, "shared", shared) != 0) {
        json_decref(root);
        root = NULL;
    }
    char *text = root ? json_dumps(root, JSON_COMPACT) : NULL;
    json_decref(root);
    pdvm_status status = text ? container_write_metadata(out->file, METADATA, text, err)
                              : pd_fail_memory(err, 0, "metadata");
    free(text);
    if (status == PDVM_OK) {
        struct container_writer *file = out->file;
        out->file = NULL;
        status = container_writer_commit(file, err);
    }
    work_abort_layer(out);
    if (status == PDVM_OK) w->n_done++;
    return status;
}

void work_abort_layer(struct work_writer *out) {
    container_writer_abort(out->file);
    json_decref(out->matrices);
    *out = (struct work_writer){0};
}

/* ---- reading --------------------------------------------------------------------------- */

static pdvm_status read_number(const char *path, json_t *entry, const char *name, double *out,
                               pdvm_error *err) {
    json_t *value = json_object_get(entry, name);
    *out = NAN;
    if (json_is_null(value)) return PDVM_OK;
    return pd_json_number(path, entry, name, true, out, err);
}

static pdvm_status read_report(const char *path, json_t *metadata, struct report_tensor *t,
                               pdvm_error *err) {
    json_t *matrices, *entry;
    int64_t n = t->tensor.rows * t->tensor.cols, bytes = 0;
    const char *coding = "";
    PD_TRY(pd_json_object(path, metadata, "matrices", true, &matrices, err));
    PD_TRY(pd_json_object(path, matrices, t->tensor.name, true, &entry, err));
    PD_TRY(pd_json_string(path, entry, "coding", true, &coding, err));
    PD_TRY(pd_json_int(path, entry, "zeros", true, 0, n, &t->n_zeros, err));
    PD_TRY(pd_json_int(path, entry, "source_zeros", true, 0, n, &t->source_zeros, err));
    PD_TRY(pd_json_int(path, entry, "bytes", true, 0, INT64_MAX, &bytes, err));
    PD_TRY(read_number(path, entry, "sum_squares", &t->sum_squares, err));
    PD_TRY(read_number(path, entry, "pruning_squares", &t->pruning_squares, err));
    PD_TRY(read_number(path, entry, "rounding_squares", &t->rounding_squares, err));
    PD_TRY(read_number(path, entry, "output_error", &t->output_error, err));
    t->bytes = (uint64_t)bytes;
    snprintf(t->coding, sizeof t->coding, "%s", coding);
    return PDVM_OK;
}

pdvm_status work_read_matrix(struct work *w, struct report_tensor *t, struct mdcsr *m,
                             pdvm_error *err) {
    char *path;
    PD_TRY(layer_path(w, t->tensor.layer, &path, err));
    pdvm_status status = PDVM_OK;
    if (!w->layer || w->open != t->tensor.layer) status = open_layer(w, t->tensor.layer, path, err);
    if (status == PDVM_OK) status = read_report(path, w->metadata, t, err);
    if (status == PDVM_OK) status = container_read_matrix(w->layer, t->tensor.name, m, err);
    if (status == PDVM_OK && (m->rows != t->tensor.rows || m->cols != t->tensor.cols)) {
        status = pd_fail(err, PDVM_ERR_FORMAT, "%s: %s has another shape", path, t->tensor.name);
        mdcsr_free(m);
    }
    free(path);
    return status;
}

#include "base/alloc.h"
#include "base/checked.h"
#include "base/file.h"
#include "io/json.h"
#include "io/safetensors.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#define METADATA "__metadata__"

struct safetensors_writer {
    struct pd_writer *file;
    char *path;
    size_t reserve;     /* room for the header, a multiple of 8 */
    uint64_t data_size; /* bytes of tensors so far */
    json_t *header;
    json_t *metadata;
    uint64_t missing; /* bytes of the last tensor that are still to come */
    bool failed;      /* a tensor was written in part: the file can't be finished */
};

static void writer_free(struct safetensors_writer *w) {
    json_decref(w->header);
    json_decref(w->metadata);
    free(w->path);
    free(w);
}

static pdvm_status append_zeros(struct pd_writer *file, size_t size, pdvm_error *err) {
    static const uint8_t zeros[4096];
    while (size > 0) {
        size_t n = size < sizeof zeros ? size : sizeof zeros;
        PD_TRY(pd_writer_append(file, zeros, n, err));
        size -= n;
    }
    return PDVM_OK;
}

pdvm_status safetensors_writer_open(const char *path, size_t reserve,
                                    struct safetensors_writer **out, pdvm_error *err) {
    struct safetensors_writer *w;
    *out = NULL;
    if (reserve > SAFETENSORS_MAX_HEADER)
        return pd_fail(err, PDVM_ERR_ARGUMENT,
                       "%s: %zu bytes reserved for the header, at most %zu are allowed", path,
                       reserve, SAFETENSORS_MAX_HEADER);
    PD_TRY(pd_calloc(&w, 1, sizeof *w, "a safetensors writer", err));
    w->path = strdup(path);
    w->header = json_object();
    w->metadata = json_object();
    /* The limit is a multiple of 8 itself. */
    w->reserve = pd_round_up(reserve, 8);
    if (!w->path || !w->header || !w->metadata) {
        writer_free(w);
        return pd_fail_memory(err, sizeof *w, "a safetensors writer");
    }
    pdvm_status status = pd_writer_open(path, &w->file, err);
    if (status == PDVM_OK) status = append_zeros(w->file, 8 + w->reserve, err);
    if (status == PDVM_OK)
        *out = w;
    else
        safetensors_writer_abort(w);
    return status;
}

pdvm_status safetensors_writer_metadata(struct safetensors_writer *w, const char *key,
                                        const char *value, pdvm_error *err) {
    if (json_object_set_new(w->metadata, key, json_string(value)) == 0) return PDVM_OK;
    return pd_fail(err, PDVM_ERR_ARGUMENT, "%s: metadata \"%.200s\" is not valid UTF-8", w->path,
                   key);
}

/* What the header says of a tensor; NULL if memory runs out. */
static json_t *describe(enum safetensors_dtype dtype, const int64_t *dims, int n_dims,
                        uint64_t begin, size_t size) {
    uint64_t end = begin + size;
    json_t *shape = json_array();
    for (int i = 0; i < n_dims; i++) {
        if (json_array_append_new(shape, json_integer(dims[i])) != 0) {
            json_decref(shape);
            return NULL;
        }
    }
    return json_pack("{s:s, s:o, s:[I, I]}", "dtype", safetensors_dtype_name(dtype), "shape", shape,
                     "data_offsets", (json_int_t)begin, (json_int_t)end);
}

pdvm_status safetensors_writer_begin(struct safetensors_writer *w, const char *name,
                                     enum safetensors_dtype dtype, const int64_t *dims, int n_dims,
                                     size_t *size, pdvm_error *err) {
    if (n_dims < 0 || n_dims > SAFETENSORS_MAX_DIMS || !safetensors_dtype_name(dtype))
        return pd_fail(err, PDVM_ERR_ARGUMENT,
                       "%s: tensor \"%.200s\": %d dimensions or dtype %d out of range", w->path,
                       name, n_dims, (int)dtype);
    int64_t n = 1;
    for (int i = 0; i < n_dims; i++) {
        if (!pd_mul_i64(n, dims[i], &n))
            return pd_fail(err, PDVM_ERR_ARGUMENT,
                           "%s: tensor \"%.200s\": its shape is negative or overflows", w->path,
                           name);
    }
    if (!pd_mul_size((size_t)n, safetensors_dtype_size(dtype), size))
        return pd_fail(err, PDVM_ERR_ARGUMENT, "%s: tensor \"%.200s\": its size overflows", w->path,
                       name);
    if (w->missing > 0)
        return pd_fail(err, PDVM_ERR_ARGUMENT,
                       "%s: tensor \"%.200s\": the one before lacks %" PRIu64 " bytes", w->path,
                       name, w->missing);
    if (strcmp(name, METADATA) == 0)
        return pd_fail(err, PDVM_ERR_ARGUMENT, "%s: tensor name \"%s\" is reserved", w->path, name);
    if (json_object_get(w->header, name))
        return pd_fail(err, PDVM_ERR_ARGUMENT, "%s: tensor \"%.200s\": written twice", w->path,
                       name);
    json_t *entry = describe(dtype, dims, n_dims, w->data_size, *size);
    if (!entry) return pd_fail_memory(err, sizeof *entry, "a safetensors header");
    if (json_object_set_new(w->header, name, entry) != 0)
        return pd_fail(err, PDVM_ERR_ARGUMENT, "%s: tensor name \"%.200s\" is not valid UTF-8",
                       w->path, name);
    w->data_size += *size;
    w->missing = *size;
    return PDVM_OK;
}

pdvm_status safetensors_writer_append(struct safetensors_writer *w, const void *data, size_t size,
                                      pdvm_error *err) {
    if (size > w->missing)
        return pd_fail(err, PDVM_ERR_ARGUMENT, "%s: %zu bytes given where a tensor lacks %" PRIu64,
                       w->path, size, w->missing);
    pdvm_status status = pd_writer_append(w->file, data, size, err);
    w->failed |= status != PDVM_OK;
    w->missing -= size;
    return status;
}

pdvm_status safetensors_writer_tensor(struct safetensors_writer *w, const char *name,
                                      enum safetensors_dtype dtype, const int64_t *dims, int n_dims,
                                      const void *data, size_t size, pdvm_error *err) {
    int64_t n = 1;
    size_t expected;
    bool known = n_dims >= 0 && n_dims <= SAFETENSORS_MAX_DIMS && safetensors_dtype_name(dtype);
    for (int i = 0; known && i < n_dims; i++) known = pd_mul_i64(n, dims[i], &n);
    /* Before anything is noted of it; what is not known here, begin refuses. */
    if (known &&
        (!pd_mul_size((size_t)n, safetensors_dtype_size(dtype), &expected) || expected != size))
        return pd_fail(err, PDVM_ERR_ARGUMENT,
                       "%s: tensor \"%.200s\": %zu bytes given for %" PRId64 " elements of %s",
                       w->path, name, size, n, safetensors_dtype_name(dtype));
    PD_TRY(safetensors_writer_begin(w, name, dtype, dims, n_dims, &expected, err));
    return safetensors_writer_append(w, data, size, err);
}

/* The header's text, metadata first; NULL if memory runs out. Freed with free(). */
static char *header_text(const struct safetensors_writer *w) {
    json_t *all = json_object();
    int failed = all == NULL;
    if (json_object_size(w->metadata) > 0) failed |= json_object_set(all, METADATA, w->metadata);
    failed |= json_object_update(all, w->header);
    char *text = failed ? NULL : json_dumps(all, JSON_COMPACT);
    json_decref(all);
    return text;
}

static pdvm_status write_header(struct safetensors_writer *w, pdvm_error *err) {
    if (w->failed || w->missing > 0)
        return pd_fail(err, PDVM_ERR_IO, "%s: not finished: writing a tensor failed before",
                       w->path);
    char *text = header_text(w);
    if (!text) return pd_fail_memory(err, w->reserve, "a safetensors header");
    size_t size = strlen(text);
    pdvm_status status = PDVM_OK;
    if (size > w->reserve) {
        status = pd_fail(err, PDVM_ERR_ARGUMENT,
                         "%s: the header needs %zu bytes, but only %zu were reserved", w->path,
                         size, w->reserve);
    } else {
        char *padded = malloc(8 + w->reserve);
        if (padded) {
            for (int i = 0; i < 8; i++) padded[i] = (char)(w->reserve >> (8 * i) & 0xff);
            memset(padded + 8, ' ', w->reserve);
            for (size_t i = 0; i < size; i++) padded[8 + i] = text[i];
            status = pd_writer_patch(w->file, 0, padded, 8 + w->reserve, err);
        } else {
            status = pd_fail_memory(err, 8 + w->reserve, "a safetensors header");
        }
        free(padded);
    }
    free(text);
    return status;
}

pdvm_status safetensors_writer_commit(struct safetensors_writer *w, pdvm_error *err) {
    pdvm_status status = write_header(w, err);
    if (status == PDVM_OK) {
        status = pd_writer_commit(w->file, err);
        writer_free(w);
    } else {
        safetensors_writer_abort(w);
    }
    return status;
}

void safetensors_writer_abort(struct safetensors_writer *w) {
    if (!w) return;
    pd_writer_abort(w->file);
    writer_free(w);
}

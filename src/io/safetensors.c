#include "io/safetensors.h"

#include "base/alloc.h"
#include "base/checked.h"
#include "base/file.h"
#include "base/half.h"
#include "base/hash.h"
#include "io/json.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#define METADATA "__metadata__"

static const struct {
    const char *name;
    size_t size;
} dtypes[SAFETENSORS_N_DTYPES] = {
    [SAFETENSORS_BOOL] = {"BOOL", 1},       [SAFETENSORS_U8] = {"U8", 1},
    [SAFETENSORS_I8] = {"I8", 1},           [SAFETENSORS_U16] = {"U16", 2},
    [SAFETENSORS_I16] = {"I16", 2},         [SAFETENSORS_F16] = {"F16", 2},
    [SAFETENSORS_BF16] = {"BF16", 2},       [SAFETENSORS_U32] = {"U32", 4},
    [SAFETENSORS_I32] = {"I32", 4},         [SAFETENSORS_F32] = {"F32", 4},
    [SAFETENSORS_U64] = {"U64", 8},         [SAFETENSORS_I64] = {"I64", 8},
    [SAFETENSORS_F64] = {"F64", 8},         [SAFETENSORS_F8_E4M3] = {"F8_E4M3", 1},
    [SAFETENSORS_F8_E5M2] = {"F8_E5M2", 1},
};

struct safetensors {
    char *path;
    struct pd_map map;   /* empty for memory that somebody else owns */
    const uint8_t *data; /* of the tensors, behind the header */
    size_t data_size;
    uint64_t header_hash;
    json_t *metadata; /* NULL if there is none */
    size_t n_tensors;
    struct safetensors_tensor *tensors;        /* [n_tensors] in file order */
    const struct safetensors_tensor **by_name; /* [n_tensors] sorted */
    char *names;
};

size_t safetensors_dtype_size(enum safetensors_dtype dtype) {
    return (unsigned)dtype < SAFETENSORS_N_DTYPES ? dtypes[dtype].size : 0;
}

const char *safetensors_dtype_name(enum safetensors_dtype dtype) {
    return (unsigned)dtype < SAFETENSORS_N_DTYPES ? dtypes[dtype].name : NULL;
}

static pdvm_status parse_dtype(const struct safetensors *st, const char *name, const json_t *value,
                               enum safetensors_dtype *out, pdvm_error *err) {
    if (!json_is_string(value))
        return pd_fail(err, PDVM_ERR_FORMAT,
                       "%s: tensor \"%.200s\": dtype must be a string, not %s", st->path, name,
                       pd_json_kind(value));
    const char *dtype = json_string_value(value);
    for (int i = 0; i < SAFETENSORS_N_DTYPES; i++) {
        if (strcmp(dtype, dtypes[i].name) == 0) {
            *out = (enum safetensors_dtype)i;
            return PDVM_OK;
        }
    }
    return pd_fail(err, PDVM_ERR_FORMAT, "%s: tensor \"%.200s\": unknown dtype \"%.40s\"", st->path,
                   name, dtype);
}

static pdvm_status parse_shape(const struct safetensors *st, const json_t *value,
                               struct safetensors_tensor *t, pdvm_error *err) {
    if (!json_is_array(value))
        return pd_fail(err, PDVM_ERR_FORMAT,
                       "%s: tensor \"%.200s\": shape must be an array, not %s", st->path, t->name,
                       pd_json_kind(value));
    size_t n = json_array_size(value);
    if (n > SAFETENSORS_MAX_DIMS)
        return pd_fail(err, PDVM_ERR_UNSUPPORTED,
                       "%s: tensor \"%.200s\": shape has %zu dimensions, at most %d are supported",
                       st->path, t->name, n, SAFETENSORS_MAX_DIMS);
    t->n_dims = (int)n;
    t->n_elements = 1;
    for (size_t i = 0; i < n; i++) {
        const json_t *dim = json_array_get(value, i);
        if (!json_is_integer(dim) || json_integer_value(dim) < 0)
            return pd_fail(err, PDVM_ERR_FORMAT,
                           "%s: tensor \"%.200s\": shape[%zu] is not a whole number >= 0", st->path,
                           t->name, i);
        t->dims[i] = json_integer_value(dim);
        if (!pd_mul_i64(t->n_elements, t->dims[i], &t->n_elements))
            return pd_fail(err, PDVM_ERR_FORMAT,
                           "%s: tensor \"%.200s\": the product of its shape overflows", st->path,
                           t->name);
    }
    return PDVM_OK;
}

static pdvm_status parse_offsets(const struct safetensors *st, const json_t *value,
                                 struct safetensors_tensor *t, pdvm_error *err) {
    const json_t *begin = json_array_get(value, 0);
    const json_t *end = json_array_get(value, 1);
    if (!json_is_array(value) || json_array_size(value) != 2 || !json_is_integer(begin) ||
        !json_is_integer(end))
        return pd_fail(err, PDVM_ERR_FORMAT,
                       "%s: tensor \"%.200s\": data_offsets must be an array of two whole numbers",
                       st->path, t->name);
    int64_t b = json_integer_value(begin);
    int64_t e = json_integer_value(end);
    if (b < 0 || e < b)
        return pd_fail(err, PDVM_ERR_FORMAT,
                       "%s: tensor \"%.200s\": data_offsets [%" PRId64 ", %" PRId64
                       "] are negative or falling",
                       st->path, t->name, b, e);
    if ((uint64_t)e > st->data_size)
        return pd_fail(err, PDVM_ERR_FORMAT,
                       "%s: tensor \"%.200s\": data_offsets [%" PRId64 ", %" PRId64
                       "] end past the file's %zu bytes of data (is the file cut short?)",
                       st->path, t->name, b, e, st->data_size);
    t->data = st->data + b;
    t->size = (size_t)(e - b);
    return PDVM_OK;
}

static pdvm_status parse_tensor(const struct safetensors *st, const json_t *value,
                                struct safetensors_tensor *t, pdvm_error *err) {
    PD_TRY(parse_dtype(st, t->name, json_object_get(value, "dtype"), &t->dtype, err));
    PD_TRY(parse_shape(st, json_object_get(value, "shape"), t, err));
    PD_TRY(parse_offsets(st, json_object_get(value, "data_offsets"), t, err));
    size_t size;
    if (!pd_mul_size((size_t)t->n_elements, dtypes[t->dtype].size, &size) || size != t->size)
        return pd_fail(
            err, PDVM_ERR_FORMAT,
            "%s: tensor \"%.200s\": data_offsets span %zu bytes, but its shape has %" PRId64
            " elements of %s, %zu bytes each",
            st->path, t->name, t->size, t->n_elements, dtypes[t->dtype].name,
            dtypes[t->dtype].size);
    return PDVM_OK;
}

static pdvm_status check_metadata(const struct safetensors *st, json_t *metadata, pdvm_error *err) {
    const char *key;
    json_t *value;
    if (!json_is_object(metadata))
        return pd_fail(err, PDVM_ERR_FORMAT, "%s: %s must be an object of strings, not %s",
                       st->path, METADATA, pd_json_kind(metadata));
    json_object_foreach(metadata, key, value) {
        if (!json_is_string(value))
            return pd_fail(err, PDVM_ERR_FORMAT, "%s: %s: \"%.200s\" must be a string, not %s",
                           st->path, METADATA, key, pd_json_kind(value));
    }
    return PDVM_OK;
}

/* File order. Empty tensors share an offset with their neighbour and must come before it. */
static int compare_place(const void *a, const void *b) {
    const struct safetensors_tensor *s = a, *t = b;
    if (s->data != t->data) return s->data < t->data ? -1 : 1;
    if (s->size != t->size) return s->size < t->size ? -1 : 1;
    return strcmp(s->name, t->name);
}

static int compare_name(const void *a, const void *b) {
    const struct safetensors_tensor *const *s = a, *const *t = b;
    return strcmp((*s)->name, (*t)->name);
}

/* The tensors must fill the data exactly, one after the other. */
static pdvm_status check_places(const struct safetensors *st, pdvm_error *err) {
    size_t end = 0;
    for (size_t i = 0; i < st->n_tensors; i++) {
        const struct safetensors_tensor *t = &st->tensors[i];
        size_t begin = (size_t)(t->data - st->data);
        if (begin != end)
            return pd_fail(
                err, PDVM_ERR_FORMAT,
                "%s: tensor \"%.200s\": data_offsets begin at %zu, but the tensors before "
                "end at %zu: %s",
                st->path, t->name, begin, end, begin < end ? "they overlap" : "there is a gap");
        end = begin + t->size;
    }
    if (end != st->data_size)
        return pd_fail(err, PDVM_ERR_FORMAT,
                       "%s: %zu bytes of data, but the tensors of the header take %zu", st->path,
                       st->data_size, end);
    return PDVM_OK;
}

static pdvm_status read_header(struct safetensors *st, json_t *header, pdvm_error *err) {
    const char *key;
    json_t *value;
    size_t n = 0, names_size = 0;
    json_object_foreach(header, key, value) {
        if (strcmp(key, METADATA) != 0 && !json_is_object(value))
            return pd_fail(err, PDVM_ERR_FORMAT, "%s: tensor \"%.200s\" must be an object, not %s",
                           st->path, key, pd_json_kind(value));
        n++;
        names_size += strlen(key) + 1;
    }
    PD_TRY(pd_calloc(&st->tensors, n, sizeof *st->tensors, "the table of tensors", err));
    PD_TRY(pd_calloc(&st->by_name, n, sizeof(struct safetensors_tensor *), "the table of tensors",
                     err));
    PD_TRY(pd_calloc(&st->names, names_size, 1, "the names of tensors", err));

    char *name = st->names;
    json_object_foreach(header, key, value) {
        if (strcmp(key, METADATA) == 0) {
            if (json_is_null(value)) continue;
            PD_TRY(check_metadata(st, value, err));
            st->metadata = json_incref(value);
            continue;
        }
        struct safetensors_tensor *t = &st->tensors[st->n_tensors];
        size_t size = strlen(key) + 1;
        memcpy(name, key, size);
        t->name = name;
        name += size;
        PD_TRY(parse_tensor(st, value, t, err));
        st->n_tensors++;
    }
    if (st->n_tensors > 0) qsort(st->tensors, st->n_tensors, sizeof *st->tensors, compare_place);
    for (size_t i = 0; i < st->n_tensors; i++) st->by_name[i] = &st->tensors[i];
    if (st->n_tensors > 0)
        qsort(st->by_name, st->n_tensors, sizeof(struct safetensors_tensor *), compare_name);
    return check_places(st, err);
}

static pdvm_status read_file(struct safetensors *st, const uint8_t *file, size_t file_size,
                             pdvm_error *err) {
    if (file_size < 8)
        return pd_fail(err, PDVM_ERR_FORMAT,
                       "%s: %zu bytes, too short for a safetensors file's header size", st->path,
                       file_size);
    uint64_t size = 0;
    for (int i = 7; i >= 0; i--) size = size << 8 | file[i];
    if (size > SAFETENSORS_MAX_HEADER)
        return pd_fail(err, PDVM_ERR_FORMAT,
                       "%s: header size %" PRIu64 " is over the limit of %zu bytes (not a "
                       "safetensors file?)",
                       st->path, size, SAFETENSORS_MAX_HEADER);
    if (size > file_size - 8)
        return pd_fail(err, PDVM_ERR_FORMAT,
                       "%s: header size %" PRIu64 " is past the end of the file of %zu bytes",
                       st->path, size, file_size);
    const char *text = (const char *)file + 8;
    if (size == 0 || text[0] != '{')
        return pd_fail(err, PDVM_ERR_FORMAT, "%s: the header does not begin with '{'", st->path);
    st->data = file + 8 + size;
    st->data_size = file_size - 8 - (size_t)size;
    st->header_hash = pd_hash(PD_HASH_INIT, text, (size_t)size);

    json_t *header;
    pdvm_status status = pd_json_parse_object(st->path, text, (size_t)size, &header, err);
    if (status != PDVM_OK) return pd_prefix(err, status, "safetensors header");
    status = read_header(st, header, err);
    json_decref(header);
    return status;
}

static pdvm_status handle_new(const char *path, struct safetensors **out, pdvm_error *err) {
    PD_TRY(pd_calloc(out, 1, sizeof **out, "a safetensors file", err));
    (*out)->path = strdup(path);
    if ((*out)->path) return PDVM_OK;
    free(*out);
    *out = NULL;
    return pd_fail_memory(err, strlen(path) + 1, "a path");
}

pdvm_status safetensors_open(const char *path, struct safetensors **out, pdvm_error *err) {
    struct safetensors *st;
    *out = NULL;
    PD_TRY(handle_new(path, &st, err));
    pdvm_status status = pd_map_open(path, &st->map, err);
    if (status == PDVM_OK) status = read_file(st, st->map.data, st->map.size, err);
    if (status == PDVM_OK)
        *out = st;
    else
        safetensors_close(st);
    return status;
}

pdvm_status safetensors_open_memory(const char *name, const void *data, size_t size,
                                    struct safetensors **out, pdvm_error *err) {
    struct safetensors *st;
    *out = NULL;
    PD_TRY(handle_new(name, &st, err));
    pdvm_status status = read_file(st, data, size, err);
    if (status == PDVM_OK)
        *out = st;
    else
        safetensors_close(st);
    return status;
}

void safetensors_close(struct safetensors *st) {
    if (!st) return;
    pd_map_close(&st->map);
    json_decref(st->metadata);
    free(st->tensors);
    free(st->by_name);
    free(st->names);
    free(st->path);
    free(st);
}

const char *safetensors_path(const struct safetensors *st) {
    return st->path;
}

size_t safetensors_count(const struct safetensors *st) {
    return st->n_tensors;
}

const struct safetensors_tensor *safetensors_at(const struct safetensors *st, size_t i) {
    return i < st->n_tensors ? &st->tensors[i] : NULL;
}

const struct safetensors_tensor *safetensors_find(const struct safetensors *st, const char *name) {
    const struct safetensors_tensor wanted = {.name = name}, *p = &wanted;
    const struct safetensors_tensor *const *found =
        bsearch(&p, st->by_name, st->n_tensors, sizeof(struct safetensors_tensor *), compare_name);
    return found ? *found : NULL;
}

const char *safetensors_metadata(const struct safetensors *st, const char *key) {
    return json_string_value(json_object_get(st->metadata, key));
}

void safetensors_metadata_each(const struct safetensors *st,
                               void (*fn)(void *user, const char *key, const char *value),
                               void *user) {
    const char *key;
    json_t *value;
    json_object_foreach(st->metadata, key, value) {
        fn(user, key, json_string_value(value));
    }
}

uint64_t safetensors_header_hash(const struct safetensors *st) {
    return st->header_hash;
}

static void half_to_float(const uint8_t *data, int64_t n, float (*convert)(uint16_t), float *out) {
    for (int64_t i = 0; i < n; i++) {
        uint16_t h;
        memcpy(&h, data + 2 * i, sizeof h);
        out[i] = convert(h);
    }
}

pdvm_status safetensors_to_float(const struct safetensors *st, const struct safetensors_tensor *t,
                                 int64_t begin, int64_t n, float *out, pdvm_error *err) {
    if (begin < 0 || n < 0 || begin > t->n_elements || n > t->n_elements - begin)
        return pd_fail(err, PDVM_ERR_ARGUMENT,
                       "%s: tensor \"%.200s\": elements %" PRId64 " + %" PRId64
                       " asked for, but it has %" PRId64,
                       st->path, t->name, begin, n, t->n_elements);
    if (n == 0) return PDVM_OK;
    const uint8_t *data = t->data + (size_t)begin * safetensors_dtype_size(t->dtype);
    switch (t->dtype) {
    case SAFETENSORS_F32: memcpy(out, data, (size_t)n * sizeof *out); return PDVM_OK;
    case SAFETENSORS_F16: half_to_float(data, n, pd_f16_to_float, out); return PDVM_OK;
    case SAFETENSORS_BF16: half_to_float(data, n, pd_bf16_to_float, out); return PDVM_OK;
    case SAFETENSORS_F64:
        for (int64_t i = 0; i < n; i++) {
            double d;
            memcpy(&d, data + 8 * i, sizeof d);
            out[i] = (float)d;
        }
        return PDVM_OK;
    default:
        return pd_fail(err, PDVM_ERR_UNSUPPORTED,
                       "%s: tensor \"%.200s\" has dtype %s; weights must be F32, F16, BF16 or F64",
                       st->path, t->name, dtypes[t->dtype].name);
    }
}

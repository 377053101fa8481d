#include "io/gguf.h"

#include "base/alloc.h"
#include "base/checked.h"
#include "base/file.h"
#include "base/hash.h"
#include "base/utf8.h"

#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#define ALIGNMENT_KEY "general.alignment"
#define DEFAULT_ALIGNMENT 32

/* The least that an entry or a tensor takes: every count is held against what is left. */
#define MIN_VALUE_BYTES (8 + 1 + 4 + 1)
#define MIN_TENSOR_BYTES (8 + 1 + 4 + 8 + 4 + 8)

struct gguf {
    char *path;
    struct pd_map map; /* empty for memory that somebody else owns */
    const uint8_t *file;
    size_t file_size;
    size_t at; /* where reading the header is */
    uint64_t header_hash;
    size_t n_values;
    struct gguf_value *values;
    const struct gguf_value **values_by_key;
    size_t n_tensors;
    struct gguf_tensor *tensors; /* in the order of their data */
    const struct gguf_tensor **tensors_by_name;
};

static const struct {
    const char *name, *array_name;
    size_t size; /* 0: not fixed */
} value_types[GGUF_N_VALUE_TYPES] = {
    [GGUF_VALUE_U8] = {"uint8", "array of uint8", 1},
    [GGUF_VALUE_I8] = {"int8", "array of int8", 1},
    [GGUF_VALUE_U16] = {"uint16", "array of uint16", 2},
    [GGUF_VALUE_I16] = {"int16", "array of int16", 2},
    [GGUF_VALUE_U32] = {"uint32", "array of uint32", 4},
    [GGUF_VALUE_I32] = {"int32", "array of int32", 4},
    [GGUF_VALUE_F32] = {"float32", "array of float32", 4},
    [GGUF_VALUE_BOOL] = {"bool", "array of bool", 1},
    [GGUF_VALUE_STRING] = {"string", "array of string", 0},
    [GGUF_VALUE_ARRAY] = {"array", "array of array", 0},
    [GGUF_VALUE_U64] = {"uint64", "array of uint64", 8},
    [GGUF_VALUE_I64] = {"int64", "array of int64", 8},
    [GGUF_VALUE_F64] = {"float64", "array of float64", 8},
};

const char *gguf_value_kind(const struct gguf_value *v) {
    return v->is_array ? value_types[v->type].array_name : value_types[v->type].name;
}

/* ---- reading the header ---------------------------------------------------------------- */

static uint64_t load(const uint8_t *p, size_t size) {
    uint64_t v = 0;
    for (size_t i = size; i-- > 0;) v = v << 8 | p[i];
    return v;
}

/* Takes a number of 4 or 8 bytes; `what` says whose in a message. */
static pdvm_status take(struct gguf *g, size_t size, const char *what, const char *name,
                        uint64_t *out, pdvm_error *err) {
    *out = 0;
    if (g->file_size - g->at < size)
        return pd_fail(err, PDVM_ERR_FORMAT,
                       "%s: %s%s%.200s%s: the file of %zu bytes ends in its header (is it cut "
                       "short?)",
                       g->path, what, *name ? " \"" : "", name, *name ? "\"" : "", g->file_size);
    *out = load(g->file + g->at, size);
    g->at += size;
    return PDVM_OK;
}

/* Takes the name of a key or a tensor; the copy belongs to the entry that *out is in. */
static pdvm_status take_name(struct gguf *g, const char *what, size_t index, const char **out,
                             pdvm_error *err) {
    uint64_t len;
    PD_TRY(take(g, 8, what, "", &len, err));
    if (len > g->file_size - g->at || len > GGUF_MAX_NAME || len == 0)
        return pd_fail(err, PDVM_ERR_FORMAT,
                       "%s: %s %zu: its name has %" PRIu64 " bytes; expected 1 to %d, inside the "
                       "file",
                       g->path, what, index, len, GGUF_MAX_NAME);
    const char *name = (const char *)g->file + g->at;
    size_t n = (size_t)len;
    if (memchr(name, 0, n) || pd_utf8_check(name, n) != n)
        return pd_fail(err, PDVM_ERR_FORMAT, "%s: %s %zu: its name is not UTF-8 text", g->path,
                       what, index);
    char *copy;
    PD_TRY(pd_calloc(&copy, n + 1, 1, "a name", err));
    memcpy(copy, name, n);
    *out = copy;
    g->at += n;
    return PDVM_OK;
}

/* Steps over the strings of a value. */
static pdvm_status skip_strings(struct gguf *g, const struct gguf_value *v, pdvm_error *err) {
    for (uint64_t i = 0; i < v->n; i++) {
        uint64_t len;
        PD_TRY(take(g, 8, "key", v->key, &len, err));
        if (len > g->file_size - g->at)
            return pd_fail(err, PDVM_ERR_FORMAT,
                           "%s: key \"%.200s\": a string of %" PRIu64 " bytes runs past the end "
                           "of the file",
                           g->path, v->key, len);
        g->at += (size_t)len;
    }
    return PDVM_OK;
}

static pdvm_status take_type(struct gguf *g, struct gguf_value *v, pdvm_error *err) {
    uint64_t type;
    PD_TRY(take(g, 4, "key", v->key, &type, err));
    if (type >= GGUF_N_VALUE_TYPES)
        return pd_fail(err, PDVM_ERR_FORMAT, "%s: key \"%.200s\": unknown value type %" PRIu64,
                       g->path, v->key, type);
    v->type = (enum gguf_value_type)type;
    return PDVM_OK;
}

static pdvm_status read_value(struct gguf *g, size_t index, pdvm_error *err) {
    struct gguf_value *v = &g->values[index];
    PD_TRY(take_name(g, "key", index, &v->key, err));
    PD_TRY(take_type(g, v, err));
    v->n = 1;
    if (v->type == GGUF_VALUE_ARRAY) {
        v->is_array = true;
        PD_TRY(take_type(g, v, err));
        if (v->type == GGUF_VALUE_ARRAY)
            return pd_fail(err, PDVM_ERR_UNSUPPORTED,
                           "%s: key \"%.200s\": arrays of arrays are not supported", g->path,
                           v->key);
        PD_TRY(take(g, 8, "key", v->key, &v->n, err));
    }
    size_t begin = g->at, each = value_types[v->type].size;
    /* A string takes at least the 8 bytes of its length. */
    if (v->n > (g->file_size - g->at) / (each ? each : 8))
        return pd_fail(err, PDVM_ERR_FORMAT,
                       "%s: key \"%.200s\": its %s of %" PRIu64 " runs past the end of the file",
                       g->path, v->key, gguf_value_kind(v), v->n);
    if (each)
        g->at += (size_t)v->n * each;
    else
        PD_TRY(skip_strings(g, v, err));
    v->data = g->file + begin;
    v->size = g->at - begin;
    for (size_t i = 0; v->type == GGUF_VALUE_BOOL && i < v->size; i++) {
        if (v->data[i] > 1)
            return pd_fail(err, PDVM_ERR_FORMAT, "%s: key \"%.200s\": %d is not a truth value",
                           g->path, v->key, v->data[i]);
    }
    return PDVM_OK;
}

static pdvm_status read_dims(struct gguf *g, struct gguf_tensor *t, int64_t *n_elements,
                             pdvm_error *err) {
    uint64_t n, dim;
    PD_TRY(take(g, 4, "tensor", t->name, &n, err));
    if (n < 1 || n > GGUF_MAX_DIMS)
        return pd_fail(err, PDVM_ERR_FORMAT,
                       "%s: tensor \"%.200s\" has %" PRIu64 " dimensions; expected 1 to %d",
                       g->path, t->name, n, GGUF_MAX_DIMS);
    t->n_dims = (int)n;
    *n_elements = 1;
    for (int i = 0; i < t->n_dims; i++) {
        PD_TRY(take(g, 8, "tensor", t->name, &dim, err));
        if (dim == 0 || dim > INT64_MAX)
            return pd_fail(err, PDVM_ERR_FORMAT,
                           "%s: tensor \"%.200s\": dimension %d is %" PRIu64 "; expected at least "
                           "1 and a size that a file can have",
                           g->path, t->name, i, dim);
        t->dims[i] = (int64_t)dim;
        if (!pd_mul_i64(*n_elements, t->dims[i], n_elements))
            return pd_fail(err, PDVM_ERR_FORMAT,
                           "%s: tensor \"%.200s\": the product of its dimensions overflows",
                           g->path, t->name);
    }
    return PDVM_OK;
}

/* Reads one tensor's entry; t->data is left for later, *offset says where it will be. */
static pdvm_status read_tensor(struct gguf *g, size_t index, uint64_t *offset, pdvm_error *err) {
    struct gguf_tensor *t = &g->tensors[index];
    int64_t n_elements = 0;
    uint64_t type;
    PD_TRY(take_name(g, "tensor", index, &t->name, err));
    PD_TRY(read_dims(g, t, &n_elements, err));
    PD_TRY(take(g, 4, "tensor", t->name, &type, err));
    PD_TRY(take(g, 8, "tensor", t->name, offset, err));
    t->type = (uint32_t)type;
    const struct gguf_type_info *info = gguf_type_info(t->type);
    if (!info)
        return pd_fail(err, PDVM_ERR_UNSUPPORTED,
                       "%s: tensor \"%.200s\" is of type number %" PRIu64 ", which is unknown",
                       g->path, t->name, type);
    if (t->dims[0] % info->block != 0)
        return pd_fail(err, PDVM_ERR_FORMAT,
                       "%s: tensor \"%.200s\": rows of %" PRId64 " elements are not a whole "
                       "number of %s blocks, which have %u",
                       g->path, t->name, t->dims[0], info->name, info->block);
    if (!pd_mul_size((size_t)(n_elements / info->block), info->bytes, &t->size))
        return pd_fail(err, PDVM_ERR_FORMAT, "%s: tensor \"%.200s\": its size in bytes overflows",
                       g->path, t->name);
    return PDVM_OK;
}

/* ---- the whole header ------------------------------------------------------------------ */

static int compare_key(const void *a, const void *b) {
    const struct gguf_value *const *x = a, *const *y = b;
    return strcmp((*x)->key, (*y)->key);
}

static int compare_name(const void *a, const void *b) {
    const struct gguf_tensor *const *x = a, *const *y = b;
    return strcmp((*x)->name, (*y)->name);
}

static int compare_place(const void *a, const void *b) {
    const struct gguf_tensor *x = a, *y = b;
    if (x->data != y->data) return x->data < y->data ? -1 : 1;
    return strcmp(x->name, y->name);
}

static pdvm_status index_values(struct gguf *g, pdvm_error *err) {
    PD_TRY(pd_calloc(&g->values_by_key, g->n_values, sizeof(struct gguf_value *),
                     "the table of keys", err));
    for (size_t i = 0; i < g->n_values; i++) g->values_by_key[i] = &g->values[i];
    if (g->n_values > 0)
        qsort(g->values_by_key, g->n_values, sizeof(struct gguf_value *), compare_key);
    for (size_t i = 1; i < g->n_values; i++) {
        const char *key = g->values_by_key[i]->key;
        if (strcmp(g->values_by_key[i - 1]->key, key) == 0)
            return pd_fail(err, PDVM_ERR_FORMAT, "%s: key \"%.200s\" occurs twice", g->path, key);
    }
    return PDVM_OK;
}

static pdvm_status index_tensors(struct gguf *g, pdvm_error *err) {
    PD_TRY(pd_calloc(&g->tensors_by_name, g->n_tensors, sizeof(struct gguf_tensor *),
                     "the table of tensors", err));
    if (g->n_tensors == 0) return PDVM_OK;
    qsort(g->tensors, g->n_tensors, sizeof *g->tensors, compare_place);
    for (size_t i = 0; i < g->n_tensors; i++) g->tensors_by_name[i] = &g->tensors[i];
    qsort(g->tensors_by_name, g->n_tensors, sizeof(struct gguf_tensor *), compare_name);
    for (size_t i = 1; i < g->n_tensors; i++) {
        const struct gguf_tensor *a = &g->tensors[i - 1], *b = &g->tensors[i];
        const char *name = g->tensors_by_name[i]->name;
        if (strcmp(g->tensors_by_name[i - 1]->name, name) == 0)
            return pd_fail(err, PDVM_ERR_FORMAT, "%s: tensor \"%.200s\" occurs twice", g->path,
                           name);
        if ((size_t)(b->data - a->data) < a->size)
            return pd_fail(err, PDVM_ERR_FORMAT,
                           "%s: the data of tensor \"%.200s\" overlaps that of \"%.200s\"", g->path,
                           b->name, a->name);
    }
    return PDVM_OK;
}

static pdvm_status read_alignment(struct gguf *g, uint64_t *out, pdvm_error *err) {
    int64_t alignment = DEFAULT_ALIGNMENT;
    PD_TRY(gguf_get_int(g, ALIGNMENT_KEY, false, 1, (int64_t)GGUF_MAX_ALIGNMENT, &alignment, err));
    if ((alignment & (alignment - 1)) != 0)
        return pd_fail(err, PDVM_ERR_FORMAT,
                       "%s: key \"" ALIGNMENT_KEY "\" is %" PRId64 ", not a power of two", g->path,
                       alignment);
    *out = (uint64_t)alignment;
    return PDVM_OK;
}

static pdvm_status read_tensors(struct gguf *g, pdvm_error *err) {
    uint64_t alignment = DEFAULT_ALIGNMENT, *offsets;
    PD_TRY(read_alignment(g, &alignment, err));
    PD_TRY(pd_calloc(&g->tensors, g->n_tensors, sizeof *g->tensors, "the table of tensors", err));
    PD_TRY(pd_calloc(&offsets, g->n_tensors, sizeof *offsets, "the table of tensors", err));
    pdvm_status status = PDVM_OK;
    for (size_t i = 0; status == PDVM_OK && i < g->n_tensors; i++)
        status = read_tensor(g, i, &offsets[i], err);
    g->header_hash = pd_hash(PD_HASH_INIT, g->file, g->at);
    size_t begin = pd_round_up(g->at, (size_t)alignment);
    size_t data_size = begin < g->file_size ? g->file_size - begin : 0;
    for (size_t i = 0; status == PDVM_OK && i < g->n_tensors; i++) {
        struct gguf_tensor *t = &g->tensors[i];
        if (offsets[i] % alignment != 0)
            status = pd_fail(err, PDVM_ERR_FORMAT,
                             "%s: tensor \"%.200s\": its offset %" PRIu64
                             " is not a multiple of the alignment, %" PRIu64,
                             g->path, t->name, offsets[i], alignment);
        else if (offsets[i] > data_size || t->size > data_size - offsets[i])
            status = pd_fail(err, PDVM_ERR_FORMAT,
                             "%s: tensor \"%.200s\": %zu bytes at offset %" PRIu64
                             " run past the end of the file's %zu bytes of data (is the file cut "
                             "short?)",
                             g->path, t->name, t->size, offsets[i], data_size);
        else
            t->data = g->file + begin + (size_t)offsets[i];
    }
    free(offsets);
    return status;
}

static pdvm_status check_version(struct gguf *g, pdvm_error *err) {
    uint64_t version;
    if (g->file_size < 4 || memcmp(g->file, "GGUF", 4) != 0)
        return pd_fail(err, PDVM_ERR_FORMAT, "%s: not a GGUF file: it does not begin with \"GGUF\"",
                       g->path);
    g->at = 4;
    PD_TRY(take(g, 4, "version", "", &version, err));
    if (version == 2 || version == 3) return PDVM_OK;
    if ((version & 0xffff) == 0 && version != 0)
        return pd_fail(err, PDVM_ERR_UNSUPPORTED,
                       "%s: a big-endian GGUF file; only little-endian ones are supported",
                       g->path);
    return pd_fail(err, PDVM_ERR_UNSUPPORTED,
                   "%s: GGUF version %" PRIu64 " is not supported; only versions 2 and 3 are",
                   g->path, version);
}

static pdvm_status read_file(struct gguf *g, pdvm_error *err) {
    uint64_t n_tensors, n_values;
    PD_TRY(check_version(g, err));
    PD_TRY(take(g, 8, "number of tensors", "", &n_tensors, err));
    PD_TRY(take(g, 8, "number of keys", "", &n_values, err));
    size_t left = g->file_size - g->at;
    if (n_values > left / MIN_VALUE_BYTES)
        return pd_fail(err, PDVM_ERR_FORMAT,
                       "%s: %" PRIu64 " keys are more than fit into a file of %zu bytes", g->path,
                       n_values, g->file_size);
    left -= (size_t)n_values * MIN_VALUE_BYTES;
    if (n_tensors > left / MIN_TENSOR_BYTES)
        return pd_fail(err, PDVM_ERR_FORMAT,
                       "%s: %" PRIu64 " tensors are more than fit into a file of %zu bytes",
                       g->path, n_tensors, g->file_size);
    g->n_values = (size_t)n_values;
    g->n_tensors = (size_t)n_tensors;
    PD_TRY(pd_calloc(&g->values, g->n_values, sizeof *g->values, "the table of keys", err));
    for (size_t i = 0; i < g->n_values; i++) PD_TRY(read_value(g, i, err));
    PD_TRY(index_values(g, err));
    PD_TRY(read_tensors(g, err));
    return index_tensors(g, err);
}

static pdvm_status handle_new(const char *path, struct gguf **out, pdvm_error *err) {
    PD_TRY(pd_calloc(out, 1, sizeof **out, "a GGUF file", err));
    (*out)->path = strdup(path);
    if ((*out)->path) return PDVM_OK;
    free(*out);
    *out = NULL;
    return pd_fail_memory(err, strlen(path) + 1, "a path");
}

pdvm_status gguf_open(const char *path, struct gguf **out, pdvm_error *err) {
    struct gguf *g;
    *out = NULL;
    PD_TRY(handle_new(path, &g, err));
    pdvm_status status = pd_map_open(path, &g->map, err);
    g->file = g->map.data;
    g->file_size = g->map.size;
    if (status == PDVM_OK) status = read_file(g, err);
    if (status == PDVM_OK)
        *out = g;
    else
        gguf_close(g);
    return status;
}

pdvm_status gguf_open_memory(const char *name, const void *data, size_t size, struct gguf **out,
                             pdvm_error *err) {
    struct gguf *g;
    *out = NULL;
    PD_TRY(handle_new(name, &g, err));
    g->file = data;
    g->file_size = size;
    pdvm_status status = read_file(g, err);
    if (status == PDVM_OK)
        *out = g;
    else
        gguf_close(g);
    return status;
}

void gguf_close(struct gguf *g) {
    if (!g) return;
    pd_map_close(&g->map);
    for (size_t i = 0; g->values && i < g->n_values; i++) free((char *)g->values[i].key);
    for (size_t i = 0; g->tensors && i < g->n_tensors; i++) free((char *)g->tensors[i].name);
    free(g->values);
    free(g->values_by_key);
    free(g->tensors);
    free(g->tensors_by_name);
    free(g->path);
    free(g);
}

/* ---- what is in it --------------------------------------------------------------------- */

const char *gguf_path(const struct gguf *g) {
    return g->path;
}

uint64_t gguf_header_hash(const struct gguf *g) {
    return g->header_hash;
}

size_t gguf_value_count(const struct gguf *g) {
    return g->n_values;
}

const struct gguf_value *gguf_value_at(const struct gguf *g, size_t i) {
    return i < g->n_values ? &g->values[i] : NULL;
}

const struct gguf_value *gguf_value_find(const struct gguf *g, const char *key) {
    const struct gguf_value wanted = {.key = key}, *p = &wanted;
    const struct gguf_value *const *found =
        bsearch(&p, g->values_by_key, g->n_values, sizeof(struct gguf_value *), compare_key);
    return found ? *found : NULL;
}

size_t gguf_tensor_count(const struct gguf *g) {
    return g->n_tensors;
}

const struct gguf_tensor *gguf_tensor_at(const struct gguf *g, size_t i) {
    return i < g->n_tensors ? &g->tensors[i] : NULL;
}

const struct gguf_tensor *gguf_tensor_find(const struct gguf *g, const char *name) {
    const struct gguf_tensor wanted = {.name = name}, *p = &wanted;
    const struct gguf_tensor *const *found =
        bsearch(&p, g->tensors_by_name, g->n_tensors, sizeof(struct gguf_tensor *), compare_name);
    return found ? *found : NULL;
}

/* The value of a key, or *out NULL if it is absent and not required. */
static pdvm_status find(const struct gguf *g, const char *key, bool required,
                        const struct gguf_value **out, pdvm_error *err) {
    *out = gguf_value_find(g, key);
    if (*out || !required) return PDVM_OK;
    return pd_fail(err, PDVM_ERR_FORMAT, "%s: key \"%s\" is missing", g->path, key);
}

static pdvm_status wrong_type(const struct gguf *g, const struct gguf_value *v,
                              const char *expected, pdvm_error *err) {
    return pd_fail(err, PDVM_ERR_FORMAT, "%s: key \"%.200s\" is of type %s; expected %s", g->path,
                   v->key, gguf_value_kind(v), expected);
}

/* The number as int64; false if it is not of an integer type. Numbers beyond are INT64_MAX. */
static bool to_int(const struct gguf_value *v, int64_t *out) {
    if (v->is_array) return false;
    uint64_t u = load(v->data, v->size <= 8 ? v->size : 0);
    switch (v->type) {
    case GGUF_VALUE_I8: *out = (int64_t)u - (u > INT8_MAX ? 256 : 0); return true;
    case GGUF_VALUE_I16: *out = (int16_t)u; return true;
    case GGUF_VALUE_I32: *out = (int32_t)u; return true;
    case GGUF_VALUE_I64: *out = (int64_t)u; return true;
    case GGUF_VALUE_U8:
    case GGUF_VALUE_U16:
    case GGUF_VALUE_U32:
    case GGUF_VALUE_U64: *out = u > INT64_MAX ? INT64_MAX : (int64_t)u; return true;
    default: return false;
    }
}

pdvm_status gguf_get_int(const struct gguf *g, const char *key, bool required, int64_t min,
                         int64_t max, int64_t *out, pdvm_error *err) {
    const struct gguf_value *v;
    int64_t value;
    PD_TRY(find(g, key, required, &v, err));
    if (!v) return PDVM_OK;
    if (!to_int(v, &value)) return wrong_type(g, v, "a whole number", err);
    if (value < min || value > max)
        return pd_fail(err, PDVM_ERR_FORMAT,
                       "%s: key \"%s\" is %" PRId64 "; expected %" PRId64 " to %" PRId64, g->path,
                       key, value, min, max);
    *out = value;
    return PDVM_OK;
}

pdvm_status gguf_get_float(const struct gguf *g, const char *key, bool required, double *out,
                           pdvm_error *err) {
    const struct gguf_value *v;
    float f;
    double d;
    PD_TRY(find(g, key, required, &v, err));
    if (!v) return PDVM_OK;
    if (v->is_array || (v->type != GGUF_VALUE_F32 && v->type != GGUF_VALUE_F64))
        return wrong_type(g, v, "float32 or float64", err);
    if (v->type == GGUF_VALUE_F32) {
        memcpy(&f, v->data, sizeof f);
        d = f;
    } else {
        memcpy(&d, v->data, sizeof d);
    }
    if (!isfinite(d))
        return pd_fail(err, PDVM_ERR_FORMAT, "%s: key \"%s\" is not a finite number", g->path, key);
    *out = d;
    return PDVM_OK;
}

pdvm_status gguf_get_bool(const struct gguf *g, const char *key, bool required, bool *out,
                          pdvm_error *err) {
    const struct gguf_value *v;
    PD_TRY(find(g, key, required, &v, err));
    if (!v) return PDVM_OK;
    if (v->is_array || v->type != GGUF_VALUE_BOOL) return wrong_type(g, v, "bool", err);
    *out = v->data[0] != 0;
    return PDVM_OK;
}

pdvm_status gguf_get_string(const struct gguf *g, const char *key, bool required, const char **out,
                            size_t *len, pdvm_error *err) {
    const struct gguf_value *v;
    size_t at = 0, n;
    PD_TRY(find(g, key, required, &v, err));
    if (!v) return PDVM_OK;
    if (v->is_array || v->type != GGUF_VALUE_STRING) return wrong_type(g, v, "string", err);
    const char *s = gguf_next_string(v, &at, &n);
    if (memchr(s, 0, n) || pd_utf8_check(s, n) != n)
        return pd_fail(err, PDVM_ERR_FORMAT, "%s: key \"%s\" is not UTF-8 text", g->path, key);
    *out = s;
    *len = n;
    return PDVM_OK;
}

pdvm_status gguf_get_array(const struct gguf *g, const char *key, bool required,
                           enum gguf_value_type type, const struct gguf_value **out,
                           pdvm_error *err) {
    PD_TRY(find(g, key, required, out, err));
    if (!*out || ((*out)->is_array && (*out)->type == type)) return PDVM_OK;
    return wrong_type(g, *out, value_types[type].array_name, err);
}

const char *gguf_next_string(const struct gguf_value *v, size_t *at, size_t *len) {
    const uint8_t *p = v->data + *at;
    *len = (size_t)load(p, 8);
    *at += 8 + *len;
    return (const char *)p + 8;
}

int32_t gguf_i32_at(const struct gguf_value *v, uint64_t i) {
    return (int32_t)(uint32_t)load(v->data + 4 * i, 4);
}

float gguf_f32_at(const struct gguf_value *v, uint64_t i) {
    float f;
    memcpy(&f, v->data + 4 * i, sizeof f);
    return f;
}

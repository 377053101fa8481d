#include "mdcsr/container.h"

#include "base/alloc.h"
#include "base/hash.h"
#include "io/json.h"
#include "io/safetensors.h"
#include "mdcsr/layout.h"
#include "mdcsr/parts.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct container {
    struct safetensors *st;
    json_t *matrices_json;                   /* owns the names */
    struct container_matrix *matrices;       /* [n_matrices] in the metadata's order */
    const struct container_matrix **by_name; /* [n_matrices] sorted */
    size_t n_matrices;
    const struct safetensors_tensor **vectors; /* [n_vectors] in file order */
    size_t n_vectors;
};

/* ---- metadata -------------------------------------------------------------------------- */

bool container_is_pdvm(const struct safetensors *st) {
    const char *format = safetensors_metadata(st, CONTAINER_KEY_FORMAT);
    return format && strcmp(format, CONTAINER_FORMAT) == 0;
}

static bool hash_parse(const char *text, uint64_t *out) {
    *out = 0;
    if (!text || strlen(text) != 16) return false;
    for (const char *p = text; *p; p++) {
        bool digit = *p >= '0' && *p <= '9';
        if (!digit && !(*p >= 'a' && *p <= 'f')) return false;
        *out = *out << 4 | (uint64_t)(digit ? *p - '0' : *p - 'a' + 10);
    }
    return true;
}

static pdvm_status check_identity(const struct safetensors *st, pdvm_error *err) {
    const char *path = safetensors_path(st);
    uint64_t hash;
    if (!container_is_pdvm(st))
        return pd_fail(err, PDVM_ERR_UNSUPPORTED,
                       "%s: a safetensors file, but not a .pdvm file (no metadata \"%s\": \"%s\"); "
                       "make one with pdvm convert",
                       path, CONTAINER_KEY_FORMAT, CONTAINER_FORMAT);
    const char *version = safetensors_metadata(st, CONTAINER_KEY_VERSION);
    if (!version)
        return pd_fail(err, PDVM_ERR_FORMAT, "%s: metadata \"%s\" is missing", path,
                       CONTAINER_KEY_VERSION);
    if (strcmp(version, CONTAINER_VERSION) != 0)
        return pd_fail(err, PDVM_ERR_UNSUPPORTED,
                       "%s: format version \"%.40s\", but this pdvm (" PDVM_VERSION
                       ") reads only version \"%s\": convert the model again, or update pdvm",
                       path, version, CONTAINER_VERSION);
    if (!hash_parse(safetensors_metadata(st, CONTAINER_KEY_HASH), &hash))
        return pd_fail(err, PDVM_ERR_FORMAT,
                       "%s: metadata \"%s\" is missing or not 16 hexadecimal digits", path,
                       CONTAINER_KEY_HASH);
    return PDVM_OK;
}

static pdvm_status unknown(const char *where, const char *field, const char *value,
                           pdvm_error *err) {
    return pd_fail(err, PDVM_ERR_UNSUPPORTED,
                   "%s: %s \"%.40s\" is not known to this pdvm (" PDVM_VERSION ")", where, field,
                   value);
}

/* The codings of one matrix. */
static pdvm_status parse_codings(const char *where, const json_t *o, struct container_matrix *m,
                                 pdvm_error *err) {
    const char *index, *values, *codebook = NULL;
    PD_TRY(pd_json_string(where, o, "index", true, &index, err));
    PD_TRY(pd_json_string(where, o, "values", true, &values, err));
    if (!mdcsr_index_parse(index, &m->index_coding)) return unknown(where, "index", index, err);
    if (!mdcsr_values_parse(values, &m->value_coding)) return unknown(where, "values", values, err);
    bool has_book = mdcsr_codebook_size(m->value_coding) > 0;
    PD_TRY(pd_json_string(where, o, "codebook", has_book, &codebook, err));
    if (!has_book && codebook)
        return pd_fail(err, PDVM_ERR_FORMAT, "%s: codebook \"%.40s\" for %s values", where,
                       codebook, values);
    if (has_book && !mdcsr_codebook_parse(codebook, &m->codebook_kind))
        return unknown(where, "codebook", codebook, err);
    return PDVM_OK;
}

static pdvm_status parse_shape(const char *where, const json_t *o, struct container_matrix *m,
                               pdvm_error *err) {
    json_t *shape = NULL;
    PD_TRY(pd_json_array(where, o, "shape", true, &shape, err));
    const json_t *rows = json_array_get(shape, 0), *cols = json_array_get(shape, 1);
    m->rows = json_is_integer(rows) ? json_integer_value(rows) : 0;
    m->cols = json_is_integer(cols) ? json_integer_value(cols) : 0;
    if (json_array_size(shape) == 2 && m->rows > 0 && m->cols > 0 && m->rows <= MDCSR_MAX_DIM &&
        m->cols <= MDCSR_MAX_DIM)
        return PDVM_OK;
    return pd_fail(err, PDVM_ERR_FORMAT,
                   "%s: \"shape\" must be two whole numbers in 1..%" PRId64 ", rows and columns",
                   where, MDCSR_MAX_DIM);
}

static pdvm_status parse_matrix(const char *where, const json_t *o, struct container_matrix *m,
                                pdvm_error *err) {
    int64_t group = 0;
    if (!json_is_object(o))
        return pd_fail(err, PDVM_ERR_FORMAT, "%s: must be an object, not %s", where,
                       pd_json_kind(o));
    PD_TRY(parse_shape(where, o, m, err));
    PD_TRY(parse_codings(where, o, m, err));
    int64_t n = m->rows * m->cols;
    PD_TRY(pd_json_int(where, o, "group", true, 0, INT32_MAX, &group, err));
    PD_TRY(pd_json_int(where, o, "entries", true, 0, n, &m->n_entries, err));
    PD_TRY(pd_json_int(where, o, "zeros", true, 0, n, &m->n_zeros, err));
    PD_TRY(pd_json_number(where, o, "error", true, &m->error, err));
    m->group = (uint32_t)group;
    if (!mdcsr_group_valid(m->group))
        return pd_fail(err, PDVM_ERR_UNSUPPORTED,
                       "%s: \"group\" is %" PRId64 "; known are 0, 32, 64, 128 and 256", where,
                       group);
    if (m->group && !mdcsr_has_scales(m->value_coding))
        return pd_fail(err, PDVM_ERR_FORMAT,
                       "%s: \"group\" is %" PRId64 ", but %s values have no "
                       "scales",
                       where, group, mdcsr_values_name(m->value_coding));
    if (m->index_coding == MDCSR_DENSE && m->n_entries != n)
        return pd_fail(err, PDVM_ERR_FORMAT,
                       "%s: \"entries\" is %" PRId64 ", but a dense matrix has %" PRId64, where,
                       m->n_entries, n);
    if (m->index_coding != MDCSR_DENSE && m->n_zeros < n - m->n_entries)
        return pd_fail(err, PDVM_ERR_FORMAT,
                       "%s: \"zeros\" is %" PRId64 ", but %" PRId64 " positions are not stored",
                       where, m->n_zeros, n - m->n_entries);
    if (m->error < 0) return pd_fail(err, PDVM_ERR_FORMAT, "%s: \"error\" is negative", where);
    return PDVM_OK;
}

static int compare_names(const void *a, const void *b) {
    const struct container_matrix *const *s = a, *const *t = b;
    return strcmp((*s)->name, (*t)->name);
}

static pdvm_status parse_matrices(struct container *c, pdvm_error *err) {
    const char *path = safetensors_path(c->st);
    const char *text = safetensors_metadata(c->st, CONTAINER_KEY_MATRICES);
    char where[CONTAINER_MAX_NAME + 1024];
    if (!text)
        return pd_fail(err, PDVM_ERR_FORMAT, "%s: metadata \"%s\" is missing", path,
                       CONTAINER_KEY_MATRICES);
    snprintf(where, sizeof where, "%.900s: metadata \"%s\"", path, CONTAINER_KEY_MATRICES);
    PD_TRY(pd_json_parse_object(where, text, strlen(text), &c->matrices_json, err));
    size_t n = json_object_size(c->matrices_json);
    PD_TRY(pd_calloc(&c->matrices, n, sizeof *c->matrices, "the table of matrices", err));
    PD_TRY(pd_calloc(&c->by_name, n, sizeof *c->by_name, "the table of matrices", err));
    const char *name;
    json_t *o;
    json_object_foreach(c->matrices_json, name, o) {
        struct container_matrix *m = &c->matrices[c->n_matrices];
        if (!name[0] || strlen(name) > CONTAINER_MAX_NAME)
            return pd_fail(err, PDVM_ERR_FORMAT, "%s: \"%.260s\": names have 1 to %d bytes", where,
                           name, CONTAINER_MAX_NAME);
        snprintf(where, sizeof where, "%.700s: matrix \"%s\"", path, name);
        PD_TRY(parse_matrix(where, o, m, err));
        m->name = name;
        c->by_name[c->n_matrices++] = m;
    }
    if (c->n_matrices > 0) qsort(c->by_name, c->n_matrices, sizeof *c->by_name, compare_names);
    return PDVM_OK;
}

/* ---- tensors --------------------------------------------------------------------------- */

static const struct container_matrix *find(const struct container *c, const char *name,
                                           size_t len) {
    size_t low = 0, high = c->n_matrices;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        const struct container_matrix *m = c->by_name[middle];
        int order = strncmp(name, m->name, len);
        if (order == 0 && m->name[len] == 0) return m;
        if (order <= 0)
            high = middle;
        else
            low = middle + 1;
    }
    return NULL;
}

static const struct safetensors_tensor *find_part(const struct container *c, const char *name,
                                                  enum container_part part) {
    char full[CONTAINER_MAX_NAME + 20];
    snprintf(full, sizeof full, "%s.%s", name, container_part_name(part));
    return safetensors_find(c->st, full);
}

static pdvm_status check_part(const struct container *c, const struct container_matrix *m,
                              enum container_part part, const struct container_part_type *type,
                              const struct safetensors_tensor *t, pdvm_error *err) {
    const char *path = safetensors_path(c->st), *name = container_part_name(part);
    if (!t)
        return type->there ? pd_fail(err, PDVM_ERR_FORMAT, "%s: matrix \"%s\": no tensor \"%s.%s\"",
                                     path, m->name, m->name, name)
                           : PDVM_OK;
    if (!type->there)
        return pd_fail(err, PDVM_ERR_FORMAT,
                       "%s: matrix \"%s\": unexpected tensor \"%s\": %s index and %s values have "
                       "none",
                       path, m->name, t->name, mdcsr_index_name(m->index_coding),
                       mdcsr_values_name(m->value_coding));
    bool dtype = type->offsets ? t->dtype == SAFETENSORS_I32 || t->dtype == SAFETENSORS_I64
                               : t->dtype == type->dtype;
    if (!dtype)
        return pd_fail(err, PDVM_ERR_FORMAT, "%s: matrix \"%s\": %s has dtype %s instead of %s",
                       path, m->name, name, safetensors_dtype_name(t->dtype),
                       type->offsets ? "I32 or I64" : safetensors_dtype_name(type->dtype));
    bool shape = t->n_dims == type->n_dims;
    for (int i = 0; shape && !type->any_size && i < t->n_dims; i++)
        shape = t->dims[i] == type->dims[i];
    if (shape) return PDVM_OK;
    char expected[64] = "";
    if (type->n_dims == 2)
        snprintf(expected, sizeof expected, "%" PRId64 ", %" PRId64, type->dims[0], type->dims[1]);
    else if (!type->any_size)
        snprintf(expected, sizeof expected, "%" PRId64, type->dims[0]);
    return pd_fail(err, PDVM_ERR_FORMAT,
                   "%s: matrix \"%s\": %s has %d dimensions and %" PRId64
                   " elements instead of shape [%s]",
                   path, m->name, name, t->n_dims, t->n_elements, expected);
}

static pdvm_status check_parts(struct container *c, pdvm_error *err) {
    for (size_t i = 0; i < c->n_matrices; i++) {
        struct container_matrix *m = &c->matrices[i];
        struct container_part_type types[N_PARTS];
        container_part_types(m, types);
        for (int p = 0; p < N_PARTS; p++) {
            enum container_part part = (enum container_part)p;
            const struct safetensors_tensor *t = find_part(c, m->name, part);
            PD_TRY(check_part(c, m, part, &types[p], t, err));
            m->stored_bytes += t ? t->size : 0;
        }
    }
    return PDVM_OK;
}

/* Whether a tensor is a part of a matrix that the metadata lists. */
static bool is_part(const struct container *c, const char *name) {
    const char *end = strrchr(name, '.');
    if (!end || !find(c, name, (size_t)(end - name))) return false;
    for (int i = 0; i < N_PARTS; i++)
        if (strcmp(end + 1, container_part_name((enum container_part)i)) == 0) return true;
    return false;
}

/* Every tensor is something that this version knows: what a reader skips, it gets wrong. */
static pdvm_status classify(struct container *c, pdvm_error *err) {
    size_t n = safetensors_count(c->st);
    PD_TRY(pd_calloc(&c->vectors, n, sizeof *c->vectors, "the table of vectors", err));
    for (size_t i = 0; i < n; i++) {
        const struct safetensors_tensor *t = safetensors_at(c->st, i);
        if (is_part(c, t->name)) continue;
        bool file = strncmp(t->name, CONTAINER_FILES, strlen(CONTAINER_FILES)) == 0;
        if (t->n_dims != 1 || t->dtype != (file ? SAFETENSORS_U8 : SAFETENSORS_F32) ||
            (!file && (t->dims[0] < 1 || t->dims[0] > MDCSR_MAX_DIM)))
            return pd_fail(err, PDVM_ERR_FORMAT,
                           "%s: tensor \"%.260s\" is neither a part of a matrix in the metadata, "
                           "nor a side file (U8), nor a vector (F32)",
                           safetensors_path(c->st), t->name);
        if (!file) c->vectors[c->n_vectors++] = t;
    }
    return PDVM_OK;
}

/* Takes over `st`, also on failure. */
static pdvm_status open_tensors(struct safetensors *st, struct container **out, pdvm_error *err) {
    struct container *c;
    pdvm_status status = pd_calloc(&c, 1, sizeof *c, "a .pdvm file", err);
    if (status != PDVM_OK) {
        safetensors_close(st);
        return status;
    }
    c->st = st;
    status = check_identity(st, err);
    if (status == PDVM_OK) status = parse_matrices(c, err);
    if (status == PDVM_OK) status = check_parts(c, err);
    if (status == PDVM_OK) status = classify(c, err);
    if (status == PDVM_OK)
        *out = c;
    else
        container_close(c);
    return status;
}

pdvm_status container_open(const char *path, struct container **out, pdvm_error *err) {
    struct safetensors *st;
    *out = NULL;
    PD_TRY(safetensors_open(path, &st, err));
    return open_tensors(st, out, err);
}

pdvm_status container_open_memory(const char *name, const void *data, size_t size,
                                  struct container **out, pdvm_error *err) {
    struct safetensors *st;
    *out = NULL;
    PD_TRY(safetensors_open_memory(name, data, size, &st, err));
    return open_tensors(st, out, err);
}

void container_close(struct container *c) {
    if (!c) return;
    safetensors_close(c->st);
    json_decref(c->matrices_json);
    free(c->matrices);
    free(c->by_name);
    free(c->vectors);
    free(c);
}

const struct safetensors *container_safetensors(const struct container *c) {
    return c->st;
}

/* ---- matrices -------------------------------------------------------------------------- */

size_t container_matrix_count(const struct container *c) {
    return c->n_matrices;
}

const struct container_matrix *container_matrix_at(const struct container *c, size_t i) {
    return i < c->n_matrices ? &c->matrices[i] : NULL;
}

const struct container_matrix *container_matrix_find(const struct container *c, const char *name) {
    return find(c, name, strlen(name));
}

static pdvm_status read_offsets(const struct safetensors_tensor *t, int64_t **out,
                                pdvm_error *err) {
    size_t n = (size_t)t->n_elements;
    PD_TRY(pd_calloc(out, n, sizeof **out, "row offsets", err));
    if (t->dtype == SAFETENSORS_I64) {
        memcpy(*out, t->data, t->size);
        return PDVM_OK;
    }
    for (size_t i = 0; i < n; i++) {
        int32_t v;
        memcpy(&v, t->data + 4 * i, sizeof v);
        (*out)[i] = v;
    }
    return PDVM_OK;
}

static void read_codebook(const struct safetensors_tensor *t, float *out) {
    if (t->dtype == SAFETENSORS_F32) {
        memcpy(out, t->data, t->size);
        return;
    }
    for (size_t i = 0; i < t->size; i++) out[i] = (float)(int8_t)t->data[i];
}

/* Tables are filled from parts whose dtypes and shapes container_open has checked. */
static pdvm_status read_parts(const struct container *c, const struct container_matrix *info,
                              struct mdcsr *m, pdvm_error *err) {
    const struct safetensors_tensor *parts[N_PARTS];
    for (int p = 0; p < N_PARTS; p++) parts[p] = find_part(c, info->name, (enum container_part)p);
    m->values = parts[PART_VALUES]->data;
    m->values_size = parts[PART_VALUES]->size;
    if (parts[PART_INDEX]) {
        m->index = parts[PART_INDEX]->data;
        m->index_size = parts[PART_INDEX]->size;
    }
    if (parts[PART_ROW_OFFSETS])
        PD_TRY(read_offsets(parts[PART_ROW_OFFSETS], &m->row_offsets, err));
    if (parts[PART_INDEX_OFFSETS])
        PD_TRY(read_offsets(parts[PART_INDEX_OFFSETS], &m->index_offsets, err));
    if (parts[PART_CODEBOOK]) read_codebook(parts[PART_CODEBOOK], m->codebook);
    if (parts[PART_SCALES]) {
        int64_t n = parts[PART_SCALES]->n_elements;
        PD_TRY(pd_calloc(&m->scales, (size_t)n, sizeof *m->scales, "scales", err));
        PD_TRY(safetensors_to_float(c->st, parts[PART_SCALES], 0, n, m->scales, err));
    }
    return mdcsr_check(m, err);
}

pdvm_status container_read_matrix(const struct container *c, const char *name, struct mdcsr *out,
                                  pdvm_error *err) {
    const struct container_matrix *info = container_matrix_find(c, name);
    *out = (struct mdcsr){0};
    if (!info)
        return pd_fail(err, PDVM_ERR_ARGUMENT, "%s: no matrix \"%.260s\"", safetensors_path(c->st),
                       name);
    *out = (struct mdcsr){.rows = info->rows,
                          .cols = info->cols,
                          .n_entries = info->n_entries,
                          .index_coding = info->index_coding,
                          .value_coding = info->value_coding,
                          .codebook_kind = info->codebook_kind,
                          .group = info->group,
                          .n_groups = mdcsr_groups(info->value_coding, info->cols, info->group)};
    pdvm_status status = read_parts(c, info, out, err);
    if (status == PDVM_OK) return PDVM_OK;
    mdcsr_free(out);
    return pd_prefix(err, status, "%s: matrix \"%s\"", safetensors_path(c->st), name);
}

/* ---- vectors, side files, the hash ----------------------------------------------------- */

size_t container_vector_count(const struct container *c) {
    return c->n_vectors;
}

const char *container_vector_at(const struct container *c, size_t i, int64_t *n) {
    *n = i < c->n_vectors ? c->vectors[i]->n_elements : 0;
    return i < c->n_vectors ? c->vectors[i]->name : NULL;
}

static const struct safetensors_tensor *find_vector(const struct container *c, const char *name) {
    bool file = strncmp(name, CONTAINER_FILES, strlen(CONTAINER_FILES)) == 0;
    return file || is_part(c, name) ? NULL : safetensors_find(c->st, name);
}

int64_t container_vector_size(const struct container *c, const char *name) {
    const struct safetensors_tensor *t = find_vector(c, name);
    return t ? t->n_elements : -1;
}

pdvm_status container_read_vector(const struct container *c, const char *name, float *out,
                                  int64_t n, pdvm_error *err) {
    const char *path = safetensors_path(c->st);
    const struct safetensors_tensor *t = find_vector(c, name);
    if (!t) return pd_fail(err, PDVM_ERR_ARGUMENT, "%s: no vector \"%.260s\"", path, name);
    if (t->n_elements != n)
        return pd_fail(err, PDVM_ERR_FORMAT,
                       "%s: vector \"%s\" has %" PRId64 " elements instead of %" PRId64, path, name,
                       t->n_elements, n);
    PD_TRY(safetensors_to_float(c->st, t, 0, n, out, err));
    for (int64_t i = 0; i < n; i++) {
        if (!isfinite(out[i]))
            return pd_fail(err, PDVM_ERR_FORMAT,
                           "%s: vector \"%s\": element %" PRId64 " is not finite", path, name, i);
    }
    return PDVM_OK;
}

void container_file(const struct container *c, const char *name, const char **data, size_t *size) {
    char full[sizeof CONTAINER_FILES + CONTAINER_MAX_NAME];
    *data = NULL;
    *size = 0;
    if (snprintf(full, sizeof full, CONTAINER_FILES "%s", name) >= (int)sizeof full) return;
    const struct safetensors_tensor *t = safetensors_find(c->st, full);
    if (!t) return;
    *data = (const char *)t->data;
    *size = t->size;
}

pdvm_status container_verify_hash(const struct container *c, pdvm_error *err) {
    uint64_t hash = PD_HASH_INIT, expected;
    const char *text = safetensors_metadata(c->st, CONTAINER_KEY_HASH);
    for (size_t i = 0; i < safetensors_count(c->st); i++) {
        const struct safetensors_tensor *t = safetensors_at(c->st, i);
        hash = pd_hash(hash, t->data, t->size);
    }
    if (hash_parse(text, &expected) && hash == expected) return PDVM_OK;
    return pd_fail(err, PDVM_ERR_FORMAT,
                   "%s: the data's hash is %016" PRIx64
                   ", but metadata \"%s\" says %s: the file is "
                   "damaged",
                   safetensors_path(c->st), hash, CONTAINER_KEY_HASH, text);
}

#include "base/alloc.h"
#include "base/half.h"
#include "base/hash.h"
#include "io/json.h"
#include "mdcsr/layout.h"
#include "mdcsr/parts.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct container_writer {
    struct safetensors_writer *file;
    char *path;
    json_t *matrices;
    uint64_t hash; /* of all tensor data so far */
};

size_t container_header_reserve(size_t n, size_t longest) {
    /* A tensor's entry in the header is its name and at most 110 bytes, a matrix's in the metadata
     * its name and at most 230; whatever has a name may be a matrix of six parts. */
    return 2048 + n * ((N_PARTS + 1) * longest + N_PARTS * (16 + 110) + 230);
}

static void writer_free(struct container_writer *w) {
    json_decref(w->matrices);
    free(w->path);
    free(w);
}

pdvm_status container_writer_open(const char *path, size_t reserve, struct container_writer **out,
                                  pdvm_error *err) {
    struct container_writer *w;
    *out = NULL;
    PD_TRY(pd_calloc(&w, 1, sizeof *w, "a .pdvm writer", err));
    w->path = strdup(path);
    w->matrices = json_object();
    w->hash = PD_HASH_INIT;
    pdvm_status status = PDVM_OK;
    if (!w->path || !w->matrices) status = pd_fail_memory(err, sizeof *w, "a .pdvm writer");
    if (status == PDVM_OK) status = safetensors_writer_open(path, reserve, &w->file, err);
    if (status == PDVM_OK)
        *out = w;
    else
        writer_free(w);
    return status;
}

static pdvm_status check_name(const struct container_writer *w, const char *name, pdvm_error *err) {
    if (!name[0] || strlen(name) > CONTAINER_MAX_NAME)
        return pd_fail(err, PDVM_ERR_ARGUMENT, "%s: \"%.260s\": names have 1 to %d bytes", w->path,
                       name, CONTAINER_MAX_NAME);
    return PDVM_OK;
}

/* Names of matrices and vectors must not look like parts or side files. */
static pdvm_status check_tensor_name(const struct container_writer *w, const char *name,
                                     pdvm_error *err) {
    PD_TRY(check_name(w, name, err));
    const char *end = strrchr(name, '.');
    bool taken = strncmp(name, CONTAINER_FILES, strlen(CONTAINER_FILES)) == 0;
    for (int i = 0; end && i < N_PARTS; i++)
        taken |= strcmp(end + 1, container_part_name((enum container_part)i)) == 0;
    if (taken)
        return pd_fail(err, PDVM_ERR_ARGUMENT, "%s: the name \"%s\" means something else in a file",
                       w->path, name);
    return PDVM_OK;
}

static pdvm_status append(struct container_writer *w, const char *name,
                          enum safetensors_dtype dtype, const int64_t *dims, int n_dims,
                          const void *data, size_t size, pdvm_error *err) {
    PD_TRY(safetensors_writer_tensor(w->file, name, dtype, dims, n_dims, data, size, err));
    w->hash = pd_hash(w->hash, data, size);
    return PDVM_OK;
}

static pdvm_status append_part(struct container_writer *w, const char *name,
                               enum container_part part, const struct container_part_type *type,
                               const void *data, size_t size, pdvm_error *err) {
    char full[CONTAINER_MAX_NAME + 20];
    snprintf(full, sizeof full, "%s.%s", name, container_part_name(part));
    return append(w, full, type->dtype, type->dims, type->n_dims, data, size, err);
}

static pdvm_status append_offsets(struct container_writer *w, const char *name,
                                  enum container_part part, const struct container_part_type *type,
                                  const int64_t *offsets, int64_t rows, pdvm_error *err) {
    struct container_part_type t = *type;
    size_t n = (size_t)rows + 1;
    t.dtype = SAFETENSORS_I64;
    if (offsets[rows] > INT32_MAX) return append_part(w, name, part, &t, offsets, n * 8, err);
    int32_t *narrow;
    PD_TRY(pd_calloc(&narrow, n, sizeof *narrow, "row offsets", err));
    for (size_t i = 0; i < n; i++) narrow[i] = (int32_t)offsets[i];
    t.dtype = SAFETENSORS_I32;
    pdvm_status status = append_part(w, name, part, &t, narrow, n * 4, err);
    free(narrow);
    return status;
}

static pdvm_status append_scales(struct container_writer *w, const char *name,
                                 const struct container_part_type *type, const struct mdcsr *m,
                                 pdvm_error *err) {
    size_t n = (size_t)m->rows * (size_t)m->n_groups;
    if (m->group == 0) return append_part(w, name, PART_SCALES, type, m->scales, n * 4, err);
    uint16_t *narrow;
    PD_TRY(pd_calloc(&narrow, n, sizeof *narrow, "scales", err));
    pdvm_status status = PDVM_OK;
    for (size_t i = 0; i < n && status == PDVM_OK; i++) {
        narrow[i] = pd_float_to_bf16(m->scales[i]);
        if (pd_bf16_to_float(narrow[i]) != m->scales[i])
            status =
                pd_fail(err, PDVM_ERR_ARGUMENT,
                        "%s: matrix \"%s\": scale %zu is no bfloat16 number", w->path, name, i);
    }
    if (status == PDVM_OK) status = append_part(w, name, PART_SCALES, type, narrow, n * 2, err);
    free(narrow);
    return status;
}

static pdvm_status append_codebook(struct container_writer *w, const char *name,
                                   const struct container_part_type *type, const struct mdcsr *m,
                                   pdvm_error *err) {
    if (m->value_coding == MDCSR_LUT8)
        return append_part(w, name, PART_CODEBOOK, type, m->codebook, 256 * sizeof(float), err);
    int8_t bytes[16];
    for (int i = 0; i < 16; i++) bytes[i] = (int8_t)m->codebook[i];
    return append_part(w, name, PART_CODEBOOK, type, bytes, sizeof bytes, err);
}

static pdvm_status append_parts(struct container_writer *w, const char *name, const struct mdcsr *m,
                                const struct container_matrix *info, pdvm_error *err) {
    struct container_part_type types[N_PARTS];
    container_part_types(info, types);
    types[PART_INDEX].dims[0] =
        types[PART_INDEX].any_size ? (int64_t)m->index_size : types[PART_INDEX].dims[0];
    PD_TRY(append_part(w, name, PART_VALUES, &types[PART_VALUES], m->values, m->values_size, err));
    if (types[PART_INDEX].there)
        PD_TRY(append_part(w, name, PART_INDEX, &types[PART_INDEX], m->index, m->index_size, err));
    if (types[PART_ROW_OFFSETS].there)
        PD_TRY(append_offsets(w, name, PART_ROW_OFFSETS, &types[PART_ROW_OFFSETS], m->row_offsets,
                              m->rows, err));
    if (types[PART_INDEX_OFFSETS].there)
        PD_TRY(append_offsets(w, name, PART_INDEX_OFFSETS, &types[PART_INDEX_OFFSETS],
                              m->index_offsets, m->rows, err));
    if (types[PART_SCALES].there) PD_TRY(append_scales(w, name, &types[PART_SCALES], m, err));
    if (types[PART_CODEBOOK].there) PD_TRY(append_codebook(w, name, &types[PART_CODEBOOK], m, err));
    return PDVM_OK;
}

static json_t *describe(const struct container_matrix *info) {
    json_t *o = json_pack("{s:[I, I], s:s, s:s}", "shape", (json_int_t)info->rows,
                          (json_int_t)info->cols, "index", mdcsr_index_name(info->index_coding),
                          "values", mdcsr_values_name(info->value_coding));
    int failed = o == NULL;
    if (mdcsr_codebook_size(info->value_coding))
        failed |= json_object_set_new(o, "codebook",
                                      json_string(mdcsr_codebook_name(info->codebook_kind)));
    failed |= json_object_set_new(o, "group", json_integer(info->group));
    failed |= json_object_set_new(o, "entries", json_integer(info->n_entries));
    failed |= json_object_set_new(o, "zeros", json_integer(info->n_zeros));
    failed |= json_object_set_new(o, "error", json_real(info->error));
    if (!failed) return o;
    json_decref(o);
    return NULL;
}

pdvm_status container_write_matrix(struct container_writer *w, const char *name,
                                   const struct mdcsr *m, const struct mdcsr_report *report,
                                   pdvm_error *err) {
    PD_TRY(check_tensor_name(w, name, err));
    if (json_object_get(w->matrices, name))
        return pd_fail(err, PDVM_ERR_ARGUMENT, "%s: matrix \"%s\": written twice", w->path, name);
    struct container_matrix info = {.rows = m->rows,
                                    .cols = m->cols,
                                    .index_coding = m->index_coding,
                                    .value_coding = m->value_coding,
                                    .codebook_kind = m->codebook_kind,
                                    .group = m->group,
                                    .n_entries = m->n_entries,
                                    .n_zeros = report->n_zeros};
    if (report->sum_squares > 0) info.error = sqrt(report->error_squares / report->sum_squares);
    PD_TRY(append_parts(w, name, m, &info, err));
    json_t *entry = describe(&info);
    if (!entry) return pd_fail_memory(err, sizeof info, "a .pdvm header");
    if (json_object_set_new(w->matrices, name, entry) != 0)
        return pd_fail(err, PDVM_ERR_ARGUMENT, "%s: matrix name \"%s\" is not valid UTF-8", w->path,
                       name);
    return PDVM_OK;
}

pdvm_status container_write_vector(struct container_writer *w, const char *name, const float *x,
                                   int64_t n, pdvm_error *err) {
    PD_TRY(check_tensor_name(w, name, err));
    if (n < 1 || n > MDCSR_MAX_DIM)
        return pd_fail(err, PDVM_ERR_ARGUMENT, "%s: vector \"%s\": length %" PRId64, w->path, name,
                       n);
    return append(w, name, SAFETENSORS_F32, &n, 1, x, (size_t)n * 4, err);
}

pdvm_status container_write_file(struct container_writer *w, const char *name, const void *data,
                                 size_t size, pdvm_error *err) {
    char full[sizeof CONTAINER_FILES + CONTAINER_MAX_NAME];
    int64_t n = (int64_t)size;
    PD_TRY(check_name(w, name, err));
    if (strchr(name, '/'))
        return pd_fail(err, PDVM_ERR_ARGUMENT, "%s: side file \"%s\": give its name only", w->path,
                       name);
    snprintf(full, sizeof full, CONTAINER_FILES "%s", name);
    return append(w, full, SAFETENSORS_U8, &n, 1, data, size, err);
}

pdvm_status container_write_metadata(struct container_writer *w, const char *key, const char *value,
                                     pdvm_error *err) {
    static const char *const own[] = {CONTAINER_KEY_FORMAT, CONTAINER_KEY_VERSION,
                                      CONTAINER_KEY_PRODUCER, CONTAINER_KEY_MATRICES,
                                      CONTAINER_KEY_HASH};
    for (size_t i = 0; i < sizeof own / sizeof *own; i++) {
        if (strcmp(key, own[i]) == 0)
            return pd_fail(err, PDVM_ERR_ARGUMENT, "%s: metadata \"%s\" is the format's own",
                           w->path, key);
    }
    return safetensors_writer_metadata(w->file, key, value, err);
}

static pdvm_status write_metadata(struct container_writer *w, pdvm_error *err) {
    char hash[17];
    snprintf(hash, sizeof hash, "%016" PRIx64, w->hash);
    struct safetensors_writer *f = w->file;
    PD_TRY(safetensors_writer_metadata(f, CONTAINER_KEY_FORMAT, CONTAINER_FORMAT, err));
    PD_TRY(safetensors_writer_metadata(f, CONTAINER_KEY_VERSION, CONTAINER_VERSION, err));
    PD_TRY(safetensors_writer_metadata(f, CONTAINER_KEY_PRODUCER, "pdvm " PDVM_VERSION, err));
    PD_TRY(safetensors_writer_metadata(f, CONTAINER_KEY_HASH, hash, err));
    /* Six digits tell what the error is good for, and the file's bytes stay readable. */
    char *text = json_dumps(w->matrices, JSON_COMPACT | JSON_REAL_PRECISION(6));
    if (!text) return pd_fail_memory(err, 0, "a .pdvm header");
    pdvm_status status = safetensors_writer_metadata(f, CONTAINER_KEY_MATRICES, text, err);
    free(text);
    return status;
}

pdvm_status container_writer_commit(struct container_writer *w, pdvm_error *err) {
    pdvm_status status = write_metadata(w, err);
    if (status == PDVM_OK)
        status = safetensors_writer_commit(w->file, err);
    else
        safetensors_writer_abort(w->file);
    writer_free(w);
    return status;
}

void container_writer_abort(struct container_writer *w) {
    if (!w) return;
    safetensors_writer_abort(w->file);
    writer_free(w);
}

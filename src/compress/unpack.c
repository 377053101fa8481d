#include "compress/unpack.h"

#include "base/alloc.h"
#include "base/file.h"
#include "base/half.h"
#include "compress/convert.h"
#include "io/json.h"
#include "mdcsr/container.h"
#include "model/encoding.h"

#include <dirent.h>
#include <errno.h>
#include <math.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define WEIGHTS "model.safetensors"

struct unpacking {
    const struct unpack_options *options;
    const char *directory;
    struct model_source *source;
    struct pd_threads *threads;
    struct safetensors_writer *writer;
    struct unpack_result *result;
};

/* ---- the directory --------------------------------------------------------------------- */

/* Whether a directory holds anything but "." and "..". */
static pdvm_status is_empty(const char *path, bool *out, pdvm_error *err) {
    DIR *dir = opendir(path);
    if (!dir) return pd_fail_errno(err, path, "cannot open the directory");
    *out = true;
    for (struct dirent *e = readdir(dir); e && *out; e = readdir(dir))
        *out = strcmp(e->d_name, ".") == 0 || strcmp(e->d_name, "..") == 0;
    closedir(dir);
    return PDVM_OK;
}

static pdvm_status make_directory(const char *path, bool force, bool *created, pdvm_error *err) {
    bool empty = false;
    struct stat st;
    *created = mkdir(path, 0777) == 0;
    if (*created) return PDVM_OK;
    if (errno != EEXIST) return pd_fail_errno(err, path, "cannot create the directory");
    if (stat(path, &st) != 0 || !S_ISDIR(st.st_mode))
        return pd_fail(err, PDVM_ERR_IO, "%s: exists and is not a directory", path);
    if (force) return PDVM_OK;
    PD_TRY(is_empty(path, &empty, err));
    if (empty) return PDVM_OK;
    return pd_fail(err, PDVM_ERR_ARGUMENT,
                   "%s: the directory is not empty; give another one, or --force to replace the "
                   "model's files in it",
                   path);
}

static pdvm_status write_file(const struct unpacking *u, const char *name, const void *data,
                              size_t size, pdvm_error *err) {
    char *path;
    PD_TRY(pd_path_join(u->directory, name, &path, err));
    pdvm_status status = pd_write_file(path, data, size, err);
    free(path);
    return status;
}

/* ---- weights --------------------------------------------------------------------------- */

/* Turns floats to halves in place of a separate array, by pieces. */
struct narrowing {
    const float *w;
    uint16_t *out;
    enum safetensors_dtype dtype;
    atomic_llong n_changed;
    atomic_bool overflow;
};

static void narrow_range(void *arg, int64_t begin, int64_t end, int worker) {
    struct narrowing *n = arg;
    int64_t changed = 0;
    bool overflow = false;
    (void)worker;
    for (int64_t i = begin; i < end; i++) {
        bool bf16 = n->dtype == SAFETENSORS_BF16;
        n->out[i] = bf16 ? pd_float_to_bf16(n->w[i]) : pd_float_to_f16(n->w[i]);
        float back = bf16 ? pd_bf16_to_float(n->out[i]) : pd_f16_to_float(n->out[i]);
        changed += back != n->w[i];
        overflow |= isinf(back);
    }
    atomic_fetch_add(&n->n_changed, changed);
    if (overflow) atomic_store(&n->overflow, true);
}

static pdvm_status write_tensor(struct unpacking *u, const struct tensor_info *t, const float *w,
                                pdvm_error *err) {
    const int64_t dims[2] = {t->rows, t->cols};
    int n_dims = t->is_matrix ? 2 : 1;
    const int64_t *shape = t->is_matrix ? dims : dims + 1;
    size_t n = (size_t)t->rows * (size_t)t->cols;
    enum safetensors_dtype dtype = u->options->dtype;
    if (dtype == SAFETENSORS_F32)
        return safetensors_writer_tensor(u->writer, t->name, dtype, shape, n_dims, w, n * sizeof *w,
                                         err);
    struct narrowing narrow = {.w = w, .dtype = dtype};
    PD_TRY(pd_calloc(&narrow.out, n, sizeof *narrow.out, t->name, err));
    pd_threads_for(u->threads, (int64_t)n, (int64_t)1 << 18, narrow_range, &narrow);
    pdvm_status status;
    if (atomic_load(&narrow.overflow))
        status =
            pd_fail(err, PDVM_ERR_RANGE, "%s: %s: a weight is too large for %s; use --dtype f32",
                    u->source->path, t->name, safetensors_dtype_name(dtype));
    else
        status = safetensors_writer_tensor(u->writer, t->name, dtype, shape, n_dims, narrow.out,
                                           n * sizeof *narrow.out, err);
    u->result->n_changed += atomic_load(&narrow.n_changed);
    free(narrow.out);
    return status;
}

/* Reads a tensor; or, where Hugging Face has it in one matrix with others, all of them. */
static pdvm_status read_tensor(struct unpacking *u, const struct tensor_info *t,
                               const struct tensor_info *whole, float **out, pdvm_error *err) {
    if (whole->rows == t->rows) {
        PD_TRY(encoding_read_floats(u->source, t, u->threads, out, err));
        source_release(u->source, t);
        return PDVM_OK;
    }
    float *all;
    PD_TRY(
        pd_calloc(&all, (size_t)whole->rows * (size_t)whole->cols, sizeof *all, whole->name, err));
    struct tensor_info part = *t;
    for (int64_t row = 0; row < whole->rows; row += part.rows) {
        float *w;
        if (row > 0)
            tensors_describe(&u->source->config, (enum tensor_role)(part.role + 1), t->layer,
                             &part);
        pdvm_status status = encoding_read_floats(u->source, &part, u->threads, &w, err);
        if (status != PDVM_OK) {
            free(all);
            return status;
        }
        memcpy(all + row * whole->cols, w, (size_t)part.rows * (size_t)part.cols * sizeof *w);
        free(w);
        source_release(u->source, &part);
    }
    *out = all;
    return PDVM_OK;
}

static pdvm_status write_tensors(struct unpacking *u, pdvm_error *err) {
    size_t count = tensors_count(&u->source->config);
    double total = 0;
    for (size_t i = 0; i < count; i++) {
        struct tensor_info t;
        tensors_at(&u->source->config, i, &t);
        total += (double)t.rows * (double)t.cols;
    }
    /* What transformers looks for in the metadata. */
    PD_TRY(safetensors_writer_metadata(u->writer, "format", "pt", err));
    for (size_t i = 0; i < count; i++) {
        struct tensor_info t, whole;
        float *w;
        int64_t first_row = 0;
        tensors_at(&u->source->config, i, &t);
        whole = t;
        tensors_fused(&u->source->config, t.role, t.layer, &whole, &first_row);
        if (first_row > 0) continue; /* written with the first of its matrix */
        PD_TRY(pd_progress(&u->options->notify, "unpacking", (double)u->result->n_weights / total,
                           err));
        PD_TRY(read_tensor(u, &t, &whole, &w, err));
        pdvm_status status = write_tensor(u, &whole, w, err);
        free(w);
        PD_TRY(status);
        u->result->n_weights += whole.rows * whole.cols;
    }
    return pd_progress(&u->options->notify, "unpacking", 1, err);
}

static pdvm_status write_weights(struct unpacking *u, pdvm_error *err) {
    char *path;
    struct stat st;
    PD_TRY(pd_path_join(u->directory, WEIGHTS, &path, err));
    /* A tensor's entry in the header is its name and at most 110 bytes. */
    size_t reserve =
        256 + tensors_count(&u->source->config) * (sizeof((struct tensor_info){0}).name + 110);
    pdvm_status status = convert_check_output(u->source->path, path, err);
    if (status == PDVM_OK) status = safetensors_writer_open(path, reserve, &u->writer, err);
    if (status == PDVM_OK) {
        status = write_tensors(u, err);
        if (status == PDVM_OK)
            status = safetensors_writer_commit(u->writer, err);
        else
            safetensors_writer_abort(u->writer);
    }
    if (status == PDVM_OK && stat(path, &st) == 0) u->result->bytes = (uint64_t)st.st_size;
    free(path);
    return status;
}

/* ---- the other files ------------------------------------------------------------------- */

static const char *dtype_of_torch(enum safetensors_dtype dtype) {
    switch (dtype) {
    case SAFETENSORS_BF16: return "bfloat16";
    case SAFETENSORS_F16: return "float16";
    default: return "float32";
    }
}

/* The configuration with the dtype that was written, under the name that it already has there. */
static pdvm_status write_config(const struct unpacking *u, pdvm_error *err) {
    const char *data, *dtype = dtype_of_torch(u->options->dtype);
    size_t size;
    json_t *config;
    source_file(u->source, SOURCE_CONFIG, &data, &size);
    PD_TRY(pd_json_parse_object(SOURCE_CONFIG, data, size, &config, err));
    const char *key = json_object_get(config, "dtype") ? "dtype" : "torch_dtype";
    int failed = json_object_set_new(config, key, json_string(dtype));
    if (json_object_get(config, "torch_dtype"))
        failed |= json_object_set_new(config, "torch_dtype", json_string(dtype));
    char *text = failed ? NULL : json_dumps(config, JSON_INDENT(2) | JSON_REAL_PRECISION(15));
    json_decref(config);
    if (!text) return pd_fail_memory(err, size, SOURCE_CONFIG);
    /* 15 digits write 1e-5 as it was. json_dumps leaves out the newline at the end; its zero byte
     * makes room for one. */
    size_t n = strlen(text);
    text[n] = '\n';
    pdvm_status status = write_file(u, SOURCE_CONFIG, text, n + 1, err);
    free(text);
    return status;
}

static pdvm_status write_side_files(const struct unpacking *u, pdvm_error *err) {
    static const char *const names[] = {SOURCE_TOKENIZER, SOURCE_TOKENIZER_MODEL,
                                        SOURCE_TOKENIZER_CONFIG, SOURCE_GENERATION_CONFIG,
                                        SOURCE_CHAT_TEMPLATE};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        const char *data;
        size_t size;
        source_file(u->source, names[i], &data, &size);
        if (data) PD_TRY(write_file(u, names[i], data, size, err));
    }
    return write_config(u, err);
}

/* A flipped bit in a weight makes another weight: only the hash tells. */
static pdvm_status verify(const char *path, pdvm_error *err) {
    struct container *c;
    PD_TRY(container_open(path, &c, err));
    pdvm_status status = container_verify_hash(c, err);
    container_close(c);
    return status;
}

static pdvm_status unpack(struct unpacking *u, pdvm_error *err) {
    bool created = false;
    if (!source_is_mdcsr(u->source))
        return pd_fail(err, PDVM_ERR_ARGUMENT,
                       "%s: is a %s, which needs no unpacking; give a .pdvm file", u->source->path,
                       u->source->kind);
    PD_TRY(verify(u->source->path, err));
    PD_TRY(make_directory(u->directory, u->options->force, &created, err));
    pdvm_status status = pd_threads_create(u->options->n_threads, &u->threads, err);
    if (status == PDVM_OK) status = write_weights(u, err);
    if (status == PDVM_OK) status = write_side_files(u, err);
    pd_threads_free(u->threads);
    /* Fails, as it should, if something was written. */
    if (status != PDVM_OK && created) rmdir(u->directory);
    return status;
}

pdvm_status unpack_model(const char *source, const char *directory,
                         const struct unpack_options *options, struct unpack_result *out,
                         pdvm_error *err) {
    struct unpacking u = {.options = options, .directory = directory, .result = out};
    *out = (struct unpack_result){0};
    PD_TRY(source_open(source, &u.source, err));
    pdvm_status status = unpack(&u, err);
    source_close(u.source);
    return status;
}

#include "model/encoding.h"

#include "base/alloc.h"
#include "base/checked.h"
#include "mdcsr/layout.h"

#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

struct mdcsr_options encoding_default(enum tensor_role role, enum mdcsr_values values) {
    bool coded = values == MDCSR_LUT4 || values == MDCSR_LUT8;
    if (coded && tensor_is_vocabulary(role)) values = MDCSR_INT8;
    return (struct mdcsr_options){.values = values,
                                  .codebook = MDCSR_LEARNED,
                                  .index_auto = true,
                                  .group = values == MDCSR_LUT4 ? 64 : 0};
}

/* The first worker that fails leaves its error. */
struct reading {
    struct model_source *source;
    const struct tensor_info *tensor;
    float *out;
    atomic_int failed;
    pdvm_error error;
};

static void read_range(void *arg, int64_t begin, int64_t end, int worker) {
    struct reading *r = arg;
    (void)worker;
    pdvm_error error;
    if (atomic_load(&r->failed)) return;
    if (source_read_rows(r->source, r->tensor, begin, end - begin, r->out + begin * r->tensor->cols,
                         &error) != PDVM_OK &&
        atomic_exchange(&r->failed, 1) == 0)
        r->error = error;
}

/* Rows of a stored matrix are decoded by all threads; a source's read_rows would take turns. */
static pdvm_status decode_all(struct model_source *source, const struct tensor_info *tensor,
                              struct pd_threads *threads, float *out, pdvm_error *err) {
    struct mdcsr m = {0};
    PD_TRY(source_read_mdcsr(source, tensor, &m, err));
    mdcsr_decode(&m, threads, out);
    mdcsr_free(&m);
    return PDVM_OK;
}

pdvm_status encoding_read_floats(struct model_source *source, const struct tensor_info *tensor,
                                 struct pd_threads *threads, float **out, pdvm_error *err) {
    struct reading r = {.source = source, .tensor = tensor};
    size_t size;
    *out = NULL;
    if (!pd_mul_size((size_t)tensor->rows, (size_t)tensor->cols, &size) ||
        !pd_mul_size(size, sizeof(float), &size))
        return pd_fail_memory(err, SIZE_MAX, tensor->name);
    PD_TRY(pd_alloc_aligned(&r.out, size, tensor->name, err));
    if (tensor->is_matrix && source_is_mdcsr(source)) {
        pdvm_status status = decode_all(source, tensor, threads, r.out, err);
        if (status == PDVM_OK)
            *out = r.out;
        else
            free(r.out);
        return status;
    }
    pd_threads_for(threads, tensor->rows, ((int64_t)1 << 18) / tensor->cols + 1, read_range, &r);
    if (atomic_load(&r.failed)) {
        free(r.out);
        if (err) *err = r.error;
        return r.error.status;
    }
    *out = r.out;
    return PDVM_OK;
}

pdvm_status encoding_load(struct model_source *source, const struct tensor_info *tensor,
                          enum mdcsr_values values, struct pd_threads *threads, struct mdcsr *out,
                          pdvm_error *err) {
    if (source_is_mdcsr(source)) return source_read_mdcsr(source, tensor, out, err);
    float *w = NULL;
    memset(out, 0, sizeof *out);
    PD_TRY(encoding_read_floats(source, tensor, threads, &w, err));
    struct mdcsr_options options = encoding_default(tensor->role, values);
    pdvm_status status =
        mdcsr_encode(w, tensor->rows, tensor->cols, &options, threads, out, NULL, err);
    free(w);
    if (status != PDVM_OK) pd_prefix(err, status, "%s: %s", source->path, tensor->name);
    return status;
}

uint64_t encoding_bytes(struct model_source *source, enum mdcsr_values values) {
    uint64_t total = 0;
    for (size_t i = 0; i < tensors_count(&source->config); i++) {
        struct tensor_info t;
        const char *coding;
        uint64_t bytes;
        tensors_at(&source->config, i, &t);
        if (!t.is_matrix) continue;
        if (source_is_mdcsr(source))
            source_stored(source, &t, &coding, &bytes);
        else
            bytes = mdcsr_values_bytes(encoding_default(t.role, values).values, t.rows * t.cols);
        total += bytes;
        if (t.role == TENSOR_EMBED && source->config.tie_word_embeddings) total += bytes;
    }
    return total;
}

#include "compress/scan.h"

#include "base/alloc.h"
#include "compress/prune.h"
#include "model/encoding.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

/* What the default conversion makes of a tensor. */
static pdvm_status forecast(const float *w, struct pd_threads *threads, struct report_tensor *t,
                            pdvm_error *err) {
    const struct tensor_info *info = &t->tensor;
    struct mdcsr m;
    struct mdcsr_report report;
    t->pruning_squares = t->rounding_squares = 0;
    t->bytes = (uint64_t)info->cols * sizeof(float);
    snprintf(t->coding, sizeof t->coding, "f32");
    if (!info->is_matrix) return PDVM_OK;
    struct mdcsr_options options = encoding_default(info->role, MDCSR_INT8);
    PD_TRY(mdcsr_encode(w, info->rows, info->cols, &options, threads, &m, &report, err));
    report_set_encoded(t, &m, &report);
    t->rounding_squares = report.error_squares;
    mdcsr_free(&m);
    return PDVM_OK;
}

static pdvm_status scan_tensor(struct model_source *source, struct pd_threads *threads,
                               struct report_tensor *t, struct report_tensor *converted,
                               pdvm_error *err) {
    const struct tensor_info *info = &t->tensor;
    struct prune_count count;
    const char *coding;
    float *w;
    PD_TRY(encoding_read_floats(source, info, threads, &w, err));
    pdvm_status status = prune_count(w, info->rows, info->cols, threads, &count, err);
    if (status == PDVM_OK) status = forecast(w, threads, converted, err);
    free(w);
    if (status != PDVM_OK) return pd_prefix(err, status, "%s: %s", source->path, info->name);
    converted->n_zeros = converted->source_zeros = count.n_zeros;
    converted->sum_squares = count.sum_squares;
    source_stored(source, info, &coding, &t->bytes);
    source_release(source, info);
    snprintf(t->coding, sizeof t->coding, "%s", coding);
    t->n_zeros = count.n_zeros;
    t->sum_squares = count.sum_squares;
    return PDVM_OK;
}

pdvm_status scan_source(struct model_source *source, struct pd_threads *threads,
                        const struct pd_notify *notify, struct report *out,
                        struct report *converted, pdvm_error *err) {
    size_t n = tensors_count(&source->config);
    double total = tensors_elements(&source->config), done = 0;
    for (size_t i = 0; i < n; i++) {
        struct report_tensor t = {.source_zeros = -1,
                                  .pruning_squares = NAN,
                                  .rounding_squares = NAN,
                                  .output_error = NAN};
        tensors_at(&source->config, i, &t.tensor);
        struct report_tensor c = {.tensor = t.tensor, .output_error = NAN};
        PD_TRY(pd_progress(notify, "reading", done / total, err));
        PD_TRY(scan_tensor(source, threads, &t, &c, err));
        PD_TRY(report_add(out, &t, err));
        PD_TRY(report_add(converted, &c, err));
        done += (double)t.tensor.rows * (double)t.tensor.cols;
    }
    return pd_progress(notify, "reading", 1, err);
}

static pdvm_status check_vector(const struct container *c, size_t i, pdvm_error *err) {
    int64_t n;
    float *x;
    const char *name = container_vector_at(c, i, &n);
    PD_TRY(pd_calloc(&x, (size_t)n, sizeof *x, name, err));
    pdvm_status status = container_read_vector(c, name, x, n, err);
    free(x);
    return status;
}

pdvm_status scan_check(const struct container *c, const struct pd_notify *notify, pdvm_error *err) {
    double total = 1, done = 0;
    for (size_t i = 0; i < container_matrix_count(c); i++)
        total += (double)container_matrix_at(c, i)->stored_bytes;
    for (size_t i = 0; i < container_matrix_count(c); i++) {
        const struct container_matrix *info = container_matrix_at(c, i);
        struct mdcsr m = {0};
        PD_TRY(pd_progress(notify, "checking", 0.5 * done / total, err));
        PD_TRY(container_read_matrix(c, info->name, &m, err));
        mdcsr_free(&m);
        done += (double)info->stored_bytes;
    }
    for (size_t i = 0; i < container_vector_count(c); i++) PD_TRY(check_vector(c, i, err));
    PD_TRY(pd_progress(notify, "checking", 0.5, err));
    PD_TRY(container_verify_hash(c, err));
    return pd_progress(notify, "checking", 1, err);
}

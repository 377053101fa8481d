#include "compress/report.h"

#include "base/alloc.h"
#include "io/json.h"
#include "mdcsr/layout.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char *const line_names[REPORT_N_LINES] = {
    [REPORT_EMBED] = "embed", [REPORT_Q] = "q",         [REPORT_K] = "k",
    [REPORT_V] = "v",         [REPORT_O] = "o",         [REPORT_GATE] = "gate",
    [REPORT_UP] = "up",       [REPORT_DOWN] = "down",   [REPORT_HEAD] = "head",
    [REPORT_NORMS] = "norms", [REPORT_TOTAL] = "total",
};

const char *report_line_name(enum report_line line) {
    return (unsigned)line < REPORT_N_LINES ? line_names[line] : NULL;
}

enum report_line report_line_of(enum tensor_role role) {
    switch (role) {
    case TENSOR_EMBED: return REPORT_EMBED;
    case TENSOR_Q: return REPORT_Q;
    case TENSOR_K: return REPORT_K;
    case TENSOR_V: return REPORT_V;
    case TENSOR_O: return REPORT_O;
    case TENSOR_GATE: return REPORT_GATE;
    case TENSOR_UP: return REPORT_UP;
    case TENSOR_DOWN: return REPORT_DOWN;
    case TENSOR_HEAD: return REPORT_HEAD;
    default: return REPORT_NORMS;
    }
}

pdvm_status report_add(struct report *r, const struct report_tensor *t, pdvm_error *err) {
    PD_TRY(pd_grow(&r->tensors, &r->capacity, r->n + 1, sizeof *r->tensors, "a report", err));
    r->tensors[r->n++] = *t;
    return PDVM_OK;
}

void report_free(struct report *r) {
    free(r->tensors);
    *r = (struct report){0};
}

double report_bits(uint64_t bytes, int64_t n_weights) {
    return n_weights > 0 ? 8.0 * (double)bytes / (double)n_weights : 0;
}

void report_set_coding(struct report_tensor *t, enum mdcsr_index index, enum mdcsr_values values,
                       enum mdcsr_codebook codebook, uint32_t group) {
    char detail[32] = "";
    if (mdcsr_codebook_size(values))
        snprintf(detail, sizeof detail, " %s", mdcsr_codebook_name(codebook));
    size_t n = strlen(detail);
    if (group) snprintf(detail + n, sizeof detail - n, "/%u", (unsigned)group);
    snprintf(t->coding, sizeof t->coding, "%s %s%s", mdcsr_index_name(index),
             mdcsr_values_name(values), detail);
}

void report_set_encoded(struct report_tensor *t, const struct mdcsr *m,
                        const struct mdcsr_report *encoded) {
    t->n_zeros = encoded->n_zeros;
    t->bytes = encoded->stored_bytes;
    report_set_coding(t, m->index_coding, m->value_coding, m->codebook_kind, m->group);
}

/* ---- sums ------------------------------------------------------------------------------ */

/* Adds a coding to the list in `list`, unless it is there. */
static void list_coding(char *list, size_t size, const char *coding) {
    size_t n = strlen(coding), len = strlen(list);
    for (const char *p = list; *p;) {
        size_t item = strcspn(p, ",");
        if (item == n && strncmp(p, coding, n) == 0) return;
        p += item;
        p += strspn(p, ", ");
    }
    snprintf(list + len, size - len, "%s%s", len ? ", " : "", coding);
}

static double relative(double squares, double sum_squares) {
    if (squares == 0) return 0;
    return sum_squares > 0 ? sqrt(squares / sum_squares) : NAN;
}

void report_sum(const struct report *r, enum report_line line, struct report_sum *out) {
    double squares = 0, pruning = 0, rounding = 0, output = 0, output_weights = 0;
    *out = (struct report_sum){0};
    for (size_t i = 0; i < r->n; i++) {
        const struct report_tensor *t = &r->tensors[i];
        if (line != REPORT_TOTAL && line != report_line_of(t->tensor.role)) continue;
        out->n_tensors++;
        out->n_weights += t->tensor.rows * t->tensor.cols;
        out->n_zeros += t->n_zeros;
        if (t->source_zeros < 0 || out->source_zeros < 0)
            out->source_zeros = -1;
        else
            out->source_zeros += t->source_zeros;
        out->bytes += t->bytes;
        squares += t->sum_squares;
        pruning += t->pruning_squares;
        rounding += t->rounding_squares;
        if (t->tensor.is_matrix && isfinite(t->output_error)) {
            double n = (double)t->tensor.rows * (double)t->tensor.cols;
            output += n * t->output_error * t->output_error;
            output_weights += n;
        }
        if (line != REPORT_TOTAL) list_coding(out->coding, sizeof out->coding, t->coding);
    }
    out->pruning_error = relative(pruning, squares);
    out->rounding_error = relative(rounding, squares);
    out->error = relative(pruning + rounding, squares);
    out->output_error = output_weights > 0 ? sqrt(output / output_weights) : NAN;
}

/* ---- JSON ------------------------------------------------------------------------------ */

static json_t *count(int64_t n) {
    return n >= 0 ? json_integer((json_int_t)n) : json_null();
}

static json_t *sum_json(const struct report_sum *s) {
    return json_pack("{s:I, s:I, s:I, s:o, s:I, s:f, s:o, s:o, s:o, s:o, s:s}", "tensors",
                     (json_int_t)s->n_tensors, "weights", (json_int_t)s->n_weights, "zeros",
                     (json_int_t)s->n_zeros, "source_zeros", count(s->source_zeros), "bytes",
                     (json_int_t)s->bytes, "bits_per_weight", report_bits(s->bytes, s->n_weights),
                     "error", pd_json_real(s->error), "pruning_error",
                     pd_json_real(s->pruning_error), "rounding_error",
                     pd_json_real(s->rounding_error), "output_error", pd_json_real(s->output_error),
                     "coding", s->coding);
}

static json_t *tensor_json(const struct report_tensor *t) {
    double total = t->pruning_squares + t->rounding_squares;
    return json_pack("{s:s, s:s, s:I, s:[I, I], s:s, s:I, s:o, s:I, s:f, s:o, s:o, s:o, s:o}",
                     "name", t->tensor.name, "role", tensor_role_name(t->tensor.role), "layer",
                     (json_int_t)t->tensor.layer, "shape", (json_int_t)t->tensor.rows,
                     (json_int_t)t->tensor.cols, "coding", t->coding, "zeros",
                     (json_int_t)t->n_zeros, "source_zeros", count(t->source_zeros), "bytes",
                     (json_int_t)t->bytes, "bits_per_weight",
                     report_bits(t->bytes, t->tensor.rows * t->tensor.cols), "error",
                     pd_json_real(relative(total, t->sum_squares)), "pruning_error",
                     pd_json_real(relative(t->pruning_squares, t->sum_squares)), "rounding_error",
                     pd_json_real(relative(t->rounding_squares, t->sum_squares)), "output_error",
                     pd_json_real(t->output_error));
}

json_t *report_json(const struct report *r) {
    json_t *all = json_object(), *roles = json_object(), *tensors = json_array();
    int failed = 0;
    for (int i = 0; i < REPORT_N_LINES; i++) {
        struct report_sum s;
        report_sum(r, (enum report_line)i, &s);
        if (i == REPORT_TOTAL)
            failed |= json_object_set_new(all, "total", sum_json(&s));
        else if (s.n_tensors)
            failed |= json_object_set_new(roles, line_names[i], sum_json(&s));
    }
    for (size_t i = 0; i < r->n; i++)
        failed |= json_array_append_new(tensors, tensor_json(&r->tensors[i]));
    failed |= json_object_set_new(all, "roles", roles);
    failed |= json_object_set_new(all, "tensors", tensors);
    if (!failed) return all;
    json_decref(all);
    return NULL;
}

/* ---- from and to files ----------------------------------------------------------------- */

bool report_to_metadata(const struct report *r, json_t *object) {
    json_t *matrices = json_object();
    int failed = 0;
    for (size_t i = 0; i < r->n; i++) {
        const struct report_tensor *t = &r->tensors[i];
        if (!t->tensor.is_matrix) continue;
        json_t *entry = json_pack("{s:f, s:I, s:f, s:f}", "norm", sqrt(t->sum_squares),
                                  "source_zeros", (json_int_t)t->source_zeros, "pruning_error",
                                  relative(t->pruning_squares, t->sum_squares), "rounding_error",
                                  relative(t->rounding_squares, t->sum_squares));
        if (entry && isfinite(t->output_error))
            failed |= json_object_set_new(entry, "output_error", json_real(t->output_error));
        failed |= json_object_set_new(matrices, t->tensor.name, entry);
    }
    return json_object_set_new(object, "matrices", matrices) == 0 && !failed;
}

/* Reads what convert left of one matrix; unknown stays as it is. */
static pdvm_status read_metadata(const char *path, const json_t *metadata, struct report_tensor *t,
                                 pdvm_error *err) {
    json_t *matrices, *entry = NULL;
    double norm = NAN, pruning = NAN, rounding = NAN;
    PD_TRY(pd_json_object(path, metadata, "matrices", true, &matrices, err));
    PD_TRY(pd_json_object(path, matrices, t->tensor.name, false, &entry, err));
    if (!entry) return PDVM_OK;
    PD_TRY(pd_json_number(path, entry, "norm", true, &norm, err));
    PD_TRY(pd_json_int(path, entry, "source_zeros", true, 0, t->n_zeros, &t->source_zeros, err));
    PD_TRY(pd_json_number(path, entry, "pruning_error", true, &pruning, err));
    PD_TRY(pd_json_number(path, entry, "rounding_error", true, &rounding, err));
    PD_TRY(pd_json_number(path, entry, "output_error", false, &t->output_error, err));
    t->sum_squares = norm * norm;
    t->pruning_squares = pruning * pruning * t->sum_squares;
    t->rounding_squares = rounding * rounding * t->sum_squares;
    return PDVM_OK;
}

static pdvm_status matrix_from_container(const struct container *c, const char *path,
                                         const json_t *metadata, struct report_tensor *t,
                                         pdvm_error *err) {
    const struct container_matrix *m = container_matrix_find(c, t->tensor.name);
    if (!m)
        return pd_fail(err, PDVM_ERR_FORMAT, "%s: matrix \"%s\" is missing", path, t->tensor.name);
    t->n_zeros = m->n_zeros;
    t->bytes = m->stored_bytes;
    report_set_coding(t, m->index_coding, m->value_coding, m->codebook_kind, m->group);
    return metadata ? read_metadata(path, metadata, t, err) : PDVM_OK;
}

/* Vectors are stored as they are, and have no part in the errors. */
static pdvm_status vector_from_container(const struct container *c, struct report_tensor *t,
                                         pdvm_error *err) {
    float *x;
    PD_TRY(pd_calloc(&x, (size_t)t->tensor.cols, sizeof *x, t->tensor.name, err));
    pdvm_status status = container_read_vector(c, t->tensor.name, x, t->tensor.cols, err);
    for (int64_t i = 0; i < t->tensor.cols && status == PDVM_OK; i++) t->n_zeros += x[i] == 0;
    free(x);
    t->source_zeros = t->n_zeros;
    t->sum_squares = t->pruning_squares = t->rounding_squares = 0;
    t->bytes = (uint64_t)t->tensor.cols * sizeof(float);
    snprintf(t->coding, sizeof t->coding, "f32");
    return status;
}

pdvm_status report_from_container(const struct container *c, const struct model_config *config,
                                  const char *path, const json_t *metadata, struct report *out,
                                  pdvm_error *err) {
    const char *method = NULL;
    size_t n = tensors_count(config);
    if (metadata) {
        PD_TRY(pd_json_string(path, metadata, "method", true, &method, err));
        out->pruned = strcmp(method, "keep") != 0;
    }
    for (size_t i = 0; i < n; i++) {
        struct report_tensor t = {.source_zeros = -1,
                                  .sum_squares = NAN,
                                  .pruning_squares = NAN,
                                  .rounding_squares = NAN,
                                  .output_error = NAN};
        tensors_at(config, i, &t.tensor);
        if (t.tensor.is_matrix) {
            PD_TRY(matrix_from_container(c, path, metadata, &t, err));
        } else {
            PD_TRY(vector_from_container(c, &t, err));
        }
        PD_TRY(report_add(out, &t, err));
    }
    return PDVM_OK;
}

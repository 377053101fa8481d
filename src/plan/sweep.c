/* Sweeps: convert, measure, note the result, next. */
#include "plan/sweep.h"
#include "base/alloc.h"
#include "base/file.h"
#include "base/hash.h"
#include "base/time.h"
#include "plan/results_file.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct sweep {
    const struct sweep_options *options;
    struct sweep_result *result;
    struct baseline baseline;
    struct results_file *results;
    char *path; /* of the converted model */
    size_t n_cells, cell;
    char stage[64]; /* what is being done, for progress */
};

/* ---- progress -------------------------------------------------------------------------- */

/* A pdvm_progress_fn: the steps of one cell under that cell's name. */
static bool report(void *user, const char *stage, double fraction) {
    struct sweep *s = user;
    char text[128];
    if (!s->options->baseline.notify.progress) return true;
    snprintf(text, sizeof text, "%s, %s", s->stage, stage);
    return s->options->baseline.notify.progress(s->options->baseline.notify.progress_user, text,
                                                fraction);
}

static struct pd_notify cell_notify(struct sweep *s) {
    struct pd_notify notify = s->options->baseline.notify;
    notify.progress = report;
    notify.progress_user = s;
    return notify;
}

/* ---- one cell -------------------------------------------------------------------------- */

/* Bits and zeros of the matrices that pruning reaches. */
static void sum_layers(const struct report *r, struct sweep_row *row) {
    uint64_t bytes = 0;
    int64_t n = 0, zeros = 0;
    for (int line = REPORT_Q; line <= REPORT_DOWN; line++) {
        struct report_sum sum;
        report_sum(r, (enum report_line)line, &sum);
        bytes += sum.bytes;
        n += sum.n_weights;
        zeros += sum.n_zeros;
    }
    row->bits = report_bits(bytes, n);
    row->zeros = n > 0 ? (double)zeros / (double)n : 0;
}

static pdvm_status convert_cell(struct sweep *s, struct sweep_row *row, pdvm_error *err) {
    struct convert_options o = s->options->convert;
    struct convert_result result = {0};
    o.method = row->cell.method;
    if (!o.method->calibration) o.calibration.text = (struct calibration_options){0};
    o.plan.general.values = (int)row->cell.values;
    if (o.method->has_sparsity) o.plan.general.sparsity = row->cell.sparsity;
    o.notify = cell_notify(s);
    double start = pd_seconds();
    pdvm_status status = convert_model(s->baseline.path, s->path, &o, &result, err);
    row->convert_seconds = pd_seconds() - start;
    row->bytes = result.file_bytes;
    if (status == PDVM_OK) sum_layers(&result.report, row);
    convert_result_free(&result);
    return status;
}

/* Tokens per second; NAN if that was not asked for. */
static pdvm_status measure_speed(const struct sweep *s, pdvm_model *model, double *out,
                                 pdvm_error *err) {
    struct speed_result speed;
    *out = NAN;
    if (s->options->speed_tokens == 0) return PDVM_OK;
    PD_TRY(baseline_speed(&s->baseline, model, s->options->speed_tokens, &speed, err));
    *out = speed.token > 0 ? 1 / speed.token : NAN;
    return PDVM_OK;
}

static pdvm_status measure_model(struct sweep *s, pdvm_model *model, struct sweep_row *row,
                                 pdvm_error *err) {
    struct evaluation_result e;
    struct pd_notify notify = cell_notify(s);
    PD_TRY(baseline_measure(&s->baseline, model, &notify, &e, err));
    const struct divergence_result *d = &e.divergence;
    row->perplexity = e.perplexity.perplexity;
    row->perplexity_stderr = e.perplexity.perplexity_stderr;
    row->kl = d->kl.value;
    row->kl_stderr = d->kl.error;
    row->kl_median = d->quantiles[3];
    row->kl_99 = d->quantiles[6];
    row->same_top = d->same_top.value;
    row->perplexity_ratio = d->perplexity_ratio.value;
    row->perplexity_ratio_stderr = d->perplexity_ratio.error;
    return measure_speed(s, model, &row->tokens_per_second, err);
}

static pdvm_status run_cell(struct sweep *s, struct sweep_row *row, pdvm_error *err) {
    pdvm_model *model;
    PD_TRY(convert_cell(s, row, err));
    PD_TRY(baseline_open_model(&s->baseline, s->path, &model, err));
    pdvm_status status = measure_model(s, model, row, err);
    pdvm_model_close(model);
    return status;
}

/* ---- the file of results --------------------------------------------------------------- */

/* What a result depends on, as far as it is not the machine. */
static void cell_key(const struct sweep *s, const struct sweep_cell *cell, char key[17]) {
    const struct baseline *b = &s->baseline;
    const struct perplexity_options *w = &b->windows;
    char text[512];
    int n =
        snprintf(text, sizeof text,
                 "1 %016" PRIx64 " %016" PRIx64 " %zu %s %u %u %d %016" PRIx64 " %s %.9g %s %zu",
                 b->model->source->fingerprint, b->text_hash, b->tokens.n,
                 perplexity_protocol_name(w->protocol), w->n_ctx, w->stride, (int)w->bos,
                 s->options->convert_key, cell->method->name, cell->sparsity,
                 mdcsr_values_name(cell->values), s->options->speed_tokens);
    snprintf(key, 17, "%016" PRIx64, pd_hash(PD_HASH_INIT, text, (size_t)n));
}

/* The numbers of a row, by name. */
struct number {
    const char *name;
    double *value;
};
#define N_NUMBERS 14

static void numbers_of(struct sweep_row *row, struct number out[N_NUMBERS]) {
    const struct number all[N_NUMBERS] = {
        {"zeros", &row->zeros},
        {"bits_per_weight", &row->bits},
        {"perplexity", &row->perplexity},
        {"perplexity_stderr", &row->perplexity_stderr},
        {"kl", &row->kl},
        {"kl_stderr", &row->kl_stderr},
        {"kl_median", &row->kl_median},
        {"kl_99", &row->kl_99},
        {"same_top", &row->same_top},
        {"perplexity_ratio", &row->perplexity_ratio},
        {"perplexity_ratio_stderr", &row->perplexity_ratio_stderr},
        {"tokens_per_second", &row->tokens_per_second},
        {"convert_seconds", &row->convert_seconds},
        {"sparsity", &row->cell.sparsity},
    };
    memcpy(out, all, sizeof all);
}

json_t *sweep_row_json(const struct sweep_row *row) {
    struct sweep_row copy = *row;
    struct number numbers[N_NUMBERS];
    json_t *o =
        json_pack("{s:s, s:s, s:I}", "method", row->cell.method->name, "values",
                  mdcsr_values_name(row->cell.values), "file_bytes", (json_int_t)row->bytes);
    numbers_of(&copy, numbers);
    for (int i = 0; o && i < N_NUMBERS; i++) {
        double x = *numbers[i].value;
        json_object_set_new(o, numbers[i].name, pd_json_real(x));
    }
    return o;
}

/* Fills a row from a line of the file; false if it is not one. */
static bool row_from_json(const char *path, const json_t *o, struct sweep_row *row) {
    struct number numbers[N_NUMBERS];
    struct sweep_cell cell = row->cell;
    int64_t bytes = 0;
    numbers_of(row, numbers);
    for (int i = 0; i < N_NUMBERS; i++) {
        *numbers[i].value = NAN;
        if (pd_json_number(path, o, numbers[i].name, false, numbers[i].value, NULL) != PDVM_OK)
            return false;
    }
    if (pd_json_int(path, o, "file_bytes", true, 0, INT64_MAX, &bytes, NULL) != PDVM_OK)
        return false;
    row->cell = cell;
    row->bytes = (uint64_t)bytes;
    row->reused = true;
    return isfinite(row->kl) && isfinite(row->perplexity);
}

static pdvm_status save_row(struct sweep *s, const struct sweep_row *row, const char *key,
                            pdvm_error *err) {
    if (!s->results) return PDVM_OK;
    json_t *o = sweep_row_json(row);
    if (!o) return pd_fail_memory(err, 0, "a result");
    json_object_set_new(o, "machine", json_string(s->baseline.model->info.backend));
    return results_file_append(s->results, key, o, err);
}

/* ---- the sweep ------------------------------------------------------------------------- */

static pdvm_status do_cell(struct sweep *s, const struct sweep_cell *cell, pdvm_error *err) {
    struct sweep_result *r = s->result;
    struct sweep_row row = {.cell = *cell};
    char key[17];
    cell_key(s, cell, key);
    const json_t *known = s->results ? results_file_find(s->results, key) : NULL;
    s->cell++;
    snprintf(s->stage, sizeof s->stage, "%zu of %zu: %s %g %% %s", s->cell, s->n_cells,
             cell->method->name, 100 * cell->sparsity, mdcsr_values_name(cell->values));
    if (!known || !row_from_json(s->options->results, known, &row)) {
        row = (struct sweep_row){.cell = *cell};
        PD_TRY(run_cell(s, &row, err));
        PD_TRY(save_row(s, &row, key, err));
    }
    PD_TRY(pd_grow(&r->rows, &r->capacity, r->n + 1, sizeof *r->rows, "results", err));
    r->rows[r->n++] = row;
    return PDVM_OK;
}

/* Calls do_cell, or only counts the cells. */
static pdvm_status each_cell(struct sweep *s, bool count, pdvm_error *err) {
    const struct sweep_options *o = s->options;
    bool kept = false; /* the cells without method and zeros are there already */
    for (size_t m = 0; m < o->n_methods; m++) {
        for (size_t i = 0; i < o->n_sparsities; i++) {
            struct sweep_cell cell = {o->methods[m], o->sparsities[i], MDCSR_INT8};
            bool keep = cell.sparsity == 0 && cell.method->calibration != PRUNE_NEEDS_HESSIAN;
            if (!cell.method->has_sparsity || keep) {
                if (kept) continue;
                kept = true;
                cell.method = prune_method_find("keep");
                cell.sparsity = 0;
            }
            for (size_t v = 0; v < o->n_values; v++) {
                cell.values = o->values[v];
                if (count)
                    s->n_cells++;
                else
                    PD_TRY(do_cell(s, &cell, err));
            }
        }
    }
    return PDVM_OK;
}

/* Size and speed of the uncompressed model. */
static pdvm_status measure_reference(struct sweep *s, pdvm_error *err) {
    struct model_source *source = s->baseline.model->source;
    double weights = 0, bytes = 0;
    s->result->reference = s->baseline.perplexity;
    s->result->windows = s->baseline.windows;
    s->result->reference_bytes = source_bytes(source);
    for (size_t i = 0; i < tensors_count(&source->config); i++) {
        struct tensor_info t;
        const char *coding;
        uint64_t size;
        tensors_at(&source->config, i, &t);
        if (!t.is_matrix || tensor_is_vocabulary(t.role)) continue;
        source_stored(source, &t, &coding, &size);
        weights += (double)t.rows * (double)t.cols;
        bytes += (double)size;
    }
    s->result->reference_bits = weights > 0 ? 8 * bytes / weights : 0;
    return measure_speed(s, s->baseline.model, &s->result->reference_tokens_per_second, err);
}

static pdvm_status run(struct sweep *s, const char *source, const char *text_name, const char *text,
                       size_t size, pdvm_error *err) {
    PD_TRY(baseline_open(&s->baseline, source, text_name, text, size, &s->options->baseline, err));
    PD_TRY(measure_reference(s, err));
    PD_TRY(pd_path_join(s->baseline.dir, "model.pdvm", &s->path, err));
    if (s->options->results) PD_TRY(results_file_open(s->options->results, &s->results, err));
    PD_TRY(each_cell(s, true, err));
    return each_cell(s, false, err);
}

pdvm_status sweep_run(const char *source, const char *text_name, const char *text, size_t size,
                      const struct sweep_options *options, struct sweep_result *out,
                      pdvm_error *err) {
    struct sweep s = {.options = options, .result = out};
    pdvm_status status = run(&s, source, text_name, text, size, err);
    results_file_close(s.results);
    free(s.path);
    baseline_close(&s.baseline);
    return status;
}

void sweep_free(struct sweep_result *r) {
    free(r->rows);
    *r = (struct sweep_result){0};
}

#include "eval/pdvm_table.h"

#include "eval/numpy_layer.h"

#include <stdio.h>
#include <string.h>

#define CPU_TOKENS 4u /* one thread takes about a second for a token of 13 billion weights */

static pdvm_status measure(const struct bench_options *o, const char *backend, uint32_t n_gen,
                           const int *threads, size_t n_threads, struct bench_result *r,
                           pdvm_error *err) {
    const struct bench_test test = {.n_gen = n_gen};
    const struct bench_options options = {.models = o->models,
                                          .n_models = 1,
                                          .tests = &test,
                                          .n_tests = 1,
                                          .threads = threads,
                                          .n_threads = n_threads,
                                          .all_modes = strcmp(backend, "cuda") == 0,
                                          .sync = true,
                                          .per_launch = o->per_launch,
                                          .repetitions = o->repetitions,
                                          .kernels = o->kernels,
                                          .backend = backend,
                                          .n_batch = o->n_batch,
                                          .type_k = o->type_k,
                                          .type_v = o->type_v,
                                          .seed = o->seed,
                                          .bandwidth_buffer = o->bandwidth_buffer,
                                          .notify = o->notify};
    return bench_run(&options, r, err);
}

static void fill(struct pdvm_table_row *row, const struct bench_result *r,
                 const struct bench_row *from) {
    double rate = bench_stats_of(from->samples, from->n_samples).median;
    row->seconds = rate > 0 ? 1 / rate : 0;
    row->dispatches = from->dispatches;
    row->threads = r->bandwidth[from->threads].threads;
    snprintf(row->backend, sizeof row->backend, "%s", from->backend);
}

static pdvm_status on_cpu(const struct bench_options *o, struct pdvm_table *out, pdvm_error *err) {
    const int threads[] = {1, 0};
    struct bench_result r;
    pdvm_status status = measure(o, "cpu", CPU_TOKENS, threads, 2, &r, err);
    if (status == PDVM_OK) {
        out->model = r.models[0];
        out->machine = r.machine;
        fill(&out->rows[PDVM_TABLE_CPU_ONE], &r, &r.rows[0]);
        fill(&out->rows[PDVM_TABLE_CPU_ALL], &r, &r.rows[1]);
    }
    bench_free(&r);
    return status;
}

static pdvm_status on_gpu(const struct bench_options *o, uint32_t n_gen, struct pdvm_table *out,
                          pdvm_error *err) {
    const int threads[] = {0};
    struct bench_result r;
    pdvm_error why;
    pdvm_status status = measure(o, "cuda", n_gen, threads, 1, &r, &why);
    for (size_t i = 0; i < r.n_rows && status == PDVM_OK; i++) {
        const struct bench_row *row = &r.rows[i];
        if (row->mode == PDVM_MODE_TOKEN) fill(&out->rows[PDVM_TABLE_GPU_TOKEN], &r, row);
        if (row->mode == PDVM_MODE_LAYER) fill(&out->rows[PDVM_TABLE_GPU_LAYER], &r, row);
        if (row->mode == PDVM_MODE_UNFUSED)
            fill(&out->rows[row->sync ? PDVM_TABLE_GPU_WAITS : PDVM_TABLE_GPU_UNFUSED], &r, row);
    }
    bench_free(&r);
    if (status == PDVM_ERR_CANCELLED) {
        if (err) *err = why;
        return status;
    }
    for (int i = PDVM_TABLE_GPU_WAITS; i <= PDVM_TABLE_GPU_TOKEN && status != PDVM_OK; i++)
        snprintf(out->rows[i].why, sizeof out->rows[i].why, "%s", why.message);
    return PDVM_OK;
}

static void in_python(const struct bench_options *o, struct pdvm_table *out) {
    struct pdvm_table_row *row = &out->rows[PDVM_TABLE_PYTHON];
    const pdvm_model_info *info = &out->model.info;
    double seconds;
    pdvm_error why;
    if (numpy_layer_seconds(info, o->models[0].synthetic.sparsity, &seconds, &why) == PDVM_OK)
        row->seconds = seconds * info->n_layers;
    else
        snprintf(row->why, sizeof row->why, "%s", why.message);
    snprintf(row->backend, sizeof row->backend, "python3, NumPy");
}

pdvm_status pdvm_table_run(const struct bench_options *options, uint32_t n_gen,
                           struct pdvm_table *out, pdvm_error *err) {
    *out = (struct pdvm_table){0};
    PD_TRY(on_cpu(options, out, err));
    PD_TRY(on_gpu(options, n_gen, out, err));
    in_python(options, out);
    return PDVM_OK;
}

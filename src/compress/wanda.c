#include "base/alloc.h"
#include "compress/select.h"
#include "compress/solver.h"

#include <float.h>
#include <stdlib.h>

/* Weights per piece of a parallel loop. */
#define PIECE ((int64_t)1 << 15)

struct wanda {
    const struct solver_task *task;
    double *scores;    /* [workers, cols] of one row */
    int64_t *counters; /* [workers, SELECT_COUNTERS] */
    double *pruned;    /* [rows] sums of squares of what became zero */
    double *output;    /* [rows] sums of H_jj W_ij^2 */
    double *error;     /* [rows] of that, what became zero */
};

/*
 * |W_ij| sqrt(H_jj) orders as W_ij^2 H_jj does, which needs no roots. Zeros that are there count first,
 * also beside weights whose inputs are always 0: only their score is 0.
 */
static void prune_row(struct wanda *p, int64_t r, double *score, int64_t *counters) {
    const struct solver_task *t = p->task;
    int64_t n = t->cols;
    float *w = t->w + r * n;
    for (int64_t c = 0; c < n; c++) {
        score[c] = (double)w[c] * (double)w[c] * t->diagonal[c];
        p->output[r] += score[c];
        if (w[c] != 0 && score[c] < DBL_TRUE_MIN) score[c] = DBL_TRUE_MIN;
    }
    struct select_end end =
        select_row((struct select_values){.d = score}, n, prune_target(t->sparsity, n), counters);
    for (int64_t c = 0; c < n; c++) {
        if (!select_takes(&end, score[c])) continue;
        p->pruned[r] += (double)w[c] * (double)w[c];
        p->error[r] += (double)w[c] * (double)w[c] * t->diagonal[c];
        w[c] = 0;
    }
}

static void prune_rows(void *arg, int64_t begin, int64_t end, int worker) {
    struct wanda *p = arg;
    for (int64_t r = begin; r < end; r++)
        prune_row(p, r, p->scores + worker * p->task->cols,
                  p->counters + (int64_t)worker * SELECT_COUNTERS);
}

static pdvm_status allocate(struct wanda *p, pdvm_error *err) {
    size_t rows = (size_t)p->task->rows, cols = (size_t)p->task->cols;
    size_t n_workers = (size_t)pd_threads_count(p->task->threads);
    PD_TRY(pd_calloc(&p->pruned, 3 * rows, sizeof *p->pruned, "sums of rows", err));
    p->output = p->pruned + rows;
    p->error = p->output + rows;
    PD_TRY(pd_calloc(&p->scores, n_workers * cols, sizeof *p->scores, "scores", err));
    return pd_calloc(&p->counters, n_workers * SELECT_COUNTERS, sizeof *p->counters, "counters",
                     err);
}

pdvm_status solver_wanda(const struct solver_task *task, struct solver_result *out,
                         pdvm_error *err) {
    struct wanda p = {.task = task};
    if (!(task->sparsity >= 0 && task->sparsity <= 1))
        return pd_fail(err, PDVM_ERR_ARGUMENT, "sparsity %g: must be from 0 to 1", task->sparsity);
    if (task->scope != PRUNE_ROW) return pd_fail(err, PDVM_ERR_ARGUMENT, "wanda prunes row by row");
    pdvm_status status = allocate(&p, err);
    if (status == PDVM_OK) {
        pd_threads_for(task->threads, task->rows, PIECE / task->cols + 1, prune_rows, &p);
        for (int64_t r = 0; r < task->rows; r++) {
            out->pruning_squares += p.pruned[r];
            out->output_squares += p.output[r];
            out->output_error += p.error[r];
        }
        for (int64_t c = 0; c < task->cols; c++) out->n_dead += task->diagonal[c] == 0;
    }
    free(p.scores);
    free(p.counters);
    free(p.pruned);
    return status;
}

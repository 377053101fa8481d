#include "base/alloc.h"
#include "compress/solver.h"

#include <stdlib.h>
#include <string.h>

/* Weights per piece of a parallel loop. */
#define PIECE ((int64_t)1 << 15)

/* A worker's scores of one row: twice, because the search moves them about. */
struct scratch {
    double *score;
    double *moved;
};

struct wanda {
    const struct solver_task *task;
    struct scratch *scratch; /* one per worker */
    double *pruned;          /* [rows] sums of squares of what became zero */
    double *output;          /* [rows] sums of H_jj W_ij^2 */
    double *error;           /* [rows] of that, what became zero */
};

/* The k-th smallest of x[n], k from 0, by quickselect with the median of three; moves x about. */
static double kth_smallest(double *x, int64_t n, int64_t k) {
    int64_t low = 0, high = n - 1;
    while (low < high) {
        double a = x[low], b = x[low + (high - low) / 2], c = x[high];
        double pivot = a < b ? (b < c ? b : a < c ? c : a) : (a < c ? a : b < c ? c : b);
        int64_t i = low, j = high;
        while (i <= j) {
            while (x[i] < pivot) i++;
            while (x[j] > pivot) j--;
            if (i > j) break;
            double t = x[i];
            x[i++] = x[j];
            x[j--] = t;
        }
        if (k <= j)
            high = j;
        else if (k >= i)
            low = i;
        else
            break;
    }
    return x[k];
}

/* |W_ij| sqrt(H_jj) orders as W_ij^2 H_jj does, which needs no roots. */
static void prune_row(struct wanda *p, int64_t r, struct scratch *s) {
    const struct solver_task *t = p->task;
    int64_t n = t->cols, target = prune_target(t->sparsity, n), ties = target;
    float *w = t->w + r * n;
    for (int64_t c = 0; c < n; c++) {
        s->score[c] = (double)w[c] * (double)w[c] * t->diagonal[c];
        p->output[r] += s->score[c];
    }
    if (target == 0) return;
    /* Zeros that are there count first, also beside weights whose inputs are always 0. */
    for (int64_t c = 0; c < n; c++) {
        if (w[c] == 0) s->score[c] = -1;
    }
    memcpy(s->moved, s->score, (size_t)n * sizeof *s->moved);
    double threshold = kth_smallest(s->moved, n, target - 1);
    for (int64_t c = 0; c < n; c++) ties -= s->score[c] < threshold;
    for (int64_t c = 0; c < n; c++) {
        if (s->score[c] > threshold || (s->score[c] == threshold && ties-- <= 0)) continue;
        p->pruned[r] += (double)w[c] * (double)w[c];
        if (s->score[c] > 0) p->error[r] += s->score[c];
        w[c] = 0;
    }
}

static void prune_rows(void *arg, int64_t begin, int64_t end, int worker) {
    struct wanda *p = arg;
    for (int64_t r = begin; r < end; r++) prune_row(p, r, &p->scratch[worker]);
}

static pdvm_status allocate(struct wanda *p, int n_workers, pdvm_error *err) {
    size_t rows = (size_t)p->task->rows, cols = (size_t)p->task->cols;
    PD_TRY(pd_calloc(&p->pruned, 3 * rows, sizeof *p->pruned, "sums of rows", err));
    p->output = p->pruned + rows;
    p->error = p->output + rows;
    PD_TRY(pd_calloc(&p->scratch, (size_t)n_workers, sizeof *p->scratch, "scores", err));
    for (int i = 0; i < n_workers; i++) {
        PD_TRY(pd_calloc(&p->scratch[i].score, 2 * cols, sizeof(double), "scores", err));
        p->scratch[i].moved = p->scratch[i].score + cols;
    }
    return PDVM_OK;
}

pdvm_status solver_wanda(const struct solver_task *task, struct solver_result *out,
                         pdvm_error *err) {
    struct wanda p = {.task = task};
    int n_workers = pd_threads_count(task->threads);
    if (!(task->sparsity >= 0 && task->sparsity <= 1))
        return pd_fail(err, PDVM_ERR_ARGUMENT, "sparsity %g: must be from 0 to 1", task->sparsity);
    if (task->scope != PRUNE_ROW) return pd_fail(err, PDVM_ERR_ARGUMENT, "wanda prunes row by row");
    pdvm_status status = allocate(&p, n_workers, err);
    if (status == PDVM_OK) {
        pd_threads_for(task->threads, task->rows, PIECE / task->cols + 1, prune_rows, &p);
        for (int64_t r = 0; r < task->rows; r++) {
            out->pruning_squares += p.pruned[r];
            out->output_squares += p.output[r];
            out->output_error += p.error[r];
        }
        for (int64_t c = 0; c < task->cols; c++) out->n_dead += task->diagonal[c] == 0;
    }
    for (int i = 0; p.scratch && i < n_workers; i++) free(p.scratch[i].score);
    free(p.scratch);
    free(p.pruned);
    return status;
}

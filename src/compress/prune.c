#include "compress/prune.h"

#include "base/alloc.h"
#include "compress/select.h"
#include "compress/solver.h"

#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

/* Weights per piece of a parallel loop. */
#define PIECE ((int64_t)1 << 16)

int64_t prune_target(double sparsity, int64_t n) {
    return (int64_t)floor(sparsity * (double)n + 0.5);
}

const char *prune_scope_name(enum prune_scope scope) {
    return scope == PRUNE_MATRIX ? "matrix" : scope == PRUNE_BLOCK ? "block" : "row";
}

/* ---- counting -------------------------------------------------------------------------- */

struct row_count {
    int64_t n_zeros;
    double sum_squares;
    int64_t bad; /* column of the first value that is not finite; -1: none */
};

struct counting {
    const float *w;
    int64_t cols;
    struct row_count *rows;
};

static void count_rows(void *arg, int64_t begin, int64_t end, int worker) {
    const struct counting *c = arg;
    (void)worker;
    for (int64_t r = begin; r < end; r++) {
        const float *w = c->w + r * c->cols;
        struct row_count count = {.bad = -1};
        for (int64_t i = 0; i < c->cols; i++) {
            count.n_zeros += w[i] == 0;
            count.sum_squares += (double)w[i] * w[i];
        }
        for (int64_t i = 0; i < c->cols && !isfinite(count.sum_squares) && count.bad < 0; i++) {
            if (!isfinite(w[i])) count.bad = i;
        }
        c->rows[r] = count;
    }
}

pdvm_status prune_count(const float *w, int64_t rows, int64_t cols, struct pd_threads *threads,
                        struct prune_count *out, pdvm_error *err) {
    struct counting c = {.w = w, .cols = cols};
    *out = (struct prune_count){0};
    PD_TRY(pd_calloc(&c.rows, (size_t)rows, sizeof *c.rows, "counts of rows", err));
    pd_threads_for(threads, rows, PIECE / cols + 1, count_rows, &c);
    pdvm_status status = PDVM_OK;
    for (int64_t r = 0; r < rows && status == PDVM_OK; r++) {
        out->n_zeros += c.rows[r].n_zeros;
        out->sum_squares += c.rows[r].sum_squares;
        if (c.rows[r].bad >= 0)
            status = pd_fail(
                err, PDVM_ERR_FORMAT,
                "row %" PRId64 ", column %" PRId64 ": the weight is %s; the checkpoint is damaged",
                r, c.rows[r].bad, isnan(w[r * cols + c.rows[r].bad]) ? "NaN" : "infinite");
    }
    free(c.rows);
    return status;
}

/* ---- magnitude ------------------------------------------------------------------------- */

struct pruning {
    const struct prune_task *task;
    int64_t *counters;       /* [workers, SELECT_COUNTERS] */
    double *removed;         /* [rows] sums of squares, added up in the rows' order */
    struct select_end *ends; /* [rows] where the whole matrix is one scope */
};

static void prune_rows(void *arg, int64_t begin, int64_t end, int worker) {
    const struct pruning *p = arg;
    const struct prune_task *t = p->task;
    for (int64_t r = begin; r < end; r++) {
        float *w = t->w + r * t->cols;
        struct select_end last = p->ends[r];
        if (t->scope == PRUNE_ROW)
            last = select_row((struct select_values){.f = w}, t->cols,
                              prune_target(t->sparsity, t->cols),
                              p->counters + (int64_t)worker * SELECT_COUNTERS);
        for (int64_t c = 0; c < t->cols; c++) {
            if (!select_takes(&last, (double)w[c])) continue;
            p->removed[r] += (double)w[c] * w[c];
            w[c] = 0;
        }
    }
}

static pdvm_status prune_magnitude(const struct prune_task *task, struct prune_result *out,
                                   pdvm_error *err) {
    struct pruning p = {.task = task};
    size_t rows = (size_t)task->rows, n_workers = (size_t)pd_threads_count(task->threads);
    *out = (struct prune_result){0};
    if (!(task->sparsity >= 0 && task->sparsity <= 1))
        return pd_fail(err, PDVM_ERR_ARGUMENT, "sparsity %g: must be from 0 to 1", task->sparsity);
    if (task->scope != PRUNE_ROW && task->scope != PRUNE_MATRIX)
        return pd_fail(err, PDVM_ERR_ARGUMENT, "magnitude: unknown scope");
    pdvm_status status =
        pd_calloc(&p.counters, n_workers * SELECT_COUNTERS, sizeof *p.counters, "counters", err);
    if (status == PDVM_OK)
        status = pd_calloc(&p.removed, rows, sizeof *p.removed, "sums of rows", err);
    if (status == PDVM_OK) status = pd_calloc(&p.ends, rows, sizeof *p.ends, "ends of rows", err);
    if (status == PDVM_OK) {
        if (task->scope == PRUNE_MATRIX)
            select_matrix((struct select_values){.f = task->w}, task->rows, task->cols, task->cols,
                          prune_target(task->sparsity, task->rows * task->cols), task->threads,
                          p.counters, p.ends);
        pd_threads_for(task->threads, task->rows, PIECE / task->cols + 1, prune_rows, &p);
        for (int64_t r = 0; r < task->rows; r++) out->error_squares += p.removed[r];
    }
    free(p.counters);
    free(p.removed);
    free(p.ends);
    return status;
}

/* ---- the table ------------------------------------------------------------------------- */

static pdvm_status prune_keep(const struct prune_task *task, struct prune_result *out,
                              pdvm_error *err) {
    (void)task;
    (void)err;
    *out = (struct prune_result){0};
    return PDVM_OK;
}

#define SCOPE(s) (1u << PRUNE_##s)

static const struct prune_method methods[] = {
    {.name = "keep",
     .help = "keeps the zeros that the checkpoint has",
     .scope = PRUNE_ROW,
     .scopes = SCOPE(ROW) | SCOPE(MATRIX),
     .prune = prune_keep},
    {.name = "magnitude",
     .help = "zeroes the weights of least magnitude",
     .has_sparsity = true,
     .scope = PRUNE_ROW,
     .scopes = SCOPE(ROW) | SCOPE(MATRIX),
     .prune = prune_magnitude},
    {.name = "wanda",
     .help = "those of least magnitude times norm of the input",
     .has_sparsity = true,
     .calibration = PRUNE_NEEDS_NORMS,
     .scope = PRUNE_ROW,
     .scopes = SCOPE(ROW),
     .solve = solver_wanda},
    {.name = "sparsegpt",
     .help = "zeroes weights and corrects the others, on calibration text",
     .has_sparsity = true,
     .calibration = PRUNE_NEEDS_HESSIAN,
     .scope = PRUNE_BLOCK,
     .scopes = SCOPE(ROW) | SCOPE(BLOCK),
     .products = 2,
     .solve = solver_sparsegpt},
    {.name = "admm",
     .help = "searches longer than sparsegpt for what to zero (ALPS)",
     .has_sparsity = true,
     .calibration = PRUNE_NEEDS_HESSIAN,
     .scope = PRUNE_MATRIX,
     .scopes = SCOPE(ROW) | SCOPE(MATRIX),
     .products = 80,
     .solve = solver_admm},
};

const struct prune_method *prune_method_at(size_t i) {
    return i < sizeof methods / sizeof *methods ? &methods[i] : NULL;
}

const struct prune_method *prune_method_find(const char *name) {
    for (size_t i = 0; i < sizeof methods / sizeof *methods; i++) {
        if (strcmp(methods[i].name, name) == 0) return &methods[i];
    }
    return NULL;
}

/*
 * SparseGPT: E. Frantar, D. Alistarh, "SparseGPT: massive language models can be accurately pruned
 * in one-shot", 2023; the rounding in the same loop is GPTQ's: E. Frantar, S. Ashkboos, T. Hoefler,
 * D. Alistarh, "GPTQ: accurate post-training quantization for generative pre-trained transformers",
 * 2022. docs/compression.md has the formulas.
 */
#include "base/alloc.h"
#include "compress/factor.h"
#include "compress/grid.h"
#include "compress/select.h"
#include "compress/solver.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* Rows of a piece of work: fixed, so that the products do not depend on the threads. */
#define ROWS ((int64_t)128)

/*
 * Blocks whose errors are carried on together to the columns behind them: each block by itself
 * would move the whole rest of the matrix through memory.
 */
#define SPAN_BLOCKS 8

/* Weights per piece of a loop without products. */
#define PIECE ((int64_t)1 << 15)

struct sparsegpt {
    const struct blas *blas;
    const struct solver_task *task;
    const struct solver_factor *f;
    const struct grid *grid; /* NULL: no rounding */
    int64_t rows, cols;
    /* All columns are counted in the factor's order from here on. Double: thousands of corrections
     * are added up, and the choice of the mask should not hang on their rounding. */
    double *w;              /* [rows, cols] */
    double *score;          /* [rows, block] */
    double *error;          /* [rows, span] (weight - new weight) / U_jj */
    struct select_end *end; /* [rows] */
    int64_t *counters;      /* [workers, SELECT_COUNTERS] */
    double *loss;           /* [rows] sums of squared errors */
    double *correction;     /* [rows] of that, what damping and dead columns added */
    double *pruned;         /* [rows] sums of squares of what became zero */
    int64_t block, span;
    int64_t begin, size;           /* columns of the block in work */
    int64_t span_begin, span_size; /* and of the span that it is in */
    float *out;                    /* where store puts the result */
    int64_t row_target;            /* PRUNE_ROW: zeros per row of the block */
};

static int64_t min_i64(int64_t a, int64_t b) {
    return a < b ? a : b;
}

static bool source_zero(const struct sparsegpt *s, int64_t r, int64_t k) {
    return s->task->w[r * s->cols + s->f->order[k]] == 0;
}

static bool is_dead(const struct sparsegpt *s, int64_t k) {
    return s->task->diagonal[s->f->order[k]] == 0;
}

static void load_rows(void *arg, int64_t begin, int64_t end, int worker) {
    const struct sparsegpt *s = arg;
    (void)worker;
    for (int64_t r = begin; r < end; r++)
        for (int64_t k = 0; k < s->cols; k++)
            s->w[r * s->cols + k] = (double)s->task->w[r * s->cols + s->f->order[k]];
}

static void score_rows(void *arg, int64_t begin, int64_t end, int worker) {
    const struct sparsegpt *s = arg;
    for (int64_t r = begin; r < end; r++) {
        const double *w = s->w + r * s->cols + s->begin;
        double *score = s->score + r * s->block;
        for (int64_t j = 0; j < s->size; j++) {
            int64_t k = s->begin + j;
            double t = w[j] / s->f->u[k * s->cols + k];
            /* Zeros that are there count first, and weights whose inputs are always zero. */
            score[j] = source_zero(s, r, k) || is_dead(s, k) ? 0 : t * t;
        }
        if (s->task->scope == PRUNE_ROW)
            s->end[r] = select_row((struct select_values){.d = score}, s->size, s->row_target,
                                   s->counters + (int64_t)worker * SELECT_COUNTERS);
    }
}

/*
 * The columns of the block one by one: each one's error is made up for by those to the right of it
 * in the block; what lies behind the block follows by one product.
 */
static void solve_row(const struct sparsegpt *s, int64_t r) {
    const double *score = s->score + r * s->block;
    double *w = s->w + r * s->cols + s->begin,
           *error = s->error + r * s->span + s->begin - s->span_begin;
    struct select_end end = s->end[r];
    for (int64_t j = 0; j < s->size; j++) {
        int64_t k = s->begin + j;
        const double *u = s->f->u + k * s->cols + s->begin;
        bool taken = select_takes(&end, score[j]);
        double x = w[j];
        if (taken || source_zero(s, r, k) || is_dead(s, k)) {
            w[j] = 0;
        } else if (s->grid) {
            const struct grid *g = s->grid;
            int64_t group = g->group ? s->f->order[k] / g->group : 0;
            w[j] = (double)grid_round(&g->book, (float)x, g->scales[r * g->n_groups + group]);
        }
        double e = (x - w[j]) / u[j];
        error[j] = e;
        s->loss[r] += e * e;
        if (e == 0) continue;
        for (int64_t i = j + 1; i < s->size; i++) w[i] -= e * u[i];
    }
}

/* Makes up in the columns [begin, end) for the errors of `size` columns from `from` on. */
static void carry_on(const struct sparsegpt *s, int64_t first, int64_t rows, int64_t from,
                     int64_t size, int64_t begin, int64_t end) {
    if (begin == end) return;
    s->blas->dgemm(BLAS_ROW_MAJOR, BLAS_NO_TRANS, BLAS_NO_TRANS, (int)rows, (int)(end - begin),
                   (int)size, -1, s->error + first * s->span + from - s->span_begin, (int)s->span,
                   s->f->u + from * s->cols + begin, (int)s->cols, 1,
                   s->w + first * s->cols + begin, (int)s->cols);
}

static void solve_pieces(void *arg, int64_t begin, int64_t end, int worker) {
    const struct sparsegpt *s = arg;
    int64_t next = s->begin + s->size, span_end = s->span_begin + s->span_size;
    (void)worker;
    for (int64_t piece = begin; piece < end; piece++) {
        int64_t first = piece * ROWS, rows = min_i64(s->rows - first, ROWS);
        for (int64_t r = first; r < first + rows; r++) solve_row(s, r);
        carry_on(s, first, rows, s->begin, s->size, next, span_end);
        if (next == span_end)
            carry_on(s, first, rows, s->span_begin, s->span_size, span_end, s->cols);
    }
}

/* Zeros among the first n columns: rounding each block by itself would not add up to the target. */
static int64_t target_until(const struct sparsegpt *s, int64_t n) {
    int64_t rows = s->task->scope == PRUNE_ROW ? 1 : s->rows;
    return prune_target(s->task->sparsity, rows * n);
}

static pdvm_status solve_blocks(struct sparsegpt *s, double progress_begin, double progress_end,
                                pdvm_error *err) {
    struct pd_threads *threads = s->task->threads;
    int64_t grain = PIECE / s->cols + 1;
    pd_threads_for(threads, s->rows, grain, load_rows, s);
    memset(s->loss, 0, (size_t)s->rows * sizeof *s->loss);
    for (s->begin = 0; s->begin < s->cols; s->begin += s->size) {
        s->size = min_i64(s->cols - s->begin, s->block);
        s->span_begin = s->begin / s->span * s->span;
        s->span_size = min_i64(s->cols - s->span_begin, s->span);
        int64_t target = target_until(s, s->begin + s->size) - target_until(s, s->begin);
        s->row_target = target;
        pd_threads_for(threads, s->rows, PIECE / s->size + 1, score_rows, s);
        if (s->task->scope != PRUNE_ROW)
            select_matrix((struct select_values){.d = s->score}, s->rows, s->size, s->block, target,
                          threads, s->counters, s->end);
        pd_threads_for(threads, (s->rows + ROWS - 1) / ROWS, 1, solve_pieces, s);
        double done = (double)(s->begin + s->size) / (double)s->cols;
        PD_TRY(pd_progress(s->task->notify, "solving",
                           progress_begin + done * (progress_end - progress_begin), err));
    }
    return PDVM_OK;
}

/* Puts the columns back in order: into out[rows, cols], or with NULL over the task's weights. */
static void store_rows(void *arg, int64_t begin, int64_t end, int worker) {
    const struct sparsegpt *s = arg;
    (void)worker;
    for (int64_t r = begin; r < end; r++) {
        float *to = (s->out ? s->out : s->task->w) + r * s->cols;
        s->correction[r] = s->pruned[r] = 0;
        for (int64_t k = 0; k < s->cols; k++) {
            double before = (double)s->task->w[r * s->cols + s->f->order[k]];
            double after = s->w[r * s->cols + k], d = before - after;
            s->correction[r] += d * d * (s->f->damping + (is_dead(s, k) ? s->f->mean : 0));
            if (after == 0) s->pruned[r] += before * before;
            to[s->f->order[k]] = (float)after;
        }
    }
}

static void store(struct sparsegpt *s, float *out) {
    s->out = out;
    pd_threads_for(s->task->threads, s->rows, PIECE / s->cols + 1, store_rows, s);
}

static pdvm_status allocate(struct sparsegpt *s, pdvm_error *err) {
    size_t rows = (size_t)s->rows, size = rows * (size_t)s->cols, block = rows * (size_t)s->block;
    size_t span = rows * (size_t)s->span;
    size_t workers = (size_t)pd_threads_count(s->task->threads);
    PD_TRY(pd_calloc(&s->w, size, sizeof *s->w, "a matrix in work", err));
    PD_TRY(pd_calloc(&s->score, block, sizeof *s->score, "a block in work", err));
    PD_TRY(pd_calloc(&s->error, span, sizeof *s->error, "a block in work", err));
    PD_TRY(pd_calloc(&s->end, rows, sizeof *s->end, "a block in work", err));
    PD_TRY(
        pd_calloc(&s->counters, workers * SELECT_COUNTERS, sizeof *s->counters, "counters", err));
    PD_TRY(pd_calloc(&s->loss, 3 * rows, sizeof *s->loss, "sums of rows", err));
    s->correction = s->loss + rows;
    s->pruned = s->correction + rows;
    return PDVM_OK;
}

/*
 * The grid has to be there before the loop, but fit the weights that the loop leaves. So the loop
 * runs once without rounding, and the grid is fitted to what that leaves.
 */
static pdvm_status fit_grid(struct sparsegpt *s, struct grid *grid, pdvm_error *err) {
    const struct solver_task *task = s->task;
    const float *w = task->w;
    float *weight = NULL, *sparse = NULL;
    pdvm_status status = grid_weights(task->diagonal, s->cols, &weight, err);
    if (task->sparsity > 0 && status == PDVM_OK) {
        size_t size = (size_t)s->rows * (size_t)s->cols;
        status = pd_calloc(&sparse, size, sizeof *sparse, "a matrix in work", err);
        if (status == PDVM_OK) status = solve_blocks(s, 0, 0.4, err);
        if (status == PDVM_OK) store(s, sparse);
        w = sparse;
    }
    if (status == PDVM_OK)
        status = grid_fit(w, s->rows, s->cols, weight, task->coding, task->threads, grid, err);
    if (status == PDVM_OK) s->grid = grid;
    free(weight);
    free(sparse);
    return status;
}

static pdvm_status check_finite(const struct sparsegpt *s, pdvm_error *err) {
    for (int64_t r = 0; r < s->rows; r++) {
        double check = 0;
        for (int64_t k = 0; k < s->cols; k++) check += 0 * (float)s->w[r * s->cols + k];
        if (check != 0)
            return pd_fail(err, PDVM_ERR_FORMAT,
                           "row %lld: the corrected weights are not finite; try more damping",
                           (long long)r);
    }
    return PDVM_OK;
}

static pdvm_status solve(struct sparsegpt *s, struct solver_result *out, pdvm_error *err) {
    const struct solver_task *task = s->task;
    struct grid grid = {0};
    bool rounds = grid_wanted(task->coding);
    PD_TRY(allocate(s, err));
    pdvm_status status = rounds ? fit_grid(s, &grid, err) : PDVM_OK;
    if (status == PDVM_OK) status = solve_blocks(s, rounds ? 0.5 : 0, 1, err);
    if (status == PDVM_OK) status = check_finite(s, err);
    if (status == PDVM_OK) {
        store(s, NULL);
        for (int64_t r = 0; r < s->rows; r++) {
            out->output_error += s->loss[r] - s->correction[r];
            out->pruning_squares += s->pruned[r];
        }
        out->output_error = fmax(out->output_error, 0);
        if (rounds) grid_give(&grid, &out->grid);
    }
    grid_free(&grid);
    return status;
}

static pdvm_status check_task(const struct solver_task *task, pdvm_error *err) {
    if (!(task->sparsity >= 0 && task->sparsity <= 1))
        return pd_fail(err, PDVM_ERR_ARGUMENT, "sparsity %g: must be from 0 to 1", task->sparsity);
    if (!task->hessian || task->hessian->n != task->cols)
        return pd_fail(err, PDVM_ERR_ARGUMENT, "sparsegpt needs the Hessian of the inputs");
    if (task->scope != PRUNE_ROW && task->scope != PRUNE_BLOCK)
        return pd_fail(err, PDVM_ERR_ARGUMENT, "sparsegpt prunes by rows or blocks");
    if (task->options->block < 1)
        return pd_fail(err, PDVM_ERR_ARGUMENT, "block %lld: must be at least 1",
                       (long long)task->options->block);
    return PDVM_OK;
}

pdvm_status solver_sparsegpt(const struct solver_task *task, struct solver_result *out,
                             pdvm_error *err) {
    struct sparsegpt s = {.task = task, .rows = task->rows, .cols = task->cols};
    PD_TRY(check_task(task, err));
    PD_TRY(blas_open(&s.blas, err));
    PD_TRY(factor_hessian(task->hessian, task->options, task->threads, &s.f, err));
    s.block = min_i64(task->options->block, s.cols);
    s.span = SPAN_BLOCKS * s.block;
    out->damping = s.f->damping;
    out->damping_raised = s.f->damping_raised;
    out->n_dead = s.f->n_dead;
    out->output_squares = NAN;
    if (task->sparsity == 0 && !grid_wanted(task->coding)) return PDVM_OK;
    pdvm_status status = solve(&s, out, err);
    free(s.w);
    free(s.score);
    free(s.error);
    free(s.end);
    free(s.counters);
    free(s.loss);
    return status;
}

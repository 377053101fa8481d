/*
 * ALPS: X. Meng, K. Behdin, H. Wang, R. Mazumder, "ALPS: improved optimization for highly sparse
 * one-shot pruning for large language models", 2024. ADMM finds the support, conjugate gradients
 * find the weights on it. docs/compression.md has the formulas.
 *
 * Both work on scaled weights B = W S and the Hessian A = S^-1 (H + damping I) S^-1 with
 * S^2 = diag(H) + damping: the diagonal preconditioning, which makes A's diagonal 1.
 *
 * The products of the iterations are float32's: the support is fed by all of them, and conjugate
 * gradients start from a residual in double. What they add up is double.
 */
#include "base/alloc.h"
#include "compress/factor.h"
#include "compress/grid.h"
#include "compress/matmul.h"
#include "compress/select.h"
#include "compress/solver.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* Rows of a piece of work: fixed, so that the products do not depend on the threads. */
#define ROWS ((int64_t)128)

/* Weights per piece of a loop without products. */
#define PIECE ((int64_t)1 << 15)

/* The penalty at first, and how often it is looked at; the paper's numbers. */
#define FIRST_RHO 0.1
#define RHO_STEPS 3

/* A row's residual, as a share of its right-hand side, that ends its conjugate gradients. */
#define CG_TOLERANCE 1e-8

struct admm {
    const struct blas *blas;
    const struct solver_task *task;
    const float *target; /* [rows, n] the weights whose outputs are to be matched */
    int64_t rows, n;
    double damping, mean;
    int64_t n_dead;
    double *scale; /* [n] diag(S) */
    double *a;     /* [n, n] */
    double *l;     /* [n, n] A + rho I = L L^T, and the inverse of L */
    double *m;     /* [n, n] the inverse of A + rho I */
    struct matmul matmul;
    float *factor; /* [n, n] what rows are multiplied with: the inverse, then A */
    struct matmul_ready factor_ready;
    double *panel; /* scratch of factor_invert */
    double *y;     /* [rows, n] target times S times A: the right-hand side */
    /*
     * ADMM's B + V / rho. The projection D of it is itself on the support, and the new dual
     * V = rho (B + V / rho - D) itself times rho elsewhere: it holds all three.
     */
    double *t;
    uint8_t *keep;          /* [rows, n] the support */
    double rho;             /* of this step */
    double dual;            /* V = dual * t outside the support */
    int64_t *changed;       /* [rows] positions where the support is new since the last look */
    uint8_t *kept;          /* [rows, n] the support at the last look */
    struct select_end *end; /* [rows] */
    int64_t *counters;      /* [workers, SELECT_COUNTERS] */
    double *work;           /* [workers, 3, ROWS, n] */
};

static int64_t pieces_of(const struct admm *s) {
    return (s->rows + ROWS - 1) / ROWS;
}

static int64_t piece_rows(const struct admm *s, int64_t piece) {
    return s->rows - piece * ROWS < ROWS ? s->rows - piece * ROWS : ROWS;
}

static bool is_dead(const struct admm *s, int64_t c) {
    return s->task->hessian->h[c * (s->n + 1)] == 0;
}

/* ---- preparation ----------------------------------------------------------------------- */

static void scale_rows(void *arg, int64_t begin, int64_t end, int worker) {
    const struct admm *s = arg;
    (void)worker;
    for (int64_t i = begin; i < end; i++) {
        const double *h = s->task->hessian->h + i * s->n;
        double *a = s->a + i * s->n;
        for (int64_t j = 0; j < s->n; j++) a[j] = h[j] / (s->scale[i] * s->scale[j]);
        a[i] = 1;
    }
}

/* y = target S A, where weights whose inputs are always zero count as zero. */
static void right_side(void *arg, int64_t begin, int64_t end, int worker) {
    const struct admm *s = arg;
    int64_t n = s->n;
    double *b = s->work + worker * 3 * ROWS * n;
    for (int64_t piece = begin; piece < end; piece++) {
        int64_t first = piece * ROWS, rows = piece_rows(s, piece);
        for (int64_t i = 0; i < rows * n; i++)
            b[i] = is_dead(s, i % n) ? 0 : (double)s->target[first * n + i] * s->scale[i % n];
        s->blas->dgemm(BLAS_ROW_MAJOR, BLAS_NO_TRANS, BLAS_NO_TRANS, (int)rows, (int)n, (int)n, 1,
                       b, (int)n, s->a, (int)n, 0, s->y + first * n, (int)n);
    }
}

static pdvm_status prepare(struct admm *s, pdvm_error *err) {
    size_t n = (size_t)s->n, rows = (size_t)s->rows;
    size_t workers = (size_t)pd_threads_count(s->task->threads);
    double share = s->task->options->damping;
    if (!(share >= 0 && share <= FACTOR_MOST_DAMPING))
        return pd_fail(err, PDVM_ERR_ARGUMENT, "damping %g: must be from 0 to %g", share,
                       FACTOR_MOST_DAMPING);
    PD_TRY(blas_open(&s->blas, err));
    PD_TRY(factor_check(s->task->hessian, &s->mean, &s->n_dead, err));
    s->damping = share * s->mean;
    PD_TRY(pd_calloc(&s->scale, n, sizeof *s->scale, "scales of columns", err));
    PD_TRY(pd_calloc(&s->a, n * n, sizeof *s->a, "a scaled Hessian", err));
    PD_TRY(matmul_create(s->blas, (int)workers, s->task->device, &s->matmul, err));
    PD_TRY(pd_alloc_aligned(&s->factor, n * n * sizeof *s->factor, "a scaled Hessian", err));
    PD_TRY(pd_calloc(&s->y, rows * n, sizeof *s->y, "a matrix in work", err));
    PD_TRY(pd_calloc(&s->keep, rows * n, 1, "a support", err));
    PD_TRY(pd_calloc(&s->work, workers * 3 * ROWS * n, sizeof *s->work, "rows in work", err));
    for (int64_t c = 0; c < s->n; c++) {
        double d = s->task->hessian->h[c * (s->n + 1)];
        s->scale[c] = sqrt((d == 0 ? s->mean : d) + s->damping);
    }
    pd_threads_for(s->task->threads, s->n, PIECE / s->n + 1, scale_rows, s);
    pd_threads_for(s->task->threads, pieces_of(s), 1, right_side, s);
    return PDVM_OK;
}

static void release(struct admm *s) {
    free(s->scale);
    free(s->a);
    free(s->l);
    free(s->m);
    free(s->panel);
    matmul_release(&s->matmul, &s->factor_ready);
    matmul_free(&s->matmul);
    free(s->factor);
    free(s->y);
    free(s->t);
    free(s->keep);
    free(s->kept);
    free(s->changed);
    free(s->end);
    free(s->counters);
    free(s->work);
}

/* ---- products -------------------------------------------------------------------------- */

struct copying {
    const double *from;
    float *to;
    int64_t n;
};

static void to_float(void *arg, int64_t begin, int64_t end, int worker) {
    const struct copying *c = arg;
    (void)worker;
    for (int64_t i = begin * c->n; i < end * c->n; i++) c->to[i] = (float)c->from[i];
}

static struct matmul_task product_of(const struct admm *s, const float *rows, int64_t n_rows,
                                     float *out) {
    /* The factor is symmetric, so its rows are its columns. */
    return (struct matmul_task){.m = n_rows,
                                .n = s->n,
                                .k = s->n,
                                .a = rows,
                                .a_stride = s->n,
                                .b = s->factor,
                                .b_stride = s->n,
                                .c = out,
                                .c_stride = s->n,
                                .exact = true,
                                .ready = &s->factor_ready};
}

/* Makes a symmetric matrix the factor of the products to come. */
static pdvm_status set_factor(struct admm *s, const double *matrix, pdvm_error *err) {
    struct copying c = {matrix, s->factor, s->n};
    pd_threads_for(s->task->threads, s->n, PIECE / s->n + 1, to_float, &c);
    matmul_release(&s->matmul, &s->factor_ready);
    struct matmul_task task = product_of(s, NULL, ROWS, NULL);
    return matmul_prepare(&s->matmul, &task, s->task->threads, &s->factor_ready, err);
}

/* ---- the support ----------------------------------------------------------------------- */

static void start_rows(void *arg, int64_t begin, int64_t end, int worker) {
    const struct admm *s = arg;
    (void)worker;
    for (int64_t i = begin * s->n; i < end * s->n; i++)
        s->t[i] = is_dead(s, i % s->n) ? 0 : (double)s->target[i] * s->scale[i % s->n];
}

static void copy_rows(void *arg, int64_t begin, int64_t end, int worker) {
    const struct admm *s = arg;
    (void)worker;
    for (int64_t i = begin; i < end; i++) {
        memcpy(s->l + i * s->n, s->a + i * s->n, (size_t)(i + 1) * sizeof *s->l);
        s->l[i * s->n + i] += s->rho;
    }
}

/* B = (y - V + rho D) (A + rho I)^-1, then t = B + V / rho. */
static void step_pieces(void *arg, int64_t begin, int64_t end, int worker) {
    const struct admm *s = arg;
    int64_t n = s->n;
    float *right = (float *)(void *)(s->work + worker * 3 * ROWS * n), *b = right + ROWS * n;
    for (int64_t piece = begin; piece < end; piece++) {
        int64_t first = piece * ROWS * n, rows = piece_rows(s, piece);
        double *t = s->t + first;
        const uint8_t *keep = s->keep + first;
        for (int64_t i = 0; i < rows * n; i++)
            right[i] = (float)(s->y[first + i] + (keep[i] ? s->rho : -s->dual) * t[i]);
        struct matmul_task product = product_of(s, right, rows, b);
        matmul_run(&s->matmul, &product, worker);
        for (int64_t i = 0; i < rows * n; i++)
            t[i] = (double)b[i] + (keep[i] ? 0 : s->dual / s->rho * t[i]);
    }
}

/* Zeros to reach among n weights, of which `zeros` are there. */
static int64_t target_of(const struct admm *s, int64_t n, int64_t zeros) {
    int64_t target = prune_target(s->task->sparsity, n);
    return target > zeros ? target : zeros;
}

static int64_t count_zeros(const float *w, int64_t n) {
    int64_t zeros = 0;
    for (int64_t i = 0; i < n; i++) zeros += w[i] == 0;
    return zeros;
}

static void project_rows(void *arg, int64_t begin, int64_t end, int worker) {
    const struct admm *s = arg;
    for (int64_t r = begin; r < end; r++) {
        const double *t = s->t + r * s->n;
        uint8_t *keep = s->keep + r * s->n;
        struct select_end last = s->end[r];
        if (s->task->scope == PRUNE_ROW)
            last = select_row((struct select_values){.d = t}, s->n,
                              target_of(s, s->n, count_zeros(s->target + r * s->n, s->n)),
                              s->counters + (int64_t)worker * SELECT_COUNTERS);
        s->changed[r] = 0;
        for (int64_t c = 0; c < s->n; c++) {
            keep[c] = !select_takes(&last, t[c]);
            s->changed[r] += keep[c] != s->kept[r * s->n + c];
        }
    }
}

/* The largest of t become the support; returns how many places are new since the last look. */
static int64_t project(struct admm *s, int64_t target) {
    if (s->task->scope != PRUNE_ROW)
        select_matrix((struct select_values){.d = s->t}, s->rows, s->n, s->n, target,
                      s->task->threads, s->counters, s->end);
    pd_threads_for(s->task->threads, s->rows, PIECE / s->n + 1, project_rows, s);
    int64_t changed = 0;
    for (int64_t r = 0; r < s->rows; r++) changed += s->changed[r];
    return changed;
}

static void start(struct admm *s, int64_t target) {
    pd_threads_for(s->task->threads, s->rows, PIECE / s->n + 1, start_rows, s);
    s->dual = 0;
    project(s, target);
    memcpy(s->kept, s->keep, (size_t)s->rows * (size_t)s->n);
}

/*
 * The paper's schedule: the penalty grows faster the more the support still moves. A support that
 * does not move from the start means that the penalty holds it: begin again with a smaller one.
 */
static bool adapt(struct admm *s, int64_t changed, int64_t target, bool *moving) {
    double share = (double)changed / (double)(s->rows * s->n - target);
    if (share > 0.1) {
        s->rho *= 1.3;
        *moving = true;
    } else if (share > 0.005) {
        s->rho *= 1.2;
        *moving = true;
    } else if (*moving) {
        s->rho *= 1.1;
        if (changed == 0) return false;
    } else {
        s->rho /= 5;
        if (changed > 0) start(s, target);
    }
    return true;
}

/* A product with the inverse is a good deal faster than solving with two triangles. */
static pdvm_status invert(struct admm *s, pdvm_error *err) {
    struct pd_threads *threads = s->task->threads;
    pd_threads_for(threads, s->n, PIECE / s->n + 1, copy_rows, s);
    if (factor_cholesky(s->blas, s->l, s->n, threads) &&
        factor_invert(s->blas, s->l, s->n, s->panel, threads)) {
        factor_product(s->blas, s->l, s->n, s->m, threads);
        return set_factor(s, s->m, err);
    }
    return pd_fail(err, PDVM_ERR_FORMAT,
                   "the Hessian of the inputs cannot be factored with a penalty of %g", s->rho);
}

static pdvm_status search(struct admm *s, int64_t target, pdvm_error *err) {
    const struct solver_task *task = s->task;
    size_t size = (size_t)s->rows * (size_t)s->n, rows = (size_t)s->rows;
    size_t workers = (size_t)pd_threads_count(task->threads);
    bool moving = false;
    size_t n = (size_t)s->n, panel = (n + workers * FACTOR_TILE) * FACTOR_TILE;
    PD_TRY(pd_calloc(&s->l, n * n, sizeof *s->l, "a Cholesky factor", err));
    PD_TRY(pd_calloc(&s->m, n * n, sizeof *s->m, "an inverse", err));
    PD_TRY(pd_calloc(&s->panel, panel, sizeof *s->panel, "a Cholesky factor", err));
    PD_TRY(pd_calloc(&s->t, size, sizeof *s->t, "a matrix in work", err));
    PD_TRY(pd_calloc(&s->kept, size, 1, "a support", err));
    PD_TRY(pd_calloc(&s->changed, rows, sizeof *s->changed, "counts of rows", err));
    PD_TRY(pd_calloc(&s->end, rows, sizeof *s->end, "counts of rows", err));
    PD_TRY(
        pd_calloc(&s->counters, workers * SELECT_COUNTERS, sizeof *s->counters, "counters", err));
    start(s, target);
    s->rho = FIRST_RHO;
    for (int i = 1; i <= task->options->iterations; i++) {
        if (i % RHO_STEPS == 1) PD_TRY(invert(s, err));
        pd_threads_for(task->threads, pieces_of(s), 1, step_pieces, s);
        PD_TRY(matmul_status(&s->matmul, err));
        s->dual = s->rho;
        int64_t changed = project(s, target);
        PD_TRY(pd_progress(task->notify, "solving", 0.8 * i / task->options->iterations, err));
        if (i % RHO_STEPS != 0) continue;
        memcpy(s->kept, s->keep, size);
        if (!adapt(s, changed, target, &moving)) break;
    }
    return PDVM_OK;
}

/* ---- the weights on the support -------------------------------------------------------- */

static double dot(const double *x, const double *y, int64_t n) {
    double sum = 0;
    for (int64_t i = 0; i < n; i++) sum += x[i] * y[i];
    return sum;
}

static double dot_floats(const float *x, const float *y, int64_t n) {
    double sum = 0;
    for (int64_t i = 0; i < n; i++) sum += (double)x[i] * (double)y[i];
    return sum;
}

/*
 * Conjugate gradients for x A = y on the support, each row a system of its own, side by side so
 * that the product is one of matrices. x comes in as the start and is 0 off the support. `work` is
 * [2, ROWS, n].
 */
static void cg_rows(const struct admm *s, int64_t first, int64_t rows, double *x, double *work,
                    int worker) {
    int64_t n = s->n;
    double *start = work, *y = s->y + first * n;
    float *p = (float *)(void *)(work + ROWS * n), *image = p + ROWS * n;
    const uint8_t *keep = s->keep + first * n;
    double residual[ROWS], limit[ROWS];
    struct matmul_task product = product_of(s, p, rows, image);
    s->blas->dgemm(BLAS_ROW_MAJOR, BLAS_NO_TRANS, BLAS_NO_TRANS, (int)rows, (int)n, (int)n, 1, x,
                   (int)n, s->a, (int)n, 0, start, (int)n);
    for (int64_t r = 0; r < rows; r++) {
        double norm = 0;
        for (int64_t i = r * n; i < (r + 1) * n; i++) {
            norm += keep[i] ? y[i] * y[i] : 0;
            y[i] = keep[i] ? y[i] - start[i] : 0; /* y holds the residual from here on */
            p[i] = (float)y[i];
        }
        residual[r] = dot(y + r * n, y + r * n, n);
        limit[r] = norm * CG_TOLERANCE * CG_TOLERANCE;
    }
    for (int step = 0; step < s->task->options->cg_iterations; step++) {
        bool open = false;
        for (int64_t r = 0; r < rows; r++) open |= residual[r] > limit[r];
        if (!open) break;
        matmul_run(&s->matmul, &product, worker);
        for (int64_t r = 0; r < rows; r++) {
            if (!(residual[r] > limit[r])) continue;
            double curvature = dot_floats(p + r * n, image + r * n, n), before = residual[r];
            if (!(curvature > 0)) {
                residual[r] = 0;
                continue;
            }
            double alpha = before / curvature;
            for (int64_t i = r * n; i < (r + 1) * n; i++) {
                x[i] += alpha * (double)p[i];
                y[i] -= keep[i] ? alpha * (double)image[i] : 0;
            }
            residual[r] = dot(y + r * n, y + r * n, n);
            double beta = residual[r] / before;
            for (int64_t i = r * n; i < (r + 1) * n; i++)
                p[i] = (float)(y[i] + beta * (double)p[i]);
        }
    }
}

static void cg_pieces(void *arg, int64_t begin, int64_t end, int worker) {
    const struct admm *s = arg;
    int64_t n = s->n;
    double *x = s->work + worker * 3 * ROWS * n;
    for (int64_t piece = begin; piece < end; piece++) {
        int64_t first = piece * ROWS, rows = piece_rows(s, piece);
        float *w = s->task->w + first * n;
        const uint8_t *keep = s->keep + first * n;
        for (int64_t i = 0; i < rows * n; i++) {
            double from = s->t ? s->t[first * n + i] : (double)w[i] * s->scale[i % n];
            x[i] = keep[i] ? from : 0;
        }
        cg_rows(s, first, rows, x, x + ROWS * n, worker);
        for (int64_t i = 0; i < rows * n; i++) w[i] = keep[i] ? (float)(x[i] / s->scale[i % n]) : 0;
    }
}

static pdvm_status solve_rows(struct admm *s, pdvm_error *err) {
    PD_TRY(set_factor(s, s->a, err));
    pd_threads_for(s->task->threads, pieces_of(s), 1, cg_pieces, s);
    return matmul_status(&s->matmul, err);
}

/* ---- putting it together --------------------------------------------------------------- */

static pdvm_status check_task(const struct solver_task *task, pdvm_error *err) {
    if (!(task->sparsity >= 0 && task->sparsity <= 1))
        return pd_fail(err, PDVM_ERR_ARGUMENT, "sparsity %g: must be from 0 to 1", task->sparsity);
    if (!task->hessian || task->hessian->n != task->cols)
        return pd_fail(err, PDVM_ERR_ARGUMENT, "admm needs the Hessian of the inputs");
    if (task->scope != PRUNE_ROW && task->scope != PRUNE_MATRIX)
        return pd_fail(err, PDVM_ERR_ARGUMENT, "admm prunes by rows or the matrix");
    if (task->options->iterations < 1 || task->options->cg_iterations < 0)
        return pd_fail(err, PDVM_ERR_ARGUMENT, "admm needs at least one iteration");
    return PDVM_OK;
}

/* Everything there is to tell, and the rounding, once the weights are found. */
static pdvm_status finish(const struct admm *s, struct solver_result *out, pdvm_error *err) {
    const struct solver_task *task = s->task;
    int64_t size = s->rows * s->n;
    for (int64_t i = 0; i < size; i++) {
        if (!isfinite(task->w[i]))
            return pd_fail(err, PDVM_ERR_FORMAT, "the solved weights are not finite");
    }
    out->damping = s->damping;
    if (grid_wanted(task->coding)) {
        struct solver_task rounding = *task;
        rounding.sparsity = 0;
        rounding.scope = PRUNE_BLOCK;
        rounding.notify = NULL;
        PD_TRY(solver_sparsegpt(&rounding, out, err));
    }
    out->n_dead = s->n_dead;
    out->pruning_squares = 0;
    for (int64_t i = 0; i < size; i++) {
        if (task->w[i] == 0) out->pruning_squares += (double)s->target[i] * (double)s->target[i];
    }
    out->output_squares = out->output_error = NAN;
    return PDVM_OK;
}

static pdvm_status solve(struct admm *s, struct solver_result *out, pdvm_error *err) {
    const struct solver_task *task = s->task;
    int64_t size = s->rows * s->n, target = target_of(s, size, count_zeros(s->target, size));
    PD_TRY(prepare(s, err));
    if (target == size) {
        memset(task->w, 0, (size_t)size * sizeof *task->w);
        return finish(s, out, err);
    }
    if (task->sparsity > 0) {
        PD_TRY(search(s, target, err));
        PD_TRY(solve_rows(s, err));
    }
    PD_TRY(pd_progress(task->notify, "solving", 0.9, err));
    return finish(s, out, err);
}

static pdvm_status refine(struct admm *s, struct solver_result *out, pdvm_error *err) {
    PD_TRY(prepare(s, err));
    for (int64_t i = 0; i < s->rows * s->n; i++)
        s->keep[i] = s->task->w[i] != 0 && !is_dead(s, i % s->n);
    PD_TRY(solve_rows(s, err));
    PD_TRY(pd_progress(s->task->notify, "solving", 0.9, err));
    return finish(s, out, err);
}

pdvm_status solver_admm(const struct solver_task *task, struct solver_result *out,
                        pdvm_error *err) {
    struct admm s = {.task = task, .rows = task->rows, .n = task->cols};
    float *target;
    PD_TRY(check_task(task, err));
    size_t size = (size_t)s.rows * (size_t)s.n;
    PD_TRY(pd_calloc(&target, size, sizeof *target, "a matrix in work", err));
    memcpy(target, task->w, size * sizeof *target);
    s.target = target;
    pdvm_status status = solve(&s, out, err);
    release(&s);
    free(target);
    return status;
}

pdvm_status solver_refine(const struct solver_task *task, const float *target,
                          struct solver_result *out, pdvm_error *err) {
    struct admm s = {.task = task, .target = target, .rows = task->rows, .n = task->cols};
    if (!task->hessian || task->hessian->n != task->cols || task->options->cg_iterations < 0)
        return pd_fail(err, PDVM_ERR_ARGUMENT, "refining needs the Hessian of the inputs");
    pdvm_status status = refine(&s, out, err);
    release(&s);
    return status;
}

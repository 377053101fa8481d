#include "compress/factor.h"

#include "base/alloc.h"

#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

static int64_t min_i64(int64_t a, int64_t b) {
    return a < b ? a : b;
}

/* ---- blocked algorithms ---------------------------------------------------------------- */

/* Step k of either algorithm, on tiles of a[n, n]. */
struct step {
    const struct blas *blas;
    double *a;
    double *panel; /* copy of column k of tiles */
    double *out;
    int64_t n, k;
};

static int64_t tile_size(const struct step *s, int64_t tile) {
    return min_i64(FACTOR_TILE, s->n - tile * FACTOR_TILE);
}

static double *tile_at(const struct step *s, int64_t i, int64_t j) {
    return s->a + (i * s->n + j) * FACTOR_TILE;
}

/* A_ik becomes L_ik = A_ik L_kk^-T for the tiles below the diagonal one. */
static void solve_panel(void *arg, int64_t begin, int64_t end, int worker) {
    const struct step *s = arg;
    (void)worker;
    for (int64_t i = s->k + 1 + begin; i < s->k + 1 + end; i++)
        s->blas->dtrsm(BLAS_ROW_MAJOR, BLAS_RIGHT, BLAS_LOWER, BLAS_TRANS, BLAS_NON_UNIT,
                       (int)tile_size(s, i), (int)tile_size(s, s->k), 1, tile_at(s, s->k, s->k),
                       (int)s->n, tile_at(s, i, s->k), (int)s->n);
}

/* Tile t of a lower triangle, counted row by row. */
static void triangle_tile(int64_t t, int64_t *row, int64_t *col) {
    int64_t r = 0;
    for (; t > r; r++) t -= r + 1;
    *row = r;
    *col = t;
}

/* A_ij -= L_ik L_jk^T for the tiles right of the panel. */
static void update_trailing(void *arg, int64_t begin, int64_t end, int worker) {
    const struct step *s = arg;
    (void)worker;
    for (int64_t t = begin; t < end; t++) {
        int64_t i, j;
        triangle_tile(t, &i, &j);
        i += s->k + 1;
        j += s->k + 1;
        s->blas->dgemm(BLAS_ROW_MAJOR, BLAS_NO_TRANS, BLAS_TRANS, (int)tile_size(s, i),
                       (int)tile_size(s, j), (int)tile_size(s, s->k), -1, tile_at(s, i, s->k),
                       (int)s->n, tile_at(s, j, s->k), (int)s->n, 1, tile_at(s, i, j), (int)s->n);
    }
}

bool factor_cholesky(const struct blas *blas, double *a, int64_t n, struct pd_threads *threads) {
    struct step s = {.blas = blas, .a = a, .n = n};
    int64_t tiles = (n + FACTOR_TILE - 1) / FACTOR_TILE;
    for (s.k = 0; s.k < tiles; s.k++) {
        int size = (int)tile_size(&s, s.k), stride = (int)n, info = 0;
        /* Row-major lower is LAPACK's upper. */
        blas->dpotrf("U", &size, tile_at(&s, s.k, s.k), &stride, &info);
        if (info != 0) return false;
        int64_t below = tiles - s.k - 1;
        pd_threads_for(threads, below, 1, solve_panel, &s);
        pd_threads_for(threads, below * (below + 1) / 2, 1, update_trailing, &s);
    }
    for (int64_t i = 0; i < n; i++) {
        if (!(a[i * n + i] > 0) || !isfinite(a[i * n + i])) return false;
    }
    return true;
}

/*
 * Column k of tiles below the diagonal: the inverse M of what lies right of it is there already,
 * so M_ik = -(sum over j of M_ij L_jk) M_kk.
 */
static void invert_panel(void *arg, int64_t begin, int64_t end, int worker) {
    const struct step *s = arg;
    int size = (int)tile_size(s, s->k), n = (int)s->n;
    int64_t next = (s->k + 1) * FACTOR_TILE;
    double *sum = s->panel + (s->n + worker * FACTOR_TILE) * FACTOR_TILE;
    for (int64_t i = s->k + 1 + begin; i < s->k + 1 + end; i++) {
        int rows = (int)tile_size(s, i);
        int64_t depth = i * FACTOR_TILE + rows - next;
        s->blas->dgemm(BLAS_ROW_MAJOR, BLAS_NO_TRANS, BLAS_NO_TRANS, rows, size, (int)depth, -1,
                       tile_at(s, i, s->k + 1), n, s->panel + next * FACTOR_TILE, (int)FACTOR_TILE,
                       0, sum, (int)FACTOR_TILE);
        s->blas->dgemm(BLAS_ROW_MAJOR, BLAS_NO_TRANS, BLAS_NO_TRANS, rows, size, size, 1, sum,
                       (int)FACTOR_TILE, tile_at(s, s->k, s->k), n, 0, tile_at(s, i, s->k), n);
    }
}

bool factor_invert(const struct blas *blas, double *l, int64_t n, double *panel,
                   struct pd_threads *threads) {
    struct step s = {.blas = blas, .a = l, .panel = panel, .n = n};
    int64_t tiles = (n + FACTOR_TILE - 1) / FACTOR_TILE;
    for (int64_t i = 0; i < n; i++) memset(l + i * n + i + 1, 0, (size_t)(n - i - 1) * sizeof *l);
    for (s.k = tiles - 1; s.k >= 0; s.k--) {
        int64_t first = s.k * FACTOR_TILE, size = tile_size(&s, s.k);
        int dim = (int)size, stride = (int)n, info = 0;
        for (int64_t i = first + size; i < n; i++)
            memcpy(panel + i * FACTOR_TILE, l + i * n + first, (size_t)size * sizeof *l);
        blas->dtrtri("U", "N", &dim, tile_at(&s, s.k, s.k), &stride, &info);
        if (info != 0) return false;
        pd_threads_for(threads, tiles - s.k - 1, 1, invert_panel, &s);
    }
    return true;
}

/* Tile (i, j) of l^T l, where l begins at row i of tiles, and its mirror image. */
static void multiply_tiles(void *arg, int64_t begin, int64_t end, int worker) {
    const struct step *s = arg;
    int n = (int)s->n;
    (void)worker;
    for (int64_t t = begin; t < end; t++) {
        int64_t i, j;
        triangle_tile(t, &i, &j);
        int64_t rows = tile_size(s, i), cols = tile_size(s, j);
        double *to = s->out + (i * s->n + j) * FACTOR_TILE;
        double *mirror = s->out + (j * s->n + i) * FACTOR_TILE;
        s->blas->dgemm(BLAS_ROW_MAJOR, BLAS_TRANS, BLAS_NO_TRANS, (int)rows, (int)cols,
                       (int)(s->n - i * FACTOR_TILE), 1, tile_at(s, i, i), n, tile_at(s, i, j), n,
                       0, to, n);
        for (int64_t r = 0; r < rows; r++)
            for (int64_t c = 0; c < (i == j ? r : cols); c++)
                mirror[c * s->n + r] = to[r * s->n + c];
    }
}

void factor_product(const struct blas *blas, double *l, int64_t n, double *out,
                    struct pd_threads *threads) {
    struct step s = {.blas = blas, .a = l, .out = out, .n = n};
    int64_t tiles = (n + FACTOR_TILE - 1) / FACTOR_TILE;
    pd_threads_for(threads, tiles * (tiles + 1) / 2, 1, multiply_tiles, &s);
}

/* ---- Hessians -------------------------------------------------------------------------- */

pdvm_status factor_check(const struct solver_hessian *hessian, double *mean, int64_t *n_dead,
                         pdvm_error *err) {
    int64_t n = hessian->n;
    double sum = 0;
    *n_dead = 0;
    for (int64_t i = 0; i < n; i++) {
        const double *row = hessian->h + i * n;
        double check = 0;
        for (int64_t j = 0; j < n; j++) check += 0 * row[j];
        if (check != 0 || row[i] < 0)
            return pd_fail(err, PDVM_ERR_FORMAT,
                           "the Hessian's row %" PRId64 " holds %s: the inputs on the calibration "
                           "text are damaged or too large",
                           i, check != 0 ? "values that are not finite" : "a negative square");
        *n_dead += row[i] == 0;
        sum += row[i];
    }
    if (*n_dead == n)
        return pd_fail(err, PDVM_ERR_FORMAT,
                       "all inputs on the calibration text are zero: there is nothing to go by");
    *mean = sum / (double)(n - *n_dead);
    return PDVM_OK;
}

static void factor_free(struct solver_factor *f) {
    if (!f) return;
    free(f->order);
    free(f->u);
    free(f);
}

struct column {
    double diagonal;
    int32_t at;
};

static int compare_columns(const void *a, const void *b) {
    const struct column *x = a, *y = b;
    if (x->diagonal != y->diagonal) return x->diagonal < y->diagonal ? 1 : -1;
    return (x->at > y->at) - (x->at < y->at);
}

static pdvm_status set_order(const struct solver_hessian *hessian, struct solver_factor *f,
                             pdvm_error *err) {
    struct column *columns;
    int64_t n = f->n;
    PD_TRY(pd_calloc(&columns, (size_t)n, sizeof *columns, "an order of columns", err));
    for (int64_t i = 0; i < n; i++) columns[i] = (struct column){hessian->h[i * n + i], (int32_t)i};
    if (f->act_order) qsort(columns, (size_t)n, sizeof *columns, compare_columns);
    for (int64_t i = 0; i < n; i++) f->order[i] = columns[i].at;
    free(columns);
    return PDVM_OK;
}

struct copying {
    const struct solver_hessian *hessian;
    const struct solver_factor *f;
};

/*
 * The damped Hessian in reverse order: A = J H J = L L^T makes H = (J L J)(J L J)^T with J L J upper
 * triangular, so its inverse J L^-1 J is the U wanted. This takes half the work of inverting
 * H and factoring the inverse, and loses fewer digits.
 */
static void copy_rows(void *arg, int64_t begin, int64_t end, int worker) {
    const struct copying *c = arg;
    int64_t n = c->f->n;
    const int32_t *order = c->f->order;
    (void)worker;
    for (int64_t i = begin; i < end; i++) {
        const double *from = c->hessian->h + order[n - 1 - i] * n;
        double *to = c->f->u + i * n;
        for (int64_t j = 0; j <= i; j++) to[j] = from[order[n - 1 - j]];
        if (to[i] == 0) to[i] = c->f->mean;
        to[i] += c->f->damping;
    }
}

static void reverse_rows(void *arg, int64_t begin, int64_t end, int worker) {
    const struct solver_factor *f = arg;
    (void)worker;
    for (int64_t i = begin; i < end; i++) {
        double *low = f->u + i * f->n, *high = f->u + (f->n - 1 - i) * f->n;
        bool middle = low == high;
        for (int64_t j = 0; j < (middle ? f->n / 2 : f->n); j++) {
            double t = low[j];
            low[j] = high[f->n - 1 - j];
            high[f->n - 1 - j] = t;
        }
    }
}

static pdvm_status factor_make(const struct blas *blas, const struct solver_hessian *hessian,
                               struct solver_factor *f, struct pd_threads *threads,
                               pdvm_error *err) {
    int64_t n = f->n, grain = 65536 / n + 1;
    double *panel;
    PD_TRY(pd_calloc(&f->order, (size_t)n, sizeof *f->order, "an order of columns", err));
    PD_TRY(pd_calloc(&f->u, (size_t)n * (size_t)n, sizeof *f->u, "a Cholesky factor", err));
    PD_TRY(set_order(hessian, f, err));
    size_t panel_rows = (size_t)n + (size_t)pd_threads_count(threads) * FACTOR_TILE;
    PD_TRY(pd_calloc(&panel, panel_rows * FACTOR_TILE, sizeof *panel, "a Cholesky factor", err));
    bool good = false;
    /* Asking for no damping must not end in multiplying 0 by 10. */
    double share = f->share;
    for (f->damping_raised = 0; !good; f->damping_raised++) {
        if (f->damping_raised > 0) share = fmax(10 * share, 1e-6);
        if (share > FACTOR_MOST_DAMPING && f->damping_raised > 0) break;
        f->damping = share * f->mean;
        struct copying c = {hessian, f};
        pd_threads_for(threads, n, grain, copy_rows, &c);
        good =
            factor_cholesky(blas, f->u, n, threads) && factor_invert(blas, f->u, n, panel, threads);
        if (good) break;
    }
    free(panel);
    if (!good)
        return pd_fail(err, PDVM_ERR_FORMAT,
                       "the Hessian of the inputs cannot be factored, even with a damping of %g "
                       "times its mean diagonal",
                       share / 10);
    pd_threads_for(threads, (n + 1) / 2, grain, reverse_rows, f);
    return PDVM_OK;
}

pdvm_status factor_hessian(struct solver_hessian *hessian, const struct solver_options *options,
                           struct pd_threads *threads, const struct solver_factor **out,
                           pdvm_error *err) {
    const struct blas *blas;
    struct solver_factor *f = hessian->factor;
    *out = f;
    if (f && f->share == options->damping && f->act_order == options->act_order) return PDVM_OK;
    if (f) hessian->factor_free(f);
    *out = hessian->factor = NULL;
    if (!(options->damping >= 0 && options->damping <= FACTOR_MOST_DAMPING))
        return pd_fail(err, PDVM_ERR_ARGUMENT, "damping %g: must be from 0 to %g", options->damping,
                       FACTOR_MOST_DAMPING);
    PD_TRY(blas_open(&blas, err));
    PD_TRY(pd_calloc(&f, 1, sizeof *f, "a Cholesky factor", err));
    *f = (struct solver_factor){
        .n = hessian->n, .share = options->damping, .act_order = options->act_order};
    pdvm_status status = factor_check(hessian, &f->mean, &f->n_dead, err);
    if (status == PDVM_OK) status = factor_make(blas, hessian, f, threads, err);
    if (status != PDVM_OK) {
        factor_free(f);
        return status;
    }
    hessian->factor = f;
    hessian->factor_free = factor_free;
    *out = f;
    return PDVM_OK;
}

#include "compress/prune.h"

#include "base/alloc.h"
#include "base/half.h"
#include "compress/solver.h"

#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

/* Weights per piece of a parallel loop. */
#define PIECE ((int64_t)1 << 16)

/* Magnitudes are compared as their bits (31 of them, in the same order), a digit at a time. */
#define DIGIT_BITS 11
#define DIGITS (1 << DIGIT_BITS)
#define TOP_SHIFT 20

static inline uint32_t magnitude(float x) {
    return pd_float_bits(x) & 0x7fffffffu;
}

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

/*
 * Finds the magnitude of which `target` of the weights are at or below and fewer are below, by
 * counting digits from the top: 11, 10 and 10 bits.
 */
struct search {
    uint32_t prefix; /* the digits found so far */
    int shift;       /* of the digit to be found now; 31 - 11 at first */
    int64_t rest;    /* how many with this prefix are still wanted */
};

static void add_digits(const struct search *s, const float *w, int64_t n, int64_t *counts) {
    int bits = s->shift == TOP_SHIFT ? DIGIT_BITS : DIGIT_BITS - 1;
    uint32_t mask = (1u << bits) - 1;
    for (int64_t i = 0; i < n; i++) {
        uint32_t m = magnitude(w[i]) >> s->shift;
        if (m >> bits == s->prefix) counts[m & mask]++;
    }
}

static void take_digit(struct search *s, const int64_t *counts) {
    int bits = s->shift == TOP_SHIFT ? DIGIT_BITS : DIGIT_BITS - 1;
    uint32_t digit = 0;
    while (counts[digit] < s->rest) s->rest -= counts[digit++];
    s->prefix = s->prefix << bits | digit;
    s->shift -= DIGIT_BITS - 1;
}

/*
 * Zeroes the weights below `threshold`, and the first `ties` of those at it. Returns the sum of
 * their squares.
 */
static double zero_below(float *w, int64_t n, uint32_t threshold, int64_t ties) {
    double removed = 0;
    for (int64_t i = 0; i < n; i++) {
        uint32_t m = magnitude(w[i]);
        if (m > threshold || (m == threshold && ties-- <= 0)) continue;
        removed += (double)w[i] * w[i];
        w[i] = 0;
    }
    return removed;
}

struct pruning {
    const struct prune_task *task;
    int64_t *counts; /* [workers, DIGITS] */
    double *removed; /* [rows] sums of squares, added up in the rows' order */
    int64_t *n_ties; /* [rows] weights at the threshold, then how many of them go */
    struct search search;
};

static void prune_rows(void *arg, int64_t begin, int64_t end, int worker) {
    struct pruning *p = arg;
    int64_t cols = p->task->cols;
    int64_t *counts = p->counts + (int64_t)worker * DIGITS;
    for (int64_t r = begin; r < end; r++) {
        float *w = p->task->w + r * cols;
        struct search s = {.shift = TOP_SHIFT, .rest = prune_target(p->task->sparsity, cols)};
        if (s.rest == 0) continue;
        while (s.shift >= 0) {
            memset(counts, 0, DIGITS * sizeof *counts);
            add_digits(&s, w, cols, counts);
            take_digit(&s, counts);
        }
        p->removed[r] = zero_below(w, cols, s.prefix, s.rest);
    }
}

static void count_digits(void *arg, int64_t begin, int64_t end, int worker) {
    const struct pruning *p = arg;
    int64_t cols = p->task->cols;
    add_digits(&p->search, p->task->w + begin * cols, (end - begin) * cols,
               p->counts + (int64_t)worker * DIGITS);
}

static void count_ties(void *arg, int64_t begin, int64_t end, int worker) {
    struct pruning *p = arg;
    int64_t cols = p->task->cols;
    (void)worker;
    for (int64_t r = begin; r < end; r++) {
        const float *w = p->task->w + r * cols;
        for (int64_t i = 0; i < cols; i++) p->n_ties[r] += magnitude(w[i]) == p->search.prefix;
    }
}

static void zero_rows(void *arg, int64_t begin, int64_t end, int worker) {
    struct pruning *p = arg;
    int64_t cols = p->task->cols;
    (void)worker;
    for (int64_t r = begin; r < end; r++)
        p->removed[r] = zero_below(p->task->w + r * cols, cols, p->search.prefix, p->n_ties[r]);
}

/* The same search over all rows at once. */
static void prune_matrix(struct pruning *p, int64_t grain) {
    const struct prune_task *task = p->task;
    int n_workers = pd_threads_count(task->threads);
    p->search = (struct search){.shift = TOP_SHIFT,
                                .rest = prune_target(task->sparsity, task->rows * task->cols)};
    if (p->search.rest == 0) return;
    while (p->search.shift >= 0) {
        memset(p->counts, 0, (size_t)n_workers * DIGITS * sizeof *p->counts);
        pd_threads_for(task->threads, task->rows, grain, count_digits, p);
        for (int i = 1; i < n_workers; i++) {
            for (int d = 0; d < DIGITS; d++) p->counts[d] += p->counts[i * DIGITS + d];
        }
        take_digit(&p->search, p->counts);
    }
    pd_threads_for(task->threads, task->rows, grain, count_ties, p);
    int64_t rest = p->search.rest;
    for (int64_t r = 0; r < task->rows; r++) {
        if (p->n_ties[r] > rest) p->n_ties[r] = rest;
        rest -= p->n_ties[r];
    }
    pd_threads_for(task->threads, task->rows, grain, zero_rows, p);
}

static pdvm_status prune_magnitude(const struct prune_task *task, struct prune_result *out,
                                   pdvm_error *err) {
    struct pruning p = {.task = task};
    size_t rows = (size_t)task->rows, n_workers = (size_t)pd_threads_count(task->threads);
    int64_t grain = PIECE / task->cols + 1;
    *out = (struct prune_result){0};
    if (!(task->sparsity >= 0 && task->sparsity <= 1))
        return pd_fail(err, PDVM_ERR_ARGUMENT, "sparsity %g: must be from 0 to 1", task->sparsity);
    if (task->scope != PRUNE_ROW && task->scope != PRUNE_MATRIX)
        return pd_fail(err, PDVM_ERR_ARGUMENT, "magnitude: unknown scope");
    pdvm_status status =
        pd_calloc(&p.counts, n_workers * DIGITS, sizeof *p.counts, "histograms of weights", err);
    if (status == PDVM_OK)
        status = pd_calloc(&p.removed, rows, sizeof *p.removed, "sums of rows", err);
    if (status == PDVM_OK) status = pd_calloc(&p.n_ties, rows, sizeof *p.n_ties, "ties", err);
    if (status == PDVM_OK) {
        if (task->scope == PRUNE_MATRIX)
            prune_matrix(&p, grain);
        else
            pd_threads_for(task->threads, task->rows, grain, prune_rows, &p);
        for (int64_t r = 0; r < task->rows; r++) out->error_squares += p.removed[r];
    }
    free(p.counts);
    free(p.removed);
    free(p.n_ties);
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

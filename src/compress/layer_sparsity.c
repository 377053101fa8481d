#include "compress/layer_sparsity.h"

#include "base/alloc.h"
#include "base/sort.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* The values of Yin et al. for 7B models. */
#define OUTLIER 5.0
#define RANGE 0.08

/* Layers are never made emptier than this. */
#define MOST 0.9999

static const char *const names[] = {"uniform", "owl", "damage"};

const char *layer_sparsity_name(enum layer_sparsity_rule rule) {
    return (unsigned)rule < LAYER_SPARSITY_N_RULES ? names[rule] : NULL;
}

static double outlier_of(const struct layer_sparsity_options *o) {
    return o->outlier > 0 ? o->outlier : OUTLIER;
}

static double range_of(const struct layer_sparsity_options *o) {
    return o->range > 0 ? o->range : RANGE;
}

/* ---- reading --------------------------------------------------------------------------- */

/* Reads a number that ends with `end`; moves on behind it. */
static bool parse_number(const char **text, double most, double *out) {
    char *end;
    if ((**text < '0' || **text > '9') && **text != '.') return false;
    *out = strtod(*text, &end);
    *text = end;
    return *out > 0 && *out <= most;
}

pdvm_status layer_sparsity_parse(const char *text, struct layer_sparsity_options *out,
                                 pdvm_error *err) {
    size_t n = strcspn(text, ":");
    const char *rest = text + n;
    bool good = false;
    *out = (struct layer_sparsity_options){0};
    for (int i = 0; i < LAYER_SPARSITY_N_RULES; i++) {
        if (strlen(names[i]) != n || strncmp(names[i], text, n) != 0) continue;
        out->rule = (enum layer_sparsity_rule)i;
        good = true;
    }
    if (good && *rest == ':') {
        rest++;
        if (out->rule == LAYER_SPARSITY_OWL) {
            good = parse_number(&rest, 1e6, &out->outlier);
            if (good && *rest == ',') {
                rest++;
                good = parse_number(&rest, 0.5, &out->range);
            }
        } else {
            good = out->rule == LAYER_SPARSITY_DAMAGE && parse_number(&rest, 0.5, &out->range);
        }
    }
    if (good && *rest == 0) return PDVM_OK;
    return pd_fail(err, PDVM_ERR_ARGUMENT,
                   "'%s': give uniform, owl, owl:M, owl:M,RANGE, damage or damage:RANGE, for "
                   "example owl:5,0.08 (RANGE is at most 0.5)",
                   text);
}

/* ---- measuring ------------------------------------------------------------------------- */

struct matrix_run {
    const struct layer_sparsity_matrix *m;
    double target, range, limit; /* limit: of an outlier's score; before it is known 0 */
    double **scores;             /* [workers][widest] */
    double *sums;      /* [rows, 2 + POINTS]: scores, squares, what is lost at each point */
    int64_t *outliers; /* [rows] */
};

#define SUMS (2 + LAYER_SPARSITY_POINTS)

static double point_sparsity(double target, double range, int i) {
    double s = target + range * (2.0 * i / (LAYER_SPARSITY_POINTS - 1) - 1);
    return s < 0 ? 0 : s > MOST ? MOST : s;
}

/* Scores as OWL has them, |W_ij| ||x_j||, and the squares of the smallest of them. */
static void measure_rows(void *arg, int64_t begin, int64_t end, int worker) {
    const struct matrix_run *r = arg;
    int64_t cols = r->m->cols;
    double *score = r->scores[worker];
    for (int64_t row = begin; row < end; row++) {
        const float *w = r->m->w + row * cols;
        double *sums = r->sums + row * SUMS, lost = 0;
        for (int64_t c = 0; c < cols; c++) {
            score[c] = fabs((double)w[c]) * sqrt(r->m->diagonal[c]);
            sums[0] += score[c];
        }
        qsort(score, (size_t)cols, sizeof *score, pd_compare_doubles);
        int64_t at = 0;
        for (int i = 0; i < LAYER_SPARSITY_POINTS; i++) {
            int64_t n = prune_target(point_sparsity(r->target, r->range, i), cols);
            for (; at < n; at++) lost += score[at] * score[at];
            sums[2 + i] = lost;
        }
        for (sums[1] = lost; at < cols; at++) sums[1] += score[at] * score[at];
    }
}

static void count_outliers(void *arg, int64_t begin, int64_t end, int worker) {
    const struct matrix_run *r = arg;
    int64_t cols = r->m->cols;
    (void)worker;
    for (int64_t row = begin; row < end; row++) {
        const float *w = r->m->w + row * cols;
        int64_t n = 0;
        for (int64_t c = 0; c < cols; c++)
            n += fabs((double)w[c]) * sqrt(r->m->diagonal[c]) > r->limit;
        r->outliers[row] = n;
    }
}

/* Adds a matrix's part; *sum and *n count the scores of the layer. */
static void measure_matrix(struct matrix_run *r, struct pd_threads *threads,
                           struct layer_sparsity_measure *out, double *sum, double *n) {
    double output = 0, lost[LAYER_SPARSITY_POINTS] = {0};
    memset(r->sums, 0, (size_t)(r->m->rows * SUMS) * sizeof *r->sums);
    pd_threads_for(threads, r->m->rows, 8, measure_rows, r);
    for (int64_t row = 0; row < r->m->rows; row++) {
        const double *sums = r->sums + row * SUMS;
        *sum += sums[0];
        output += sums[1];
        for (int i = 0; i < LAYER_SPARSITY_POINTS; i++) lost[i] += sums[2 + i];
    }
    *n += (double)r->m->rows * (double)r->m->cols;
    for (int i = 0; i < LAYER_SPARSITY_POINTS; i++)
        out->damage[i] += output > 0 ? lost[i] / output : 0;
}

static pdvm_status allocate(struct matrix_run *r, int n_workers,
                            const struct layer_sparsity_matrix *matrices, int n, pdvm_error *err) {
    int64_t rows = 0, cols = 0;
    for (int i = 0; i < n; i++) {
        rows = matrices[i].rows > rows ? matrices[i].rows : rows;
        cols = matrices[i].cols > cols ? matrices[i].cols : cols;
    }
    PD_TRY(pd_calloc(&r->sums, (size_t)(rows * SUMS), sizeof *r->sums, "sums of rows", err));
    PD_TRY(pd_calloc(&r->outliers, (size_t)rows, sizeof *r->outliers, "counts of rows", err));
    PD_TRY(pd_calloc(&r->scores, (size_t)n_workers, sizeof *r->scores, "scores", err));
    for (int i = 0; i < n_workers; i++)
        PD_TRY(pd_calloc(&r->scores[i], (size_t)cols, sizeof **r->scores, "scores", err));
    return PDVM_OK;
}

pdvm_status layer_sparsity_measure(const struct layer_sparsity_options *options, double target,
                                   const struct layer_sparsity_matrix *matrices, int n,
                                   struct pd_threads *threads, struct layer_sparsity_measure *out,
                                   pdvm_error *err) {
    struct matrix_run r = {.target = target, .range = range_of(options)};
    int n_workers = pd_threads_count(threads);
    double sum = 0, n_scores = 0;
    int64_t outliers = 0;
    *out = (struct layer_sparsity_measure){0};
    pdvm_status status = allocate(&r, n_workers, matrices, n, err);
    for (int i = 0; i < n && status == PDVM_OK; i++) {
        r.m = &matrices[i];
        measure_matrix(&r, threads, out, &sum, &n_scores);
    }
    r.limit = n_scores > 0 ? outlier_of(options) * sum / n_scores : 0;
    for (int i = 0; i < n && status == PDVM_OK; i++) {
        r.m = &matrices[i];
        pd_threads_for(threads, r.m->rows, 64, count_outliers, &r);
        for (int64_t row = 0; row < r.m->rows; row++) outliers += r.outliers[row];
    }
    out->outliers = n_scores > 0 ? (double)outliers / n_scores : 0;
    for (int i = 0; i < LAYER_SPARSITY_POINTS; i++) out->damage[i] /= n > 0 ? n : 1;
    for (int i = 0; r.scores && i < n_workers; i++) free(r.scores[i]);
    free(r.scores);
    free(r.sums);
    free(r.outliers);
    return status;
}

/* ---- sharing out ----------------------------------------------------------------------- */

/*
 * Moves all sparsities by the same amount until their mean is the target. Those that reach an end
 * of [0, MOST] stay there and the others take their part.
 */
static void centre(double target, uint32_t n, double *sparsity) {
    for (int round = 0; round < 64; round++) {
        double sum = 0;
        uint32_t n_free = 0;
        for (uint32_t i = 0; i < n; i++) sum += sparsity[i];
        double rest = target * n - sum;
        if (fabs(rest) < 1e-12 * n) return;
        for (uint32_t i = 0; i < n; i++) n_free += rest > 0 ? sparsity[i] < MOST : sparsity[i] > 0;
        if (n_free == 0) return;
        for (uint32_t i = 0; i < n; i++) {
            if (rest > 0 ? sparsity[i] >= MOST : sparsity[i] <= 0) continue;
            sparsity[i] = fmin(fmax(sparsity[i] + rest / n_free, 0), MOST);
        }
    }
}

/* Yin et al. 2023, "Outlier weighed layerwise sparsity": sparsity falls linearly with outliers. */
static void share_by_outliers(double target, double range, const struct layer_sparsity_measure *m,
                              uint32_t n, double *sparsity) {
    double least = INFINITY, most = -INFINITY;
    for (uint32_t i = 0; i < n; i++) {
        least = fmin(least, m[i].outliers);
        most = fmax(most, m[i].outliers);
    }
    for (uint32_t i = 0; i < n; i++) {
        double part = most > least ? (m[i].outliers - least) / (most - least) : 0.5;
        sparsity[i] = target + range * (1 - 2 * part);
    }
}

/*
 * The least sum of damages: starting from the lowest point, the step that costs least is taken
 * until the target is reached. The curves are convex, because the weights go in order of what they
 * cost, so this is the optimum over the points.
 */
static void share_by_damage(double target, double range, const struct layer_sparsity_measure *m,
                            uint32_t n, double *sparsity, int *point) {
    double sum = 0;
    for (uint32_t i = 0; i < n; i++) {
        point[i] = 0;
        sparsity[i] = point_sparsity(target, range, 0);
        sum += sparsity[i];
    }
    for (;;) {
        uint32_t best = n;
        double least = INFINITY, width = 0;
        for (uint32_t i = 0; i < n; i++) {
            if (point[i] + 1 >= LAYER_SPARSITY_POINTS) continue;
            double step = point_sparsity(target, range, point[i] + 1) - sparsity[i];
            double cost = m[i].damage[point[i] + 1] - m[i].damage[point[i]];
            if (step <= 0 || cost / step >= least) continue;
            least = cost / step;
            best = i;
            width = step;
        }
        if (best == n || sum + width > target * n + 1e-12) return;
        point[best]++;
        sparsity[best] += width;
        sum += width;
    }
}

pdvm_status layer_sparsity_share(const struct layer_sparsity_options *options, double target,
                                 const struct layer_sparsity_measure *measures, uint32_t n,
                                 double *sparsity, pdvm_error *err) {
    double range = range_of(options);
    for (uint32_t i = 0; i < n; i++) sparsity[i] = target;
    if (options->rule == LAYER_SPARSITY_OWL) {
        share_by_outliers(target, range, measures, n, sparsity);
    } else if (options->rule == LAYER_SPARSITY_DAMAGE) {
        int *point;
        PD_TRY(pd_calloc(&point, n, sizeof *point, "points of layers", err));
        share_by_damage(target, range, measures, n, sparsity, point);
        free(point);
    }
    for (uint32_t i = 0; i < n; i++) sparsity[i] = fmin(fmax(sparsity[i], 0), MOST);
    centre(target, n, sparsity);
    return PDVM_OK;
}

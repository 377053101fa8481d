/* Statistics of one model's predictions against another's. */
#include "eval/divergence.h"
#include "base/alloc.h"
#include "base/sort.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

const double divergence_quantiles[DIVERGENCE_N_QUANTILES] = {0.01, 0.05, 0.1,  0.5,
                                                             0.9,  0.95, 0.99, 0.999};

/* acc: mean and sum of squared deviations, of the n values up to and including this one. */
static void add(double acc[2], double value, double n) {
    double delta = value - acc[0];
    acc[0] += delta / n;
    acc[1] += delta * (value - acc[0]);
}

static struct divergence_mean mean_of(const double acc[2], double n) {
    return (struct divergence_mean){.value = acc[0],
                                    .error = n > 1 ? sqrt(acc[1] / (n - 1) / n) : 0};
}

pdvm_status divergence_add(struct divergence *d, const double *x, const float *logits,
                           size_t n_vocab, int32_t token, double nll, pdvm_error *err) {
    double top_p = x[0], sum_p = 0, cross = 0;
    size_t top_q = 0;
    for (size_t i = 1; i < n_vocab; i++) {
        if (x[i] > top_p) top_p = x[i];
        if (logits[i] > logits[top_q]) top_q = i;
    }
    /* With P = exp(x) / sum_p and Q = exp(y) / sum_q:
     * D = sum P (x - y) - log sum_p + log sum_q, and log sum_q follows from the nll. */
    double y_top = (double)logits[top_q];
    for (size_t i = 0; i < n_vocab; i++) {
        double dx = x[i] - top_p, p = exp(dx);
        sum_p += p;
        cross += p * (dx - ((double)logits[i] - y_top));
    }
    if (!(sum_p > 0)) return pd_fail(err, PDVM_ERR_RANGE, "a prediction is not finite");
    double log_sum_q = nll + ((double)logits[token] - y_top);
    double kl = cross / sum_p - log(sum_p) + log_sum_q;
    double nll_p = log(sum_p) - (x[token] - top_p);
    if (!isfinite(kl) || !isfinite(nll_p))
        return pd_fail(err, PDVM_ERR_RANGE, "a prediction is not finite");
    PD_TRY(pd_grow(&d->kl, &d->capacity, d->n + 1, sizeof *d->kl, "divergences", err));
    /* It is never negative; rounding may be. */
    d->kl[d->n++] = kl > 0 ? kl : 0;
    double n = (double)d->n, dp = exp(-nll) - exp(-nll_p);
    /* Equal candidates of the reference are all its likeliest. */
    d->same += x[top_q] == top_p;
    add(d->dp, dp, n);
    add(d->dp2, dp * dp, n);
    add(d->nll, nll_p, n);
    add(d->change, nll - nll_p, n);
    return PDVM_OK;
}

/* By linear interpolation between the two values around the place. */
static double quantile(const double *sorted, size_t n, double share) {
    double place = share * (double)(n - 1);
    size_t i = (size_t)place;
    if (i + 1 >= n) return sorted[n - 1];
    return sorted[i] + (place - (double)i) * (sorted[i + 1] - sorted[i]);
}

pdvm_status divergence_finish(const struct divergence *d, struct divergence_result *out,
                              pdvm_error *err) {
    double *sorted, kl[2] = {0}, n = (double)d->n;
    *out = (struct divergence_result){.n = d->n};
    if (d->n == 0) return PDVM_OK;
    PD_TRY(pd_calloc(&sorted, d->n, sizeof *sorted, "divergences", err));
    memcpy(sorted, d->kl, d->n * sizeof *sorted);
    qsort(sorted, d->n, sizeof *sorted, pd_compare_doubles);
    for (int i = 0; i < DIVERGENCE_N_QUANTILES; i++)
        out->quantiles[i] = quantile(sorted, d->n, divergence_quantiles[i]);
    out->max = sorted[d->n - 1];
    free(sorted);
    for (size_t i = 0; i < d->n; i++) add(kl, d->kl[i], (double)i + 1);
    out->kl = mean_of(kl, n);
    double same = d->same / n;
    out->same_top.value = same;
    if (d->n > 1) out->same_top.error = sqrt(same * (1 - same) / (n - 1));
    out->dp = mean_of(d->dp, n);
    struct divergence_mean squares = mean_of(d->dp2, n);
    out->dp_rms.value = sqrt(squares.value);
    if (squares.value > 0) out->dp_rms.error = squares.error / (2 * out->dp_rms.value);
    out->reference_nll = mean_of(d->nll, n);
    out->reference_perplexity = exp(out->reference_nll.value);
    out->nll_change = mean_of(d->change, n);
    double ratio = exp(out->nll_change.value);
    out->perplexity_ratio =
        (struct divergence_mean){.value = ratio, .error = ratio * out->nll_change.error};
    return PDVM_OK;
}

void divergence_free(struct divergence *d) {
    free(d->kl);
    *d = (struct divergence){0};
}

#include "eval/speed.h"
#include "base/alloc.h"
#include "base/time.h"
#include "engine/engine.h"
#include "eval/bench_stats.h"

#include <stdlib.h>
#include <string.h>

#define N_SERIES (SPEED_N_PHASES + 1) /* the kinds of phases, and the whole token */

static double median(const double *x, size_t n) {
    return bench_stats_of(x, n).median;
}

/* One step; its times go to series[kind * n + i]. */
static pdvm_status step(pdvm_session *s, int32_t token, size_t i, size_t n, double *series,
                        pdvm_error *err) {
    const struct plan *plan = &s->model->plan;
    memset(s->phase_seconds, 0, plan->n_phases * sizeof *s->phase_seconds);
    double start = pd_seconds();
    PD_TRY(pdvm_session_step(s, token, err));
    series[SPEED_N_PHASES * n + i] = pd_seconds() - start;
    for (size_t p = 0; p < plan->n_phases; p++)
        series[(size_t)plan->phases[p].kind * n + i] += s->phase_seconds[p];
    return PDVM_OK;
}

static pdvm_status run(pdvm_session *s, const int32_t *tokens, size_t n, double *series,
                       struct speed_result *out, pdvm_error *err) {
    PD_TRY(pdvm_session_sync(s, tokens, n, err));
    for (size_t i = 0; i < n; i++) PD_TRY(step(s, tokens[i], i, n, series, err));
    out->token = median(series + SPEED_N_PHASES * n, n);
    out->rest = out->token;
    for (size_t k = 0; k < SPEED_N_PHASES; k++) {
        out->phases[k] = median(series + k * n, n);
        out->rest -= out->phases[k];
    }
    if (out->rest < 0) out->rest = 0;
    return PDVM_OK;
}

pdvm_status speed_measure(pdvm_model *model, const int32_t *tokens, size_t n,
                          struct speed_result *out, pdvm_error *err) {
    pdvm_session_options options = pdvm_session_options_default();
    pdvm_session *s;
    double *series = NULL;
    *out = (struct speed_result){0};
    options.n_ctx = (uint32_t)(2 * n);
    PD_TRY(pdvm_session_create(model, &options, &s, err));
    double *phases = NULL;
    pdvm_status status = pd_calloc(&phases, model->plan.n_phases, sizeof *phases, "times", err);
    if (status == PDVM_OK) status = pd_calloc(&series, N_SERIES * n, sizeof *series, "times", err);
    s->phase_seconds = phases;
    if (status == PDVM_OK) status = run(s, tokens, n, series, out, err);
    pdvm_session_free(s);
    free(phases);
    free(series);
    return status;
}

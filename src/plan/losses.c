/* What each group of matrices costs in quality, alone and together. */
#include "base/alloc.h"
#include "plan/planning.h"

#include <math.h>
#include <stdlib.h>

/* Whole models beyond this are not what anybody plans for, and bend the fit. */
#define FIT_MOST 2.0

/* ---- exchanging matrices --------------------------------------------------------------- */

/* Loads a matrix of an item's model into the int8 model's backend. */
static pdvm_status load(struct planning *p, size_t item, enum tensor_role role, uint32_t layer,
                        struct backend_matrix **out, pdvm_error *err) {
    struct tensor_info t;
    struct mdcsr m = {0};
    struct model_source *source = p->sources[item];
    tensors_describe(&source->config, role, layer, &t);
    PD_TRY(source_read_mdcsr(source, &t, &m, err));
    pdvm_status status =
        p->model->backend->ops->load_matrix(p->model->backend, &m, MATRIX_PRODUCT, out, err);
    mdcsr_free(&m);
    source_release(source, &t);
    return status;
}

/* Puts an item's matrices of a group into the model; held[l] are those that were there. */
static pdvm_status put(struct planning *p, const struct plan_group *group, size_t item,
                       struct backend_matrix **held, pdvm_error *err) {
    for (uint32_t l = 0; l < group->n_layers; l++) {
        uint32_t layer = group->first_layer + l;
        PD_TRY(load(p, item, group->role, layer, &held[l], err));
        PD_TRY(model_exchange_matrix(p->model, group->role, layer, &held[l], err));
    }
    return PDVM_OK;
}

/* Puts the matrices back that `put` has taken out; those that are NULL never were. */
static void put_back(struct planning *p, const struct plan_group *group,
                     struct backend_matrix **held) {
    for (uint32_t l = 0; l < group->n_layers; l++) {
        if (!held[l]) continue;
        model_exchange_matrix(p->model, group->role, group->first_layer + l, &held[l], NULL);
        p->model->backend->ops->free_matrix(p->model->backend, held[l]);
        held[l] = NULL;
    }
}

/* ---- losses of single groups ----------------------------------------------------------- */

/* A pdvm_progress_fn: an evaluation as its part of all. */
static bool report(void *user, const char *stage, double fraction) {
    const struct planning *p = user;
    const struct pd_notify *n = &p->options->baseline.notify;
    (void)stage;
    return !n->progress ||
           n->progress(n->progress_user, "measuring matrices", (p->done + fraction) / p->total);
}

static pdvm_status measure(struct planning *p, struct plan_group *group, size_t item,
                           pdvm_error *err) {
    struct backend_matrix **held;
    struct evaluation_result e;
    const struct pd_notify notify = {.progress = report, .progress_user = p};
    PD_TRY(pd_calloc(&held, group->n_layers, sizeof(struct backend_matrix *), "matrices", err));
    pdvm_status status = put(p, group, item, held, err);
    if (status == PDVM_OK)
        status = baseline_compare(&p->baseline, p->model, p->base, &notify, &e, err);
    put_back(p, group, held);
    free(held);
    PD_TRY(status);
    group->loss[item] = e.divergence.kl.value;
    group->measured[item] = true;
    p->result->n_evaluations++;
    p->done++;
    return PDVM_OK;
}

/* The item whose whole model has the KL nearest to `kl`, on a logarithmic scale. */
static size_t nearest_item(const struct plan_result *r, double kl, bool measured_only,
                           const struct plan_group *group) {
    size_t best = 0;
    double least = INFINITY;
    for (size_t i = 0; i < r->n_items; i++) {
        double distance = fabs(log(r->items[i].kl + 1e-9) - log(kl + 1e-9));
        if (measured_only && group && !group->measured[i]) continue;
        if (distance >= least) continue;
        least = distance;
        best = i;
    }
    return best;
}

/* Two items that stand for all: nearest to the thirds of the menu's range of damages. */
static void choose_samples(const struct plan_result *r, size_t sample[2]) {
    double low = INFINITY, high = 0;
    for (size_t i = 0; i < r->n_items; i++) {
        double kl = fmax(r->items[i].kl, 1e-6);
        low = fmin(low, kl);
        high = fmax(high, fmin(kl, FIT_MOST));
    }
    if (high < low) high = low;
    sample[0] = nearest_item(r, exp(log(low) * 2 / 3 + log(high) / 3), false, NULL);
    sample[1] = nearest_item(r, exp(log(low) / 3 + log(high) * 2 / 3), false, NULL);
}

/* The others follow from the nearest that was measured, in proportion to the whole models. */
static void derive(const struct plan_result *r, struct plan_group *group) {
    for (size_t i = 0; i < r->n_items; i++) {
        if (group->measured[i]) continue;
        size_t from = nearest_item(r, r->items[i].kl, true, group);
        group->loss[i] = group->loss[from] * r->items[i].kl / fmax(r->items[from].kl, 1e-9);
    }
}

/* int8 without zeros is what the model has already: its share of what that costs in all. */
static bool is_base(const struct planning *p, const struct plan_item *item) {
    const struct convert_options *o = &p->options->convert;
    return item->sparsity == 0 && item->values == MDCSR_INT8 && !o->method->calibration &&
           o->plan.general.group <= 0;
}

static pdvm_status measure_group(struct planning *p, struct plan_group *group,
                                 const size_t sample[2], double n_weights, pdvm_error *err) {
    struct plan_result *r = p->result;
    for (size_t i = 0; i < r->n_items; i++) {
        if (is_base(p, &r->items[i])) {
            group->loss[i] = r->items[i].kl * (double)group->n_weights / n_weights;
            group->measured[i] = true;
        } else if (!p->options->quick || i == sample[0] || i == sample[1]) {
            PD_TRY(measure(p, group, i, err));
        }
    }
    derive(r, group);
    return PDVM_OK;
}

/* The model in which matrices are exchanged: int8 is fast, and its own damage is small. */
static pdvm_status open_base(struct planning *p, pdvm_error *err) {
    struct perplexity_result perplexity;
    const struct baseline_options *b = &p->options->baseline;
    struct pd_notify notify = planning_notify(p, "base model");
    pdvm_model_options o = model_options_with(&notify);
    o.backend = "cpu";
    o.n_threads = b->n_threads;
    o.kernels = b->kernels;
    PD_TRY(pdvm_model_open(p->baseline.path, &o, &p->model, err));
    return baseline_predict(&p->baseline, p->model, "base", &notify, &p->base, &perplexity, err);
}

pdvm_status losses_measure(struct planning *p, pdvm_error *err) {
    struct plan_result *r = p->result;
    size_t sample[2];
    double n_weights = 0;
    PD_TRY(open_base(p, err));
    choose_samples(r, sample);
    size_t n_bases = 0;
    for (size_t i = 0; i < r->n_items; i++) n_bases += is_base(p, &r->items[i]);
    p->total = (double)r->n_groups * (p->options->quick ? 2 : (double)(r->n_items - n_bases));
    for (size_t g = 0; g < r->n_groups; g++) n_weights += (double)r->groups[g].n_weights;
    for (size_t g = 0; g < r->n_groups; g++) {
        PD_TRY(measure_group(p, &r->groups[g], sample, n_weights, err));
        for (size_t i = 0; i < r->n_items; i++) r->items[i].loss_sum += r->groups[g].loss[i];
    }
    losses_fit(r);
    return PDVM_OK;
}

/* ---- losses together ------------------------------------------------------------------- */

void losses_fit(struct plan_result *r) {
    double n = 0, sx = 0, sy = 0, sxx = 0, sxy = 0;
    r->exponent = r->factor = 1;
    for (size_t i = 0; i < r->n_items; i++) {
        if (r->items[i].kl <= 0 || r->items[i].loss_sum <= 0 || r->items[i].kl > FIT_MOST) continue;
        double x = log(r->items[i].loss_sum), y = log(r->items[i].kl);
        n++;
        sx += x;
        sy += y;
        sxx += x * x;
        sxy += x * y;
    }
    if (n < 1) return;
    double spread = sxx - sx * sx / n;
    if (n > 1 && spread > 1e-6) r->exponent = (sxy - sx * sy / n) / spread;
    /* Anything else is noise. */
    r->exponent = fmin(fmax(r->exponent, 0.5), 2);
    r->factor = exp((sy - r->exponent * sx) / n);
}

void point_predict(const struct plan_result *r, struct plan_point *point) {
    point->bytes = r->fixed_bytes;
    point->seconds = r->fixed_seconds;
    point->loss_sum = 0;
    for (size_t g = 0; g < r->n_groups; g++) {
        const struct plan_group *group = &r->groups[g];
        point->bytes += group->bytes[point->choice[g]];
        point->seconds += group->seconds[point->choice[g]];
        point->loss_sum += group->loss[point->choice[g]];
    }
    point->loss = point->loss_sum > 0 ? r->factor * pow(point->loss_sum, r->exponent) : 0;
    point->measured = NAN;
}

pdvm_status point_measure(struct planning *p, struct plan_point *point, const char *what,
                          pdvm_error *err) {
    struct plan_result *r = p->result;
    struct backend_matrix **held;
    struct evaluation_result e;
    uint32_t n_layers = p->model->config.n_layers;
    struct pd_notify notify = planning_notify(p, "%s", what);
    PD_TRY(pd_calloc(&held, r->n_groups * (size_t)n_layers, sizeof(struct backend_matrix *),
                     "matrices", err));
    pdvm_status status = PDVM_OK;
    for (size_t g = 0; g < r->n_groups && status == PDVM_OK; g++)
        status = put(p, &r->groups[g], point->choice[g], held + g * n_layers, err);
    if (status == PDVM_OK) status = baseline_measure(&p->baseline, p->model, &notify, &e, err);
    for (size_t g = 0; g < r->n_groups; g++) put_back(p, &r->groups[g], held + g * n_layers);
    free(held);
    PD_TRY(status);
    point->measured = e.divergence.kl.value;
    r->n_evaluations++;
    return PDVM_OK;
}

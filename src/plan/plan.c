/* A planning run from end to end. */
#include "plan/plan.h"
#include "base/alloc.h"
#include "plan/planning.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

/* ---- progress -------------------------------------------------------------------------- */

/* A pdvm_progress_fn: a step under the name of what it belongs to. */
static bool report(void *user, const char *stage, double fraction) {
    const struct planning *p = user;
    const struct pd_notify *n = &p->options->baseline.notify;
    char text[192];
    if (!n->progress) return true;
    snprintf(text, sizeof text, "%s, %s", p->stage, stage);
    return n->progress(n->progress_user, text, fraction);
}

struct pd_notify planning_notify(struct planning *p, const char *format, ...) {
    struct pd_notify notify = p->options->baseline.notify;
    va_list args;
    va_start(args, format);
    vsnprintf(p->stage, sizeof p->stage, format, args);
    va_end(args);
    notify.progress = report;
    notify.progress_user = p;
    return notify;
}

/* ---- set-up ---------------------------------------------------------------------------- */

static pdvm_status list_items(struct planning *p, pdvm_error *err) {
    const struct plan_options *o = p->options;
    struct plan_result *r = p->result;
    PD_TRY(pd_calloc(&r->items, o->n_sparsities * o->n_values, sizeof *r->items, "the menu", err));
    for (size_t s = 0; s < o->n_sparsities; s++) {
        if (o->sparsities[s] > 0 && !o->convert.method->has_sparsity)
            return pd_fail(err, PDVM_ERR_ARGUMENT,
                           "the menu has a sparsity of %g, but the method %s makes no zeros",
                           o->sparsities[s], o->convert.method->name);
        for (size_t v = 0; v < o->n_values; v++) {
            bool known = false;
            for (size_t i = 0; i < r->n_items; i++)
                known |=
                    r->items[i].sparsity == o->sparsities[s] && r->items[i].values == o->values[v];
            if (!known)
                r->items[r->n_items++] =
                    (struct plan_item){.sparsity = o->sparsities[s], .values = o->values[v]};
        }
    }
    return PDVM_OK;
}

static void note_reference(struct planning *p) {
    struct plan_result *r = p->result;
    r->reference = p->baseline.perplexity;
    r->windows = p->baseline.windows;
    r->reference_bytes = source_bytes(p->baseline.model->source);
}

/* ---- applying -------------------------------------------------------------------------- */

static pdvm_status measure_applied(struct planning *p, pdvm_model *model, pdvm_error *err) {
    struct plan_applied *a = &p->result->applied;
    struct evaluation_result e;
    struct speed_result speed;
    struct pd_notify notify = planning_notify(p, "verifying");
    PD_TRY(baseline_measure(&p->baseline, model, &notify, &e, err));
    PD_TRY(baseline_speed(&p->baseline, model, p->options->speed_tokens, &speed, err));
    a->kl = e.divergence.kl.value;
    a->perplexity = e.perplexity.perplexity;
    a->perplexity_ratio = e.divergence.perplexity_ratio.value;
    a->same_top = e.divergence.same_top.value;
    a->tokens_per_second = speed.token > 0 ? 1 / speed.token : 0;
    p->result->has_applied = true;
    return PDVM_OK;
}

static pdvm_status convert_chosen(struct planning *p, pdvm_error *err) {
    const struct plan_result *r = p->result;
    struct convert_options o = p->options->convert;
    struct convert_result result = {0};
    pdvm_status status = PDVM_OK;
    o.plan.rules = NULL;
    o.plan.n_rules = 0;
    for (size_t i = 0; i < r->n_rules && status == PDVM_OK; i++)
        status = settings_add_rule(&o.plan, r->rules[i], err);
    /* The rules have it all; what is general would only have to agree. */
    o.plan.general = settings_none();
    o.notify = planning_notify(p, "applying");
    if (status == PDVM_OK)
        status = convert_model(p->baseline.path, p->options->apply, &o, &result, err);
    p->result->applied.file_bytes = result.file_bytes;
    convert_result_free(&result);
    settings_free(&o.plan);
    return status;
}

static pdvm_status apply(struct planning *p, pdvm_error *err) {
    pdvm_model *model;
    PD_TRY(convert_chosen(p, err));
    PD_TRY(baseline_open_model(&p->baseline, p->options->apply, &model, err));
    pdvm_status status = measure_applied(p, model, err);
    pdvm_model_close(model);
    return status;
}

/* ---- the run --------------------------------------------------------------------------- */

static pdvm_status run(struct planning *p, const char *source, const char *text_name,
                       const char *text, size_t size, pdvm_error *err) {
    const struct plan_options *o = p->options;
    PD_TRY(list_items(p, err));
    if (o->apply) PD_TRY(convert_check_output(source, o->apply, err));
    PD_TRY(baseline_open(&p->baseline, source, text_name, text, size, &o->baseline, err));
    note_reference(p);
    baseline_drop_model(&p->baseline);
    PD_TRY(menu_measure(p, err));
    PD_TRY(groups_create(p, err));
    PD_TRY(choice_check(p, err));
    PD_TRY(losses_measure(p, err));
    PD_TRY(choice_make(p, err));
    PD_TRY(rules_make(p, err));
    pdvm_model_close(p->model);
    p->model = NULL;
    return o->apply ? apply(p, err) : PDVM_OK;
}

pdvm_status plan_run(const char *source, const char *text_name, const char *text, size_t size,
                     const struct plan_options *options, struct plan_result *out, pdvm_error *err) {
    struct planning p = {.options = options, .result = out};
    out->uniform = out->best_dense = -1;
    pdvm_status status = run(&p, source, text_name, text, size, err);
    pdvm_model_close(p.model);
    logits_file_close(p.base);
    for (size_t i = 0; p.sources && i < out->n_items; i++) source_close(p.sources[i]);
    free(p.sources);
    baseline_close(&p.baseline);
    return status;
}

void plan_result_free(struct plan_result *r) {
    for (size_t g = 0; g < r->n_groups; g++) {
        free(r->groups[g].loss);
        free(r->groups[g].bytes);
        free(r->groups[g].seconds);
        free(r->groups[g].measured);
    }
    for (size_t i = 0; i < r->n_front; i++) free(r->front[i].choice);
    for (size_t i = 0; i < r->n_rules; i++) free(r->rules[i]);
    free(r->chosen.choice);
    free(r->items);
    free(r->groups);
    free(r->front);
    free(r->rules);
    *r = (struct plan_result){0};
}
